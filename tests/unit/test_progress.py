# SPDX-License-Identifier: Apache-2.0
"""What a command shows while it trains, on a terminal and elsewhere."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tempo_verl import progress
from tempo_verl.progress import Bar, Lines, Raised, display, news

ROUND = {"tempo/labeled/accuracy": 0.5, "tempo/labeled/auroc": 0.875, "tempo/unlabeled/reward_mean": 0.25}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its only number is the time."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_are_told_now_and_then(clock: list[float]) -> None:
    out = io.StringIO()
    lines = Lines(Console(file=out), "TEMPO", 100, Path("run/logs/verl.log"))
    lines.round(0, {"val": 1.0})
    for step in range(1, 8):
        clock[0] += 10
        lines.round(step, ROUND)
    clock[0] += 1
    lines.round(100, ROUND)
    assert out.getvalue().splitlines() == [
        "TEMPO: checking data and models, starting Ray; log: run/logs/verl.log",
        "TEMPO: round 0 of 100, evaluated",
        "TEMPO: round 3 of 100, accuracy D_L 0.50  AUROC 0.88  reward D_U 0.25, 10.0 s a round, 16 min left",
        "TEMPO: round 6 of 100, accuracy D_L 0.50  AUROC 0.88  reward D_U 0.25, 10.0 s a round, 16 min left",
        "TEMPO: round 100 of 100, accuracy D_L 0.50  AUROC 0.88  reward D_U 0.25",
    ]


def test_a_run_that_goes_on_says_so() -> None:
    out = io.StringIO()
    Lines(Console(file=out), "TEMPO", 100, Path("log")).round(41, ROUND)
    assert out.getvalue().splitlines()[1:] == [
        "TEMPO: goes on after round 40",
        "TEMPO: round 41 of 100, accuracy D_L 0.50  AUROC 0.88  reward D_U 0.25",
    ]


def test_an_alarm_is_told_when_it_is_raised() -> None:
    raised = Raised()
    on, off = {"tempo/alarm/auroc": 1.0, "tempo/alarm/gap": 0.0}, {"tempo/alarm/auroc": 0.0}
    told = [raised.by(data) for data in (off, on, on, off, on, {})]
    alarm = ["alarm auroc: the critic hardly tells right from wrong"]
    assert told == [[], alarm, [], [], alarm, []]
    out = io.StringIO()
    lines = Lines(Console(file=out), "TEMPO", 100, Path("log"))
    lines.round(1, on)
    assert "TEMPO: round 1: alarm auroc: the critic hardly tells right from wrong\n" in out.getvalue()


def test_a_terminal_gets_a_bar() -> None:
    out = io.StringIO()
    terminal = Console(file=out, force_terminal=True, width=200)
    bar = display(terminal, "TEMPO", 3, Path("log"))
    assert isinstance(bar, Bar)
    bar.round(2, ROUND | {"tempo/alarm/gap": 1.0})
    bar.finishing()
    bar.end(done=True)
    assert "TEMPO, round 2: alarm gap: the critic is too optimistic" in out.getvalue()
    assert "2/3" in out.getvalue() and "rounds done, finishing" in out.getvalue()
    assert isinstance(display(Console(file=io.StringIO()), "TEMPO", 3, Path("log")), Lines)


def test_news_of_a_round_without_labels() -> None:
    assert news({"tempo/unlabeled/reward_mean": 0.5}) == "reward D_U 0.50"
    assert news({}) == ""
