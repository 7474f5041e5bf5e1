# SPDX-License-Identifier: Apache-2.0
"""Hundreds of rounds of the real thing: does the memory of any process, or of the queue, grow? See reliability.md.

Memory is what the operating system says is a process's own (unique set size), every few seconds, by kind of process.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer
from reliability import COMMAND, Made, Watched, make
from rich.console import Console
from rich.table import Table
from sections import machine
from startup import kind_of

MB = 1024**2
EVERY = 3.0  # seconds
# The first part of a run fills caches, pools and the replay.
WARM_UP = 0.25


def main(
    rounds: Annotated[int, typer.Option(help="Of TEMPO, with replay.")] = 300,
    out: Annotated[Path, typer.Option(help="JSON: round and MB, by kind of process.")] = Path("soak.json"),
) -> None:
    """Train, watch, fit a line behind the first quarter; print its slope."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    with tempfile.TemporaryDirectory() as temporary:
        seen = watch(make(Path(temporary)), rounds)
    out.write_text(json.dumps(seen))
    table = Table("process", "MB after a quarter", "MB at the end", "slope, MB in 100 rounds (95 % interval)")
    for kind, points in sorted(seen.items()):
        number, size = np.array(points).T
        warm = number >= WARM_UP * rounds
        if warm.sum() < 10:
            continue
        slope, error = line(number[warm], size[warm])
        table.add_row(
            kind, f"{size[warm][0]:.0f}", f"{size[warm][-1]:.0f}",
            f"{100 * slope:+.1f} ({100 * (slope - 2 * error):+.1f} to {100 * (slope + 2 * error):+.1f})",
        )  # fmt: skip
    console = Console(width=120)
    console.print(machine())
    console.print(table)


def watch(made: Made, rounds: int) -> dict[str, list[tuple[int, float]]]:
    """(round, MB) of each kind of process, all of a kind together."""
    run, seen = made.folder / "run", defaultdict(list)
    overrides = [*made.overrides("tempo", rounds), "trainer.save_freq=25", "trainer.test_freq=25"]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([*COMMAND, "--run-dir", str(run), *overrides], stdout=output, stderr=output)
        watched = Watched(process.pid)
        while process.poll() is None:
            watched.look()
            number = _round(run)
            for kind, size in _sizes(watched).items() if number else ():
                seen[kind].append((number, size))
            time.sleep(EVERY)
        if process.returncode:
            output.seek(0)
            raise RuntimeError(output.read()[-1000:])
    return dict(seen)


def line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of the least-squares line, and its standard error."""
    centred = x - x.mean()
    slope = centred @ y / (centred @ centred)
    rest = y - y.mean() - slope * centred
    return float(slope), float(np.sqrt(rest @ rest / (len(x) - 2) / (centred @ centred)))


def _round(run: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return json.loads((run / "status.json").read_text())["round"]
    return 0


def _sizes(watched: Watched) -> dict[str, float]:
    sizes: dict[str, float] = defaultdict(float)
    for process in watched.find(""):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            sizes[kind_of(process)] += process.memory_full_info().uss / MB
    return dict(sizes)


if __name__ == "__main__":
    typer.run(main)
