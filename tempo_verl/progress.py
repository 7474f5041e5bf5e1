# SPDX-License-Identifier: Apache-2.0
"""What a command shows of its training: a bar on a terminal, plain lines elsewhere, and alarms when they are raised."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import Progress, TextColumn

from tempo_verl.console import bar_columns, tell
from tempo_verl.trainer.watch import ALARMS

SECONDS_BETWEEN_LINES = 30.0
BEGINNING, FINISHING = "checking data and models, starting Ray", "rounds done, finishing"
NEWS = (
    ("accuracy D_L", "tempo/labeled/accuracy"),
    ("AUROC", "tempo/labeled/auroc"),
    ("reward D_U", "tempo/unlabeled/reward_mean"),
)


class Display(Protocol):
    """Shows rounds as they are logged."""

    def round(self, step: int, data: Mapping[str, float]) -> None:
        """The metrics of a round; of round 0 a validation's."""

    def finishing(self) -> None:
        """All rounds are over, and the process goes on."""

    def end(self, done: bool) -> None:
        """Nothing more is shown; ``done``: the process ended well."""


def display(console: Console, title: str, rounds: int, log: Path) -> Display:
    """The one that fits where ``console`` writes to.

    Args:
        rounds: that the run has when it is done.
        log: where the process writes to; told where nobody sees a bar.
    """
    return Bar(console, title, rounds) if console.is_terminal else Lines(console, title, rounds, log)


class Bar:
    """A progress bar."""

    def __init__(self, console: Console, title: str, rounds: int):
        self._title, self._raised = title, Raised()
        self._progress = Progress(*bar_columns(), TextColumn("{task.fields[news]}"), console=console)
        self._bar = self._progress.add_task(title, total=rounds, news=BEGINNING)
        self._progress.start()

    def round(self, step: int, data: Mapping[str, float]) -> None:
        self._progress.update(self._bar, completed=step, news=news(data) or "evaluated")
        for alarm in self._raised.by(data):
            tell(self._progress.console, f"{self._title}, round {step}: {alarm}")

    def finishing(self) -> None:
        self._progress.update(self._bar, news=FINISHING, refresh=True)

    def end(self, done: bool) -> None:
        if done:
            self._progress.update(self._bar, news="done")
        self._progress.stop()


class Lines:
    """A line now and then, for log files and batch systems."""

    def __init__(self, console: Console, title: str, rounds: int, log: Path):
        self._console, self._title, self._rounds, self._raised = console, title, rounds, Raised()
        self._first: tuple[int, float] | None = None  # round, and when it was over
        self._last_line = -SECONDS_BETWEEN_LINES
        self._say(f"{BEGINNING}; log: {log}")

    def round(self, step: int, data: Mapping[str, float]) -> None:
        now = time.monotonic()
        if self._first is None and step > 0:
            self._first = (step, now)
            if step > 1:
                self._say(f"goes on after round {step - 1}")
        for alarm in self._raised.by(data):
            self._say(f"round {step}: {alarm}")
        if step == self._rounds or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            told = [f"round {step} of {self._rounds}", news(data) or "evaluated", self._left(step, now)]
            self._say(", ".join(filter(None, told)))

    def _left(self, step: int, now: float) -> str:
        """The time that is left, by the mean of the rounds seen."""
        if self._first is None or step <= self._first[0] or step >= self._rounds:
            return ""
        each = (now - self._first[1]) / (step - self._first[0])
        return f"{each:.1f} s a round, {each * (self._rounds - step) / 60:.0f} min left"

    def finishing(self) -> None:
        pass

    def end(self, done: bool) -> None:
        pass

    def _say(self, text: str) -> None:
        tell(self._console, f"{self._title}: {text}")


class Raised:
    """Alarms that were off in the round before."""

    def __init__(self) -> None:
        self._on: set[str] = set()

    def by(self, data: Mapping[str, float]) -> list[str]:
        """Those that a round's metrics raise, in words."""
        on = {name for name in ALARMS if data.get(f"tempo/alarm/{name}")}
        raised, self._on = sorted(on - self._on), on
        return [f"alarm {name}: {ALARMS[name][1]}" for name in raised]


def news(data: Mapping[str, float]) -> str:
    """What is looked at first, of a round's metrics."""
    return "  ".join(f"{label} {data[name]:.2f}" for label, name in NEWS if name in data)
