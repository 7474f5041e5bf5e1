# SPDX-License-Identifier: Apache-2.0
"""Runs verl's own launcher with the shipped configuration: its output in a log file, a progress bar on the screen."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from tempo_verl.config.checks import check_settings
from tempo_verl.config.cluster import loopback, trainer_environment, trains_here
from tempo_verl.config.composed import CONFIG_MODULE, CONFIG_NAME, resolve_config
from tempo_verl.config.files import lacks_predictions, restored_checkpoint, round_of
from tempo_verl.config.preflight import CHECKED, REFUSED
from tempo_verl.config.resume import check_folder, check_unchanged
from tempo_verl.config.schema import read_settings
from tempo_verl.console import tell
from tempo_verl.doctor import check_entry_point, surroundings
from tempo_verl.errors import UserError
from tempo_verl.processes import READY, end_with_parent, none_left
from tempo_verl.progress import display
from tempo_verl.run import Run
from tempo_verl.trainer.status import State, read_status

LOCAL = "tempo_verl.local"
POLL_SECONDS = 0.5
LONGEST_CAUSE = 500  # characters
ANSI = re.compile(r"\x1b\[[0-9;]*m")
RAY_PREFIX = re.compile(r"^\(\S+ pid=\d+(, ip=\S+)?\) ")


def run_training(
    run: Run,
    overrides: Sequence[str],
    console: Console,
    *,
    title: str,
    verbose: bool = False,
    max_restarts: int = 0,
    ended: Callable[[float], None] | None = None,
    meanwhile: Callable[[], object] | None = None,
    hints: bool = False,
) -> float:
    """Check, then train until done.

    Args:
        run: its folder; an earlier run in it is resumed (verl's ``trainer.resume_mode=auto``).
        overrides: Hydra overrides.
        title: what the progress bar says.
        verbose: verl's output on the console instead of a progress bar and a log file.
        max_restarts: how often a run that fails goes on from its last checkpoint; not after a mistake, which would be
            met again.
        ended: called with the seconds the training process ran, also when it failed or was interrupted.
        hints: tell what may have been overlooked.
        meanwhile: makes what the training begins with, while its process imports what takes seconds; on one machine.

    Returns:
        Seconds the training process ran. 0 where all rounds are trained already, which is said, and nothing else is to
        be done.

    Raises:
        UserError: a mistake found by the checks, or the run failed; then with the cause and the log's path.
    """
    with console.status(f"{title}: checking the configuration"):
        overrides, config = compose(run, overrides)
        rounds = _trained(run, config)
        if rounds is None and meanwhile is None:
            check_settings(config)
        elif rounds is not None:
            check_unchanged(config, read_settings(config))
        check_folder(run.folder, config)
    if rounds is not None:
        tell(
            console,
            f"{title}: all {rounds} rounds are in {run.folder} already, so nothing was trained; raise tempo.rounds to "
            "go on",
        )
        return 0.0
    command = [
        sys.executable, "-m", LOCAL if trains_here(config) else "verl.trainer.main_ppo",
        "--config-path", f"pkg://{CONFIG_MODULE}", "--config-name", CONFIG_NAME, *overrides,
    ]  # fmt: skip
    if hints and not config.trainer.test_freq > 0 and not config.trainer.val_only:
        hint = "nothing is validated in it (trainer.test_freq, data.val_files), so no report can say whether it helped"
        tell(console, f"{title}: {hint}")
    started, show = time.monotonic(), not verbose

    def complete() -> None:
        if meanwhile is not None and status is None:
            meanwhile()
            try:
                check_settings(config)
            except UserError as error:
                raise _Refused(str(error)) from None

    status: State | None = None  # of the last try
    with run.lock() as lock:
        try:
            for restarts in range(max_restarts + 1):
                status, failure = _train_once(run, command, config, console, title, lock, show, complete)
                if failure is None:
                    break
                if restarts == max_restarts or failure.in_vain:
                    raise UserError(f"{title} failed: {failure.cause}" + (f" (full log: {run.log})" if show else ""))
                tell(console, f"{title} failed: {failure.cause}. Restart {restarts + 1} of {max_restarts}")
                command = [*command, "trainer.resume_mode=auto"]  # from the last checkpoint, wherever it began
        except _Refused:
            raise
        except BaseException:
            _report_time(ended, started)
            raise
    seconds = _report_time(ended, started)
    assert status is not None, "there is at least one try"
    for notice in status.notices:
        tell(console, f"{title}: {notice}")
    if status.ends_early is not None:
        tell(console, f"{title} ended early: {status.ends_early}")
    return seconds


def compose(run: Run, overrides: Sequence[str]) -> tuple[list[str], DictConfig]:
    """The overrides that the run's process is given, and its configuration.

    Raises:
        UserError: the installation or an override is wrong.
    """
    check_entry_point()
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
    return overrides, config


@dataclass(frozen=True)
class Failure:
    """Why a training ended. ``in_vain``: it would end so again."""

    cause: str
    in_vain: bool


def _report_time(ended: Callable[[float], None] | None, started: float) -> float:
    seconds = time.monotonic() - started
    if ended:
        ended(seconds)
    return seconds


class _Refused(UserError):
    """A mistake that was found before the run began."""


def _train_once(
    run: Run,
    command: list[str],
    config: DictConfig,
    console: Console,
    title: str,
    lock: int,
    show: bool,
    complete: Callable[[], None],
) -> tuple[State, Failure | None]:
    """Run verl's launcher to its end.

    Args:
        lock: file descriptor of the folder's lock, which the launcher holds as well.
        show: a progress bar and a log file instead of verl's output.
        complete: makes what the run needs; until then its process waits.

    Raises:
        UserError: the checks found a mistake.
    """
    run.log.parent.mkdir(parents=True, exist_ok=True)
    earlier_log, earlier_config = _size(run.log), _stamp(run.config)
    with run.log.open("ab") as log, none_left():
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log if show else None,
            stderr=subprocess.STDOUT if show else None,
            env={
                **loopback(config),
                **os.environ,
                **trainer_environment(config),
                "HYDRA_FULL_ERROR": "1",
                "RAY_DEDUP_LOGS": "0",
                "PYTHONUNBUFFERED": "1",  # what was printed is in the log, whatever ends the process
                CHECKED: str(run.folder),
            },
            pass_fds=[lock],
            preexec_fn=end_with_parent,
        )
        try:
            complete()
            with contextlib.suppress(BrokenPipeError):  # it has died; why is told below
                process.stdin.write(READY)  # type: ignore[union-attr]
                process.stdin.close()  # type: ignore[union-attr]
            _watch(process, run, config, console, title, earlier_config, show)
        except BaseException as error:
            _stop(process)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                tell(console, f"{title}: {_interrupted(run, config, earlier_config)}; log: {run.log}")
            if isinstance(error, _Refused):
                _clear_log(run, earlier_log)
            raise
    said = last_error(run.log, earlier_log) if show else "see the output above"
    if process.returncode == REFUSED:
        _clear_log(run, earlier_log)
        raise _Refused(said)
    # a process that died before it began this run has left an earlier run's status in place
    status = State() if _stamp(run.config) == earlier_config else read_status(run.status)
    if process.returncode == 0:
        return status, None
    if status.error is None and process.returncode < 0:
        who = "the trainer's process" if trains_here(config) else "verl's launcher"
        said = f"{who} was ended by {signal.strsignal(-process.returncode) or -process.returncode}"
        said += " (by hand, or because memory ran out)" * (process.returncode == -signal.SIGKILL)
    elif status.error is None and status.state in ("starting", "running") and "UserError: " not in said:
        said = f"the trainer's process ended without a word, killed, crashed or out of memory ({said})"
    cause = status.error or said
    return status, Failure(cause.rpartition("UserError: ")[2], in_vain="UserError: " in cause)


def _interrupted(run: Run, config: DictConfig, earlier_config: tuple[int, int] | None) -> str:
    """What a command leaves that was told to end, and what the same command does next."""
    begun = _stamp(run.config) != earlier_config
    number = read_status(run.status).round if begun else 0
    told = f"interrupted after round {number}" if number else "interrupted before the first round was over"
    checkpoint = restored_checkpoint(config) if begun else None
    if checkpoint is None:
        return f"{told}; no checkpoint of it is there (trainer.save_freq), the same command begins anew"
    return f"{told}; the same command goes on from the checkpoint of round {round_of(checkpoint)}"


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
    path = folder / "run.json"
    earlier = json.loads(path.read_text()).get("seconds", {}) if path.is_file() else {}
    info = {
        "command": command,
        "seed": seed,
        **surroundings(),
        "seconds": earlier | {name: round(earlier.get(name, 0) + value, 1) for name, value in seconds.items()},
    }
    path.write_text(json.dumps(info, indent=2))


def _watch(
    process: subprocess.Popen,
    run: Run,
    config: DictConfig,
    console: Console,
    title: str,
    earlier_config: tuple[int, int] | None,
    show: bool,
) -> None:
    """Follow the metrics file from the run's begin, which puts an earlier one aside, until the process ends."""
    rounds = config.trainer.total_training_steps
    shown, lines, told = display(console, title, rounds, run.log) if show else None, follow(run.metrics), 0
    try:
        while True:
            ended = process.poll() is not None  # before the lines: what was written until then is shown
            while _stamp(run.config) != earlier_config and (line := next(lines)) is not None:
                told = line["step"]
                if shown is not None:
                    shown.round(told, line["data"])
            if ended:
                return
            if shown is not None and told >= rounds:
                shown.finishing()
            time.sleep(POLL_SECONDS)
    finally:
        if shown is not None:
            shown.end(done=process.returncode == 0)


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


def last_error(log: Path, start: int = 0) -> str:
    """What a run that ended without its trainer, which writes the status file, said last: an error if there is one.

    Args:
        log: of all runs in the folder.
        start: where in it this run begins, in bytes.
    """
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    lines = [RAY_PREFIX.sub("", ANSI.sub("", line)).strip() for line in text.splitlines()]
    for pattern in (r"^tempo-verl: ", r"^(\w+\.)*UserError: ", r"^(\w+\.)*\w*(Error|Exception|Exit)\b.*: "):
        found = [line for line in lines if re.match(pattern, line) and "RayTaskError" not in line]
        if found:
            return found[-1].removeprefix("tempo-verl: ")[:LONGEST_CAUSE]
    return next((line for line in reversed(lines) if line), "no output")[:LONGEST_CAUSE]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _stamp(path: Path) -> tuple[int, int] | None:
    """Another one once the file was written again."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.is_file() else None


def _clear_log(run: Run, size: int) -> None:
    """Leave nothing behind of a command that was refused."""
    os.truncate(run.log, size)
    if size == 0:
        run.log.unlink()
        for folder in (run.log.parent, run.folder):
            if not any(folder.iterdir()):
                folder.rmdir()
