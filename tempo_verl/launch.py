# SPDX-License-Identifier: Apache-2.0
"""Runs verl's own launcher with the shipped configuration: its output in a log file, a progress bar on the screen."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tempo_verl.config.files import lacks_predictions, restored_checkpoint, round_of
from tempo_verl.config.folder import check_folder
from tempo_verl.config.schema import read_settings
from tempo_verl.errors import UserError
from tempo_verl.trainer.status import read_status

CONFIG_MODULE, CONFIG_NAME = "tempo_verl.config", "tempo_trainer"
POLL_SECONDS = 0.5
ANSI = re.compile(r"\x1b\[[0-9;]*m")
RAY_PREFIX = re.compile(r"^\(\S+ pid=\d+(, ip=\S+)?\) ")


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


def resolve_config(overrides: Sequence[str]) -> DictConfig:
    """Compose the shipped configuration.

    Raises:
        UserError: an override that does not fit it, in one line.
    """
    import verl  # noqa: F401  (its plugin loading registers our resolvers)

    try:
        with initialize_config_module(CONFIG_MODULE, version_base=None):
            return compose(CONFIG_NAME, overrides=list(overrides))
    except MissingConfigException as error:
        group, _, name = (error.missing_cfg_file or "").partition("/")
        raise UserError(f"{group}={name} is unknown; choose one of {', '.join(error.options or ())}") from error
    except (HydraException, OmegaConfBaseException) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError("; ".join(lines)) from error


def run_training(
    run: Run,
    overrides: Sequence[str],
    console: Console,
    *,
    title: str,
    verbose: bool = False,
    ended: Callable[[float], None] | None = None,
) -> float:
    """Check, then train until done.

    Args:
        run: its folder; an earlier run in it is resumed (verl's ``trainer.resume_mode=auto``).
        overrides: Hydra overrides.
        title: what the progress bar says.
        verbose: verl's output on the console instead of a progress bar and a log file.
        ended: called with the seconds the training process ran, also when it failed or was interrupted.

    Returns:
        Seconds the training process ran. 0 where all rounds are trained already, which is said, and nothing else is to
        be done.

    Raises:
        UserError: a mistake found by the checks, or the run failed; then with the cause and the log's path.
    """
    from tempo_verl.config.checks import CHECKED, check
    from tempo_verl.doctor import check_plugin

    with console.status(f"{title}: checking the configuration, data and models"):
        check_plugin()
        overrides = [*run.overrides(), *overrides]
        config = resolve_config(overrides)
        loggers = config.trainer.logger
        loggers = [loggers] if isinstance(loggers, str) else list(loggers)
        added = []
        if "file" not in loggers:  # the progress bar and the report read that one
            added.append(f"trainer.logger=[{','.join([*loggers, 'file'])}]")
        if config.tempo.start_from is not None:  # Ray's processes may have another working directory
            added.append(f"tempo.start_from='{Path(config.tempo.start_from).expanduser().absolute()}'")
        if added:
            overrides += added
            config = resolve_config(overrides)
        rounds = _trained(run, config)
        if rounds is None:
            check(config)
        check_folder(run.folder, config)
    if rounds is not None:
        console.print(
            f"{title}: all {rounds} rounds are in {run.folder} already, so nothing was trained; raise tempo.rounds to "
            "go on",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        return 0.0
    run.log.parent.mkdir(parents=True, exist_ok=True)
    _set_earlier_metrics_aside(run.metrics)
    run.status.unlink(missing_ok=True)
    OmegaConf.save(config, run.folder / "config.yaml", resolve=True)

    command = [
        sys.executable, "-m", "verl.trainer.main_ppo",
        "--config-path", f"pkg://{CONFIG_MODULE}", "--config-name", CONFIG_NAME, *overrides,
    ]  # fmt: skip
    started = time.monotonic()
    with run.log.open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=None if verbose else log,
            stderr=None if verbose else subprocess.STDOUT,
            env={**os.environ, "HYDRA_FULL_ERROR": "1", "RAY_DEDUP_LOGS": "0", CHECKED: "1"},
        )
        try:
            _watch(process, run, config, console, title, show=not verbose)
        except BaseException:
            _stop(process)
            raise
        finally:
            seconds = time.monotonic() - started
            if ended:
                ended(seconds)
    status = read_status(run.status)
    if process.returncode != 0:
        cause = status.error or ("see the output above" if verbose else last_error(run.log))
        where = "" if verbose else f" (full log: {run.log})"
        raise UserError(f"{title} failed: {cause.removeprefix('UserError: ')}{where}")
    if status.ends_early is not None:
        console.print(f"{title} ended early: {status.ends_early}", highlight=False, markup=False, soft_wrap=True)
    return seconds


def _trained(run: Run, config: DictConfig) -> int | None:
    """``tempo.rounds`` if a run in this folder has trained as many, and its predictions are there; else None."""
    if not (run.folder / "config.yaml").is_file() or config.trainer.val_only or config.trainer.resume_mode != "auto":
        return None
    method, checkpoint, status = read_settings(config), restored_checkpoint(config), read_status(run.status)
    rounds = method.settings.rounds
    if checkpoint is None or lacks_predictions(method, checkpoint):
        return None
    # with keep=best the last checkpoint may be of an earlier round
    trained = status.round if status.state == "done" else round_of(checkpoint)
    return rounds if trained == rounds else None


def write_run_info(folder: Path, command: str, seconds: dict[str, float], seed: int | None = None) -> None:
    """What a reader needs to judge the numbers of a run: command, seed, versions, machine, times; in ``run.json``.

    Seconds are added, phase by phase, to those of an earlier part of the run in this folder.
    """
    from tempo_verl.doctor import versions

    path = folder / "run.json"
    earlier = json.loads(path.read_text()).get("seconds", {}) if path.is_file() else {}
    info = {
        "command": command,
        "seed": seed,
        "versions": {"python": platform.python_version(), **versions()},
        "machine": {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()},
        "seconds": earlier | {name: round(earlier.get(name, 0) + value, 1) for name, value in seconds.items()},
    }
    path.write_text(json.dumps(info, indent=2))


def _watch(process: subprocess.Popen, run: Run, config: DictConfig, console: Console, title: str, show: bool) -> None:
    """Follow the metrics file until the process ends."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[news]}"),
    )
    rounds = config.trainer.total_training_steps
    with Progress(*columns, console=console, disable=not show) as progress:
        bar = progress.add_task(title, total=rounds, news="starting Ray and the models")
        lines = follow(run.metrics)
        while process.poll() is None:
            _show(progress, bar, lines)
            if progress.finished:
                progress.update(bar, news="rounds done, finishing")
            time.sleep(POLL_SECONDS)
        _show(progress, bar, lines)
        if process.returncode == 0:
            progress.update(bar, news="done")


def _show(progress: Progress, bar, lines: Iterator[dict | None]) -> None:
    while (line := next(lines)) is not None:
        data = line["data"]
        news = [
            f"{label} {data[name]:.2f}"
            for label, name in (
                ("accuracy D_L", "tempo/labeled/accuracy"),
                ("AUROC", "tempo/labeled/auroc"),
                ("reward D_U", "tempo/unlabeled/reward_mean"),
            )
            if name in data
        ]
        progress.update(bar, completed=line["step"], news="  ".join(news) or "evaluated")


def follow(path: Path) -> Iterator[dict | None]:
    """Endless: the next whole JSON line of a growing file, or ``None`` if there is none yet."""
    position = 0
    while True:
        if path.is_file():
            with path.open("rb") as file:
                file.seek(position)
                line = file.readline()
            if line.endswith(b"\n"):
                position += len(line)
                yield json.loads(line)
                continue
        yield None


def _set_earlier_metrics_aside(metrics: Path) -> None:
    """verl's file logger starts its file anew; a resumed run keeps the earlier parts as metrics.1.jsonl, ..."""
    if metrics.is_file():
        number = 1
        while (aside := metrics.with_name(f"metrics.{number}.jsonl")).exists():
            number += 1
        metrics.rename(aside)


def _stop(process: subprocess.Popen) -> None:
    """End the run we started, giving Ray time to take its processes down with it."""
    for sign, patience in ((signal.SIGINT, 20), (signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        if process.poll() is not None:
            return
        process.send_signal(sign)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def last_error(log: Path) -> str:
    """What a run that ended without its trainer, which writes the status file, said last: an error if there is one."""
    lines = [RAY_PREFIX.sub("", ANSI.sub("", line)).strip() for line in log.read_text(errors="replace").splitlines()]
    for pattern in (r"^tempo-verl: ", r"^(\w+\.)*UserError: ", r"^(\w+\.)*\w*(Error|Exception|Exit)\b.*: "):
        found = [line for line in lines if re.match(pattern, line) and "RayTaskError" not in line]
        if found:
            return found[-1].removeprefix("tempo-verl: ")[:500]
    return next((line for line in reversed(lines) if line), "no output")[:500]
