# SPDX-License-Identifier: Apache-2.0
"""How long a command takes before it does what it was called for: help, a mistake, the first round.

The first round is that of the quickstart's stage 0 on its tiny model, so nearly all of it is processes that start.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console
from sections import Section, show, spread

POLL_SECONDS, LOOK_SECONDS = 0.05, 1.0
COMMAND = (sys.executable, "-m", "tempo_verl.cli.main")
# What a process is, by a pattern in its command line, the first that fits.
KINDS = (
    (r"^ray::(\w+)", r"\1"),
    (r"tempo_verl\.cli\.main train", "tempo-verl train"),
    (r"tempo_verl\.cli\.main quickstart", "tempo-verl quickstart"),
    (r"tempo_verl\.local|verl\.trainer\.main_ppo", "the trainer"),
    (r"default_worker\.py", "Ray worker, idle"),
    (r"/raylet/raylet|/gcs/gcs_server|ray/dashboard|log_monitor|runtime_env", "Ray's own"),
)


@dataclass
class Start:
    """Seconds since the command. ``seen``: when the first process of a kind appeared; ``busy``: of all of a kind."""

    seen: dict[str, float] = field(default_factory=dict)
    busy: dict[int, tuple[str, float]] = field(default_factory=dict)
    marks: dict[str, float] = field(default_factory=dict)

    def by_kind(self) -> dict[str, float]:
        total: dict[str, float] = defaultdict(float)
        for kind, seconds in self.busy.values():
            total[kind] += seconds
        return total


def kind_of(process: psutil.Process) -> str:
    line = " ".join(process.cmdline())
    for pattern, name in KINDS:
        if match := re.search(pattern, line):
            return match.expand(name)
    return "other"


def timed(arguments: list[str], status: int) -> float:
    """Wall seconds of a command that is over by itself.

    Raises:
        RuntimeError: it ended with another status.
    """
    started = time.perf_counter()
    ended = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if ended.returncode != status:
        raise RuntimeError(f"{arguments}: status {ended.returncode}: {ended.stderr[-500:]}")
    return seconds


def first_round(folder: Path, arguments: list[str], run: Path) -> Start:
    """Call the command, look at what runs until the metrics of a round are in ``run``, and interrupt it."""
    start, started, looked = Start(), time.perf_counter(), 0.0
    marks = {"configuration checked": run / "config.yaml", "trainer set up": run / "status.json"}
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen([*COMMAND, *arguments], stdout=output, stderr=output)
        whole = psutil.Process(process.pid)
        while process.poll() is None:
            now = time.perf_counter() - started
            for name, path in marks.items():
                if path.exists():
                    start.marks.setdefault(name, now)
            metrics = run / "metrics.jsonl"
            if metrics.exists() and '"step":1' in metrics.read_text().replace(" ", ""):
                start.marks["first round"] = now
                process.send_signal(signal.SIGINT)
                process.wait()
                return start
            time.sleep(POLL_SECONDS)
            if now < looked + LOOK_SECONDS:  # a look at all processes takes a while itself
                continue
            looked = now
            for found in [whole, *whole.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    kind, times = kind_of(found), found.cpu_times()
                    start.seen.setdefault(kind, now)
                    start.busy[found.pid] = kind, times.user + times.system
    raise RuntimeError((folder / "output.txt").read_text()[-1000:])


def measure(fast: bool = False) -> Iterator[Section]:
    """Waits, and the processes that a first round starts."""
    from tempo_verl.quickstart import FAST, _stage0_overrides, prepare
    from tempo_verl.tasks.running_sums import RunningSums

    os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    waits: dict[str, list[float]] = defaultdict(list)
    starts: list[Start] = []
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary)
        prepare(made, RunningSums(seed=1), 1, Console(quiet=True))
        overrides = [*_stage0_overrides(made, FAST, 1), "tempo.rounds=9", "tempo.calibration.warmup_rounds=0"]
        overrides += ["trainer.val_before_train=false", "trainer.save_freq=-1"]
        for repetition in range(1 if fast else 2):
            waits["`tempo-verl --help`"].append(timed(["--help"], 0))
            waits["a mistake in a setting"].append(timed(["train", "tempo.rounds=-1"], 2))
            waits["a misspelt setting"].append(timed(["train", "tempo.round=3"], 2))
            folder = made / str(repetition)
            folder.mkdir()
            run = folder / "run"
            starts.append(first_round(folder, ["train", "--run-dir", str(run), *overrides], run))
            run = folder / "quickstart"
            whole = first_round(folder, ["quickstart", "--run-dir", str(run)], run / "stage0")
            waits["`tempo-verl quickstart`: first round, after pretraining and a validation"].append(
                whole.marks["first round"]
            )
    for mark in starts[0].marks:
        waits[f"`tempo-verl train`: {mark}"] = [start.marks[mark] for start in starts]
    rows = [(name, spread(seconds, ".1f")) for name, seconds in waits.items()]
    yield Section("Start-up", ("what", "seconds since the command"), rows, "On a warm file cache.")
    processes = Section("Processes until the first round", ("process", "first seen at, s", "seconds on a core, all"))
    for kind in sorted(starts[0].seen, key=starts[0].seen.__getitem__):
        seen = [start.seen[kind] for start in starts if kind in start.seen]
        busy = [start.by_kind().get(kind, 0.0) for start in starts]
        processes.rows.append((kind, f"{statistics.median(seen):.1f}", f"{statistics.median(busy):.1f}"))
    processes.rows.append(("all", "", spread([sum(start.by_kind().values()) for start in starts], ".1f")))
    yield processes


def main(fast: Annotated[bool, typer.Option("--fast")] = False) -> None:
    """Measure, and print the tables."""
    show(measure(fast))


if __name__ == "__main__":
    typer.run(main)
