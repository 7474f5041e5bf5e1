# SPDX-License-Identifier: Apache-2.0
"""Numbers and findings of a report in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tempo_verl.report.groups import ORACLE_MARK
from tempo_verl.report.measures import is_average, set_label
from tempo_verl.report.methods import about
from tempo_verl.report.results import Measured, Results

NONE = "–"
UNDECIDED = "no interval over questions"
MONITORING = "Scores on D_U and every curve marked “oracle monitoring” use the answers of D_U, only to watch the run"
FIREWALL = "no answer of D_U reaches training"
NO_VALIDATION = (
    "Nothing was validated, so this report cannot say whether the run helped: give data.val_files, "
    "trainer.val_before_train=true and trainer.test_freq."
)


@dataclass(frozen=True)
class Unit:
    """How to write a number: ``factor`` times it, so many ``digits``, a ``name`` behind it, a sign before it."""

    factor: float = 1
    digits: int = 2
    name: str = ""
    signed: bool = False

    def number(self, value: float) -> str:
        """``+2.5``, ``−2.5`` with a real minus, which no browser takes for a hyphen to break a line at."""
        return f"{self.factor * value:{'+' if self.signed else ''}.{self.digits}f}".replace("-", "−")


SHARE, POINTS = Unit(100, 1, " %"), Unit(100, 1, " points", signed=True)
PLAIN, CHANGE = Unit(), Unit(signed=True)


def text(measured: Measured | None, unit: Unit = PLAIN) -> str:
    """``31.2 %``, ``31.2 % [12.5, 50.0]`` with an interval over questions, ``30.0 ± 10.0 %`` over several runs."""
    if measured is None:
        return NONE
    value = unit.number(measured.value)
    if measured.std is not None:
        return f"{value} ± {unit.number(measured.std).lstrip('+')}{unit.name}"
    if measured.low is None or measured.high is None:
        return value + unit.name
    return f"{value}{unit.name} [{unit.number(measured.low)}, {unit.number(measured.high)}]"


def duration(seconds: float) -> str:
    """``0.35 s``, ``12.3 s``, ``4 min 05 s``, ``2 h 07 min``."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def short(measured: Measured | None, unit: Unit) -> str:
    """Without an interval over questions, to save room, and without the unit."""
    if measured is None:
        return NONE
    deviation = "" if measured.std is None else f" ± {unit.number(measured.std)}"
    return unit.number(measured.value) + deviation


def time(measured: Measured) -> str:
    return duration(measured.value) + ("" if measured.std is None else f" ± {duration(measured.std)}")


def rounds_of(of_runs: Sequence[Sequence[int]]) -> str:
    """``(1 to 3)``, the rounds that all runs look at; nothing where they differ."""
    if any(rounds != of_runs[0] for rounds in of_runs):
        return ""
    first, last = of_runs[0][0], of_runs[0][-1]
    return f"({first})" if first == last else f"({first} to {last})"


def average_of(measures: Iterable[str]) -> str | None:
    return next(filter(is_average, measures), None)


def verdicts(results: Results) -> list[tuple[str, str | None, str]]:
    """Of one run, for each set: its label, the verdict of the paired interval, and the numbers behind it."""
    found = []
    for name, measures in results.groups[0].scores.items() if results.single else ():
        average = average_of(measures)
        if average is None or (scores := measures[average]).last is None or scores.start is None:
            continue
        moved = f"{average} {short(scores.start, SHARE)} % → {short(scores.last, SHARE)} %"
        if scores.verdict is None or not (change := scores.change):
            found.append((set_label(name), None, moved))
            continue
        interval = f"95 % interval {POINTS.number(change.low or 0)} to {POINTS.number(change.high or 0)}"
        numbers = f"{POINTS.number(change.value)} points, {interval}, {scores.questions} questions"
        found.append((set_label(name), scores.verdict, f"{moved} ({numbers})"))
    return found


def verdict_sentence(results: Results) -> str:
    """What is known of each set in one line; says so where nothing can be compared. Empty for several runs."""
    if not results.single:
        return ""
    if found := verdicts(results):
        return "; ".join(f"{label}: {verdict or UNDECIDED}, {numbers}" for label, verdict, numbers in found) + "."
    if results.measures:
        return "Only one round was validated, so before and after cannot be compared."
    return NO_VALIDATION


def trust_sentence(results: Results) -> str:
    """Of one run, whether the probabilities of its answers to D_U say how often these are right; empty if unknown."""
    if not results.single or (of := results.groups[0].trust) is None:
        return ""
    told, right = (f"{short(of.measures[name], SHARE)} %" for name in ("value_mean", "accuracy"))
    return f"Answers to D_U: mean probability {told}, right {right} of {of.questions} (oracle monitoring)."


def alarm_lines(results: Results) -> list[tuple[str, bool]]:
    """What was raised in each run, in words, and whether it was."""
    return [
        (sentence if results.single else f"{member.name}: {sentence}", number < len(member.alarms.raised))
        for group in results.groups
        for member in group.members
        for number, sentence in enumerate(member.alarms.sentences)
    ]


def oracle_note(results: Results) -> str:
    """What the answers of D_U were used for; no promise for a method that nobody here knows."""
    used = [about(group.method).uses_answers_of_d_u for group in results.groups]
    if any(used):
        if results.single:
            return "This run was trained on the answers of D_U, so its scores on D_U are an upper bound."
        return f"{MONITORING}; groups marked {ORACLE_MARK} were trained on them."
    return f"{MONITORING}: {FIREWALL}." if all(one is False for one in used) else f"{MONITORING}."
