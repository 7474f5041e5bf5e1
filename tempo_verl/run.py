# SPDX-License-Identifier: Apache-2.0
"""The folder of a training run: where its parts are kept."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
from omegaconf import DictConfig, OmegaConf

from tempo_verl.config.secrets import masked
from tempo_verl.errors import UserError
from tempo_verl.trainer.manifest import write_text

logger = logging.getLogger(__name__)

LOCK = ".lock"  # holds the number of the process whose command has the folder
PATIENCE, POLL_SECONDS = 60.0, 0.5


@dataclass(frozen=True)
class Run:
    """Where the parts of a training run are kept."""

    folder: Path

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.folder / "logs" / "verl.log"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def status(self) -> Path:
        return self.folder / "status.json"

    @property
    def predictions(self) -> Path:
        return self.folder / "predictions.jsonl"

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @contextmanager
    def lock(self) -> Iterator[int]:
        """Keep the folder for this command. Processes that hold the file descriptor too keep it as long as they live.

        Raises:
            UserError: another command has it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("a+") as file:
            self._wait_for(file)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            try:
                yield file.fileno()
            finally:
                if [path.name for path in self.folder.iterdir()] == [LOCK]:  # the command was refused
                    (self.folder / LOCK).unlink()
                    self.folder.rmdir()

    def _wait_for(self, file: IO[str]) -> None:
        """Take the lock; what a command that was killed has left behind gets some time to end."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if not isinstance(error, BlockingIOError):  # a file system without locks
                    logger.warning("%s cannot be locked (%s): start no second command with it", self.folder, error)
                    return None
                file.seek(0)
                holder = file.read().strip()
                if (holder.isdigit() and psutil.pid_exists(int(holder))) or time.monotonic() > until:
                    raise UserError(
                        f"--run-dir={self.folder} is in use by another command (process {holder or 'unknown'}); wait "
                        "until it has ended, or name another folder"
                    ) from None
                time.sleep(POLL_SECONDS)

    def begin(self, config: DictConfig) -> None:
        """Make the folder that of a run with this configuration, once nothing speaks against it any more.

        The configuration is written last: who sees another one finds nothing of an earlier run in metrics and status.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        _set_earlier_metrics_aside(self.metrics)
        self.status.unlink(missing_ok=True)
        write_text(self.config, resolved(config))

    def overrides(self) -> list[str]:
        """Send everything a run writes into this folder. A user's own overrides come after these."""
        folder = self.folder.resolve()
        return [
            f"trainer.default_local_dir='{folder / 'checkpoints'}'",
            f"trainer.validation_data_dir='{folder / 'validation'}'",
            f"tempo.dump_dir='{folder / 'rounds'}'",
            f"tempo.status_file='{folder / self.status.name}'",
            f"tempo.predictions.file='{folder / self.predictions.name}'",
            "trainer.logger=[file]",
            f"+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH='{folder / 'metrics.jsonl'}'",
        ]


def resolved(config: DictConfig) -> str:
    """The configuration as YAML, without what is Hydra's own, with secrets masked."""
    config = OmegaConf.masked_copy(config, [str(section) for section in config if section != "hydra"])
    settings = masked(OmegaConf.to_container(config, resolve=True))
    return OmegaConf.to_yaml(OmegaConf.create(settings))


def _set_earlier_metrics_aside(metrics: Path) -> None:
    """verl's file logger starts its file anew; a resumed run keeps the earlier parts as metrics.1.jsonl, ..."""
    if metrics.is_file():
        number = 1
        while (aside := metrics.with_name(f"metrics.{number}.jsonl")).exists():
            number += 1
        metrics.rename(aside)
