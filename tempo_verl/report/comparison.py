# SPDX-License-Identifier: Apache-2.0
"""The numbers of a report over several runs: means and standard deviations over the seeds of each group.

All shares are fractions in [0, 1].
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tempo_verl.algo.calibration import Reliability, calibration_metrics, reliability
from tempo_verl.errors import UserError
from tempo_verl.report.alarms import Alarms, find_alarms
from tempo_verl.report.data import POOLED_ROUNDS, RunData, read_run
from tempo_verl.report.groups import Difference, Group, config_diff, group_runs, same_seeds, seeds
from tempo_verl.report.results import ORACLE_STAMP, set_order
from tempo_verl.report.style import BINS
from tempo_verl.report.validation import (
    SELECTED_BY,
    SetScores,
    best_round,
    last_average,
    measure_order,
    set_scores,
    sources,
)

CURVES = (
    "tempo/labeled/accuracy",
    "tempo/labeled/auroc",
    "tempo/labeled/brier",
    "tempo/labeled/ece",
    "tempo/labeled/gap",
    "tempo/oracle/accuracy",
    "tempo/oracle/auroc",
    "tempo/unlabeled/distinct_answers",
    "tempo/unlabeled/entropy",
    "tempo/unlabeled/response_length",
    "tempo/unlabeled/reward_mean",
)
TIMES = {
    "gen": "generation",
    "e_step": "E-step",
    "m_step": "M-step",
    "testing": "validation",
    "step": "whole round",
}


@dataclass(frozen=True)
class Spread:
    """A mean over runs, and their sample standard deviation (None: one run)."""

    mean: float
    std: float | None
    runs: int


@dataclass(frozen=True)
class Curve:
    """One quantity over rounds: each run of a group, and the spread in the rounds that all of them have."""

    runs: list[dict[int, float]]
    steps: list[int]
    spread: list[Spread]


@dataclass(frozen=True)
class Scores:
    """One measure on one set, at the first and the last validation, and their difference within each run.

    ``best`` is at the round that is best by ``SELECTED_BY``, chosen for each run. None where a run has no such round.
    """

    start: Spread
    last: Spread | None
    change: Spread | None
    best: Spread | None


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
        auroc: "first" and "last": mean over the first and last calibrating rounds of each run.
        calibration: "first", "middle", "last": rounds pooled over the runs, as :func:`calibration_metrics` says.
        seconds: part of a round -> each run's median, over the runs; "total": sum of all rounds.
        reliability: "first", "middle", "last": the diagrams of the same rounds.
        curves: metric, or ``<set>/<measure>`` -> over rounds.
    """

    name: str
    method: str | None
    oracle: bool
    members: list[Member]
    scores: dict[str, dict[str, Scores]]
    auroc: dict[str, Spread]
    calibration: dict[str, dict[str, float]]
    reliability: dict[str, Reliability]
    seconds: dict[str, Spread]
    curves: dict[str, Curve]


@dataclass(frozen=True)
class Paired:
    """``avg@n`` of a group at the last round minus that of the first group, over runs with the same seeds."""

    group: str
    set: str
    measure: str
    difference: Spread


@dataclass(frozen=True)
class Comparison:
    """The numbers behind a report over several runs."""

    groups: list[GroupResult]
    differences: list[Difference]
    paired: list[Paired]
    notes: list[str]
    plots: list[str] = field(default_factory=list)

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


def read_runs(folders: Sequence[Path]) -> list[RunData]:
    """Read the runs to compare.

    Raises:
        UserError: a folder given twice, one that is no run, has no metrics or broken files, or runs of different tasks.
    """
    first: tuple[Path, set[str]] | None = None
    runs: dict[Path, RunData] = {}
    for folder in folders:
        if (resolved := folder.resolve()) in runs:
            raise UserError(f"{folder} is given twice; name each run folder once")
        run = runs[resolved] = read_run(folder)
        if "tempo" not in run.metrics:
            raise UserError(f"{folder} has no metrics of its training, so it cannot be compared; leave it out")
        if not (measured_on := sources(run)):
            continue
        first = first or (folder, measured_on)
        if not measured_on & first[1]:
            ours, theirs = (", ".join(sorted(names)) for names in (measured_on, first[1]))
            raise UserError(
                f"{folder} was validated on {ours}, {first[0]} on {theirs}: compare runs of one task, or give them a "
                "validation set in common"
            )
    names = [run.name for run in runs.values()]
    for path, run in runs.items():
        if names.count(path.name) > 1:
            run.name = f"{path.parent.name}/{path.name}"
    return list(runs.values())


def compare_runs(runs: Sequence[RunData]) -> Comparison:
    """All numbers of the report, figures not yet drawn."""
    notes: list[str] = []
    groups = group_runs(runs, notes)
    scores = {id(run): set_scores(run) for run in runs}
    notes += _what_to_know(groups, [scores[id(run)] for run in runs])
    of_runs: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        for note in run.notes:
            if not note.startswith(("run.json", "sets.json")):  # nothing here is read from them
                of_runs[note].append(run.name)
    notes += [f"{', '.join(names)}: {note}" for note, names in of_runs.items()]
    values = defaultdict(set)
    for key, value in (seed for run in runs for seed in seeds(run.settings)):
        values[key].add(value)
    vary = {key for key, found in values.items() if len(found) > 1}
    return Comparison(
        [_group_result(group, [scores[id(run)] for run in group.runs], vary) for group in groups],
        config_diff(groups),
        [paired for group in groups[1:] for paired in _paired(groups[0], group, scores)],
        notes,
    )


def _what_to_know(groups: Sequence[Group], scores: Sequence[SetScores]) -> list[str]:
    """What a reader of the comparison must know."""
    notes = []
    for group in groups:
        ends = sorted({max(run.metrics["tempo"]) for run in group.runs})
        if len(ends) > 1:
            numbers = ", ".join(map(str, ends))
            notes.append(f"{group.name}: its runs end at different rounds ({numbers}); curves are over those all have.")
        if len({seeds(run.settings) for run in group.runs}) < len(group.runs):
            notes.append(f"{group.name}: some of its runs have the same seeds, so the spread is not that over seeds.")
    for name in sorted(set().union(*scores), key=set_order):
        if any(name not in of for of in scores):
            notes.append(f"Validation set {name} is missing in some runs.")
    if not any(SELECTED_BY in of for of in scores):
        notes.append(f"No validation set is called {SELECTED_BY}: no best round is chosen.")
    versions = defaultdict(set)
    for run in (run for group in groups for run in group.runs):
        for package, version in (run.info.get("versions") or {}).items():
            versions[package].add(str(version))
    differ = [f"{package} {' / '.join(sorted(found))}" for package, found in versions.items() if len(found) > 1]
    if differ:
        notes.append(f"The runs were made with different versions of {', '.join(differ)}.")
    return notes


# ------------------------------------------------------------------------------------------------- one group of runs


def _group_result(group: Group, scores: Sequence[SetScores], vary: set[str]) -> GroupResult:
    runs = group.runs
    best = [best_round(of) for of in scores]
    pools = _pooled(runs)
    curves = {name: _curve([dict(zip(*run.series("tempo", name), strict=True)) for run in runs]) for name in CURVES}
    by_set: dict[str, dict[str, Scores]] = defaultdict(dict)
    for name, measure in {(n, m): None for of in scores for n in of for at in of[n].values() for m in at}:
        series = [{step: at[measure] for step, at in of.get(name, {}).items() if measure in at} for of in scores]
        curves[f"{name}/{measure}"] = _curve(series)
        by_set[name][measure] = _scores(series, best)
    return GroupResult(
        name=group.name,
        method=runs[0].method,
        oracle=group.oracle,
        members=[
            Member(run.name, {key: value for key, value in seeds(run.settings) if key in vary}, step, find_alarms(run))
            for run, step in zip(runs, best, strict=True)
        ],
        scores=dict(by_set),
        auroc=_auroc(runs),
        calibration={which: calibration_metrics(*pool) for which, pool in pools.items()},
        reliability={which: reliability(*pool, BINS) for which, pool in pools.items()},
        seconds=_seconds(runs),
        curves={name: curve for name, curve in curves.items() if curve.runs},
    )


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of at least one value."""
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))


def _curve(runs: Iterable[dict[int, float]]) -> Curve:
    runs = [run for run in runs if run]
    steps = sorted(set.intersection(*map(set, runs))) if runs else []
    return Curve(runs, steps, [spread([run[step] for run in runs]) for step in steps])


def _scores(series: Sequence[Mapping[int, float]], best: Sequence[int | None]) -> Scores:
    measured = [run for run in series if run]
    start, last = ([run[which(run)] for run in measured] for which in (min, max))
    chosen = [run[step] for run, step in zip(series, best, strict=True) if step is not None and step in run]
    twice = all(len(run) > 1 for run in measured)
    return Scores(
        start=spread(start),
        last=spread(last) if twice else None,
        change=spread([late - early for early, late in zip(start, last, strict=True)]) if twice else None,
        best=spread(chosen) if len(chosen) == len(measured) else None,
    )


def _auroc(runs: Sequence[RunData]) -> dict[str, Spread]:
    series = [values for run in runs if (values := run.series("tempo", "tempo/labeled/auroc")[1])]
    if not series:
        return {}
    ends = [(values, min(POOLED_ROUNDS, max(1, len(values) // 2))) for values in series]
    return {
        "first": spread([float(np.mean(values[:n])) for values, n in ends]),
        "last": spread([float(np.mean(values[-n:])) for values, n in ends]),
    }


def _pooled(runs: Sequence[RunData]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Values and correctness of the pools that all runs have, over the runs."""
    names = [name for name in ("first", "middle", "last") if all(name in run.pools for run in runs)]
    of_runs = {name: [run.pools[name] for run in runs] for name in names}
    return {
        name: (np.concatenate([pool.value for pool in pools]), np.concatenate([pool.correct for pool in pools]))
        for name, pools in of_runs.items()
    }


def _seconds(runs: Sequence[RunData]) -> dict[str, Spread]:
    def over_runs(name: str, of: Callable[[list[float]], float]) -> dict[int, float]:
        return {number: of(values) for number, run in enumerate(runs) if (values := run.series("tempo", name)[1])}

    parts = {part: over_runs(f"timing_s/{part}", lambda values: float(np.median(values))) for part in TIMES}
    parts["total"] = over_runs("timing_s/step", sum)
    return {part: spread(list(values.values())) for part, values in parts.items() if values}


# ------------------------------------------------------------------------------------------------ against the first


def _paired(first: Group, group: Group, scores: Mapping[int, SetScores]) -> list[Paired]:
    """Differences to the first group, run by run with the same seeds, where those leave no doubt."""
    alike = [(a, b) for a in first.runs for b in group.runs if a.settings and same_seeds(a.settings, b.settings)]
    pairs = [(a, b) for a, b in alike if sum(a is c or b is d for c, d in alike) == 1]
    gains: dict[tuple[str, str], list[float]] = defaultdict(list)
    for reference, run in pairs:
        theirs = last_average(scores[id(reference)])
        for name, (measure, value) in last_average(scores[id(run)]).items():
            if theirs.get(name, ("", 0.0))[0] == measure:
                gains[name, measure].append(value - theirs[name][1])
    return [
        Paired(group.name, name, measure, spread(values))
        for (name, measure), values in sorted(gains.items(), key=lambda item: set_order(item[0][0]))
    ]
