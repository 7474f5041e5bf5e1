# SPDX-License-Identifier: Apache-2.0
"""What a report says, in numbers: over one run or several, those that differ in their seeds only in one group.

All shares (accuracies, pass@k, ...) are fractions in [0, 1].
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from tempo_verl.algo.calibration import Reliability
from tempo_verl.report.alarms import Alarms
from tempo_verl.report.groups import Difference
from tempo_verl.report.measures import measure_order, set_order

ORACLE_STAMP = "ORACLE: trained on the answers of D_U, an upper bound and no test-time training"


@dataclass(frozen=True)
class Measured:
    """A number of a group: of its one run, with the 95 % interval over questions where samples were saved; or the mean
    over its runs, with their sample standard deviation."""

    value: float
    low: float | None = None
    high: float | None = None
    std: float | None = None
    runs: int = 1


@dataclass(frozen=True)
class Curve:
    """One quantity over rounds: each run of a group, and the group in the rounds that all of them have."""

    runs: list[dict[int, float]]
    steps: list[int]
    values: list[Measured]


@dataclass(frozen=True)
class Scores:
    """One measure on one set, in the first and the last round in which all runs of the group were validated.

    Attributes:
        rounds: these two, the last None if there is but one.
        start, last: None where there is no such round.
        change: last minus start, within each run; an average's is paired by question, over ``questions`` of them.
        best: at the round that is best by ``SELECTED_BY``, chosen for each run; None where a run has no such round.
    """

    rounds: tuple[int | None, int | None]
    start: Measured | None
    last: Measured | None
    change: Measured | None
    questions: int
    best: Measured | None

    @property
    def verdict(self) -> str | None:
        """ "improved", "got worse" or "no clear change"; None where no interval could be computed."""
        if self.change is None or self.change.low is None or self.change.high is None:
            return None
        if self.change.low > 0:
            return "improved"
        return "got worse" if self.change.high < 0 else "no clear change"


@dataclass(frozen=True)
class EqualCost:
    """Votes of the starting policy on D_U beside those of the trained one.

    Attributes:
        equal: samples a question that each run drew in all, which is what its training cost.
        samples: samples a question, before and after.
        before, after: measure, see ``evaluation.equal_cost.compare`` -> number.
        difference: ``average``, ``majority``, ``weighted`` -> after minus before, all samples of each.
        changed: ``majority``, ``weighted`` -> share of the questions that get another answer.
        questions: how many.
    """

    equal: int
    samples: tuple[int, int]
    before: dict[str, Measured]
    after: dict[str, Measured]
    difference: dict[str, Measured]
    changed: dict[str, Measured]
    questions: int


@dataclass(frozen=True)
class Trust:
    """The probabilities of answers to D_U against how often these are right.

    Attributes:
        questions: judged ones, over all runs.
        calibrated: whether they are fitted on labelled questions in all runs.
        measures: what ``calibration_metrics`` has of them.
        curve: of all runs together.
    """

    questions: int
    calibrated: bool
    measures: dict[str, Measured]
    curve: Reliability


@dataclass(frozen=True)
class Times:
    """A part of a round: each run's median of a round, and its sum over all rounds."""

    median: Measured
    total: Measured


@dataclass(frozen=True)
class Member:
    """One run of a group. ``seeds`` are those that are not the same in all runs compared."""

    name: str
    seeds: dict[str, Any]
    best_round: int | None
    alarms: Alarms


@dataclass(frozen=True)
class GroupResult:
    """What was measured of one group. Undefined quantities are absent.

    Attributes:
        scores: set -> measure -> scores.
        calibration: "first", "middle", "last" -> name -> what each of these rounds measured on its fresh labelled
            rollouts, mean over the rounds.
        rounds: which rounds these are, of each run.
        reliability: the diagrams of the same rounds, rollouts pooled over rounds and runs.
        seconds: part of a round -> times. Parts can contain one another.
        phases: phase of the run -> seconds it took.
        curves: metric, or ``<set>/<measure>`` -> over rounds; those of a stage 0 begin with ``stage0/``.
        equal_cost: None where a run has no answers of the policy that it started with, or runs have different numbers.
        trust: None where no run's answers to D_U could be judged.
    """

    name: str
    method: str | None
    oracle: bool
    members: list[Member]
    scores: dict[str, dict[str, Scores]]
    calibration: dict[str, dict[str, Measured]]
    rounds: dict[str, list[list[int]]]
    reliability: dict[str, Reliability]
    seconds: dict[str, Times]
    phases: dict[str, Measured]
    curves: dict[str, Curve]
    equal_cost: EqualCost | None
    trust: Trust | None


@dataclass(frozen=True)
class Paired:
    """A group minus the first group over runs with the same seeds, in the last round in which both were validated."""

    group: str
    set: str
    measure: str
    rounds: list[int]
    difference: Measured


@dataclass(frozen=True)
class Results:
    """The numbers behind a report."""

    groups: list[GroupResult]
    differences: list[Difference]
    paired: list[Paired]
    notes: list[str]
    missing: list[str]  # what the run folders lack
    worth: list[str]  # of a single run: whether training was worth it against sampling more, in words
    plots: list[str] = field(default_factory=list)

    @property
    def single(self) -> bool:
        """Whether this is about one run."""
        return len(self.groups) == 1 and len(self.groups[0].members) == 1

    @property
    def title(self) -> str:
        if self.single:
            return self.groups[0].members[0].name
        groups = len(self.groups)
        return f"{sum(len(group.members) for group in self.groups)} runs in {groups} group{'s' * (groups > 1)}"

    @property
    def stamp(self) -> str | None:
        """What has to stand on every page, table and picture that shows a run that is no test-time training."""
        return ORACLE_STAMP if any(group.oracle for group in self.groups) else None

    @property
    def measures(self) -> dict[str, list[str]]:
        """Set -> the measures that any group has, in the order in which to show them."""
        found: dict[str, list[str]] = defaultdict(list)
        for group in self.groups:
            for name, scores in group.scores.items():
                found[name] += [measure for measure in scores if measure not in found[name]]
        return {name: sorted(found[name], key=measure_order) for name in sorted(found, key=set_order)}
