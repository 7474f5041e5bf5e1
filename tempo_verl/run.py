# SPDX-License-Identifier: Apache-2.0
"""The folder of a training run: where its parts are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from tempo_verl.config.secrets import masked
from tempo_verl.trainer.checkpoints import write_text


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

    def begin(self, config: DictConfig) -> None:
        """Make the folder that of a run with this configuration, once nothing speaks against it any more.

        The configuration is written last: who sees another one finds nothing of an earlier run in metrics and status.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        _set_earlier_metrics_aside(self.metrics)
        self.status.unlink(missing_ok=True)
        config = OmegaConf.masked_copy(config, [str(section) for section in config if section != "hydra"])
        settings = masked(OmegaConf.to_container(config, resolve=True))
        write_text(self.config, OmegaConf.to_yaml(OmegaConf.create(settings)))

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


def _set_earlier_metrics_aside(metrics: Path) -> None:
    """verl's file logger starts its file anew; a resumed run keeps the earlier parts as metrics.1.jsonl, ..."""
    if metrics.is_file():
        number = 1
        while (aside := metrics.with_name(f"metrics.{number}.jsonl")).exists():
            number += 1
        metrics.rename(aside)
