# SPDX-License-Identifier: Apache-2.0
"""Computes the numbers of a report from what the run folders hold."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from itertools import chain
from operator import getitem
from pathlib import Path

import numpy as np

from tempo_verl.algo.calibration import Reliability, calibration_metrics, reliability
from tempo_verl.algo.statistics import Estimate
from tempo_verl.errors import UserError
from tempo_verl.evaluation.equal_cost import told
from tempo_verl.report.alarms import find_alarms
from tempo_verl.report.data import RunData, read_run, windows
from tempo_verl.report.groups import Group, config_diff, group_runs, same_seeds, seeds
from tempo_verl.report.measures import (
    SELECTED_BY,
    Validated,
    best_round,
    change,
    is_average,
    set_label,
    set_order,
    sources,
    validated,
)
from tempo_verl.report.results import (
    Curve,
    EqualCost,
    GroupResult,
    Measured,
    Member,
    Paired,
    Results,
    Scores,
    Times,
    Trust,
)
from tempo_verl.report.style import BINS

CALIBRATION = ("auroc", "gap", "brier", "ece")
CURVES = (
    "labeled/accuracy",
    *(f"labeled/{name}" for name in CALIBRATION),
    "oracle/accuracy",
    "oracle/auroc",
    "unlabeled/distinct_answers",
    "unlabeled/entropy",
    "unlabeled/response_length",
    "unlabeled/reward_mean",
)


def read_runs(folders: Sequence[Path]) -> list[RunData]:
    """Read one run, or several to compare.

    Raises:
        UserError: a folder given twice, one that is no run or has broken files; of several, one without metrics of its
            training, or runs of different tasks.
    """
    first: tuple[Path, set[str]] | None = None
    runs: dict[Path, RunData] = {}
    for folder in folders:
        if (resolved := folder.resolve()) in runs:
            raise UserError(f"{folder} is given twice; name each run folder once")
        run = runs[resolved] = read_run(folder)
        if len(folders) > 1 and "tempo" not in run.metrics:
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


def summarise(runs: Sequence[RunData]) -> Results:
    """All numbers of the report, figures not yet drawn."""
    several = len(runs) > 1
    notes: list[str] = []
    groups = group_runs(runs, notes if several else [])
    of_runs = {id(run): validated(run) for run in runs}
    values = defaultdict(set)
    for key, value in (seed for run in runs for seed in seeds(run.settings)):
        values[key].add(value)
    vary = {key for key, found in values.items() if len(found) > 1}
    missing: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        for note in run.notes:
            missing[note].append(run.name)
    return Results(
        [_group_result(group, [of_runs[id(run)] for run in group.runs], vary) for group in groups],
        config_diff(groups),
        [paired for group in groups[1:] for paired in _paired(groups[0], group, of_runs)],
        notes + what_to_know(groups, of_runs),
        [f"{', '.join(names)}: {note}" if several else note for note, names in missing.items()],
        told(runs[0].compared) if not several and runs[0].compared else [],
    )


def what_to_know(groups: Sequence[Group], of_runs: Mapping[int, Validated]) -> list[str]:
    """What a reader of the numbers must know."""
    notes = []
    runs = [run for group in groups for run in group.runs]
    for group in groups:
        ends = sorted({max(run.metrics["tempo"]) for run in group.runs if "tempo" in run.metrics})
        if len(ends) > 1:
            notes.append(
                f"{group.name}: its runs end at different rounds ({', '.join(map(str, ends))}); curves and changes are "
                "over those all have."
            )
        for name in sorted({name for run in group.runs for name in of_runs[id(run)].scores}, key=set_order):
            rounds = [set(found) for run in group.runs if (found := of_runs[id(run)].scores.get(name))]
            if max(map(len, rounds)) > 1 and len(set.intersection(*rounds)) < 2:
                notes.append(f"{group.name}: {set_label(name)} has no second round that was validated in all its runs.")
        if len({seeds(run.settings) for run in group.runs}) < len(group.runs):
            notes.append(f"{group.name}: some of its runs have the same seeds, so the spread is not that over seeds.")
    names = sorted({name for of in of_runs.values() for name in of.scores}, key=set_order)
    for run in runs if len(runs) == 1 else ():
        for name, rounds in of_runs[id(run)].questions.items():
            early, late = (set(rounds[which(rounds)]) for which in (min, max))
            if early != late:
                counts = f"{len(early)} questions before, {len(late)} after"
                notes.append(f"{set_label(name)}: {counts}; the change of the average is over those in both.")
    if len(runs) > 1:
        for name in names:
            if any(name not in of.scores for of in of_runs.values()):
                notes.append(f"Validation set {set_label(name)} is missing in some runs.")
        if SELECTED_BY not in names:
            notes.append(f"No validation set is called {SELECTED_BY}: no best round is chosen.")
    versions = defaultdict(set)
    for run in runs:
        for package, version in run.section("versions").items():
            versions[package].add(str(version))
    differ = [f"{package} {' / '.join(sorted(found))}" for package, found in versions.items() if len(found) > 1]
    if differ:
        notes.append(f"The runs were made with different versions of {', '.join(differ)}.")
    return notes


# ------------------------------------------------------------------------------------------------- one group of runs


def over_runs(values: Sequence[Estimate | float]) -> Measured:
    """A group's number from that of each of its runs, at least one."""
    found = [value if isinstance(value, Estimate) else Estimate(value) for value in values]
    if len(found) == 1:
        return Measured(found[0].value, found[0].low, found[0].high)
    numbers = [estimate.value for estimate in found]
    return Measured(float(np.mean(numbers)), std=float(np.std(numbers, ddof=1)), runs=len(numbers))


def _group_result(group: Group, of_runs: Sequence[Validated], vary: set[str]) -> GroupResult:
    runs = group.runs
    best = [best_round(of.scores) for of in of_runs]
    curves = {}
    for prefix, phase in (("", "tempo"), ("stage0/", "stage0")):
        for metric in CURVES:
            name = f"tempo/{metric}"
            curves[prefix + name] = _curve([dict(zip(*run.series(phase, name), strict=True)) for run in runs])
        phase_of_runs = of_runs if phase == "tempo" else [validated(run, phase) for run in runs]
        for name, measure in _measured(phase_of_runs):
            curves[f"{prefix}{name}/{measure}"] = _curve([_series(of, name, measure) for of in phase_of_runs])
    by_set: dict[str, dict[str, Scores]] = defaultdict(dict)
    for name, measure in _measured(of_runs):
        by_set[name][measure] = _scores(of_runs, name, measure, best)
    rounds = _rounds(runs)
    return GroupResult(
        name=group.name,
        method=runs[0].method,
        oracle=group.oracle,
        members=[
            Member(run.name, {key: value for key, value in seeds(run.settings) if key in vary}, step, find_alarms(run))
            for run, step in zip(runs, best, strict=True)
        ],
        scores={name: by_set[name] for name in sorted(by_set, key=set_order)},
        calibration=_calibration(runs, rounds),
        rounds=rounds,
        reliability=_reliability(runs),
        seconds=_seconds(runs),
        phases=_phases(runs),
        curves={name: curve for name, curve in curves.items() if curve.runs},
        equal_cost=_equal_cost(runs),
        trust=_trust(runs),
    )


def _measured(of_runs: Iterable[Validated]) -> list[tuple[str, str]]:
    """Every set with every measure that a run has."""
    found = {(n, m): None for of in of_runs for n, steps in of.scores.items() for at in steps.values() for m in at}
    return list(found)


def _series(of: Validated, name: str, measure: str) -> dict[int, Estimate]:
    return {step: at[measure] for step, at in of.scores.get(name, {}).items() if measure in at}


def _curve(runs: Iterable[Mapping[int, Estimate | float]]) -> Curve:
    runs = [run for run in runs if run]
    steps = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    plain = [{step: over_runs([value]).value for step, value in run.items()} for run in runs]
    return Curve(plain, steps, [over_runs([run[step] for run in runs]) for step in steps])


def _scores(of_runs: Sequence[Validated], name: str, measure: str, best: Sequence[int | None]) -> Scores:
    chosen = [
        run[step]
        for run, step in zip([_series(of, name, measure) for of in of_runs], best, strict=True)
        if step is not None and step in run
    ]
    have = [of for of in of_runs if _series(of, name, measure)]
    series = [_series(of, name, measure) for of in have]
    steps = sorted(set.intersection(*map(set, series)))
    first, last = steps[0] if steps else None, steps[-1] if len(steps) > 1 else None
    changes = [] if last is None else [change((of, steps[0]), (of, last), name, measure) for of in have]
    paired = [one for one in changes if one is not None]
    return Scores(
        rounds=(first, last),
        start=None if first is None else over_runs([run[first] for run in series]),
        last=None if last is None else over_runs([run[last] for run in series]),
        change=over_runs(paired) if paired and len(paired) == len(have) else None,
        questions=paired[0].questions if len(paired) == 1 else 0,
        best=over_runs(chosen) if len(chosen) == len(have) else None,
    )


def _rounds(runs: Sequence[RunData]) -> dict[str, list[list[int]]]:
    """The calibrating rounds to look at: those whose rollouts were saved, else those in the log."""
    of_runs = []
    for run in runs:
        logged = {step for name in CALIBRATION for step in run.series("tempo", f"tempo/labeled/{name}")[0]}
        saved = {which: pool.rounds for which, pool in run.pools.items()}
        if found := saved or windows(sorted(logged)):
            of_runs.append(found)
    names = [which for which in ("first", "middle", "last") if of_runs and all(which in of for of in of_runs)]
    return {which: [of[which] for of in of_runs] for which in names}


def _calibration(runs: Sequence[RunData], rounds: Mapping[str, list[list[int]]]) -> dict[str, dict[str, Measured]]:
    """What was logged in these rounds: the mean over the rounds, then over the runs. One definition for every table."""
    calibrating = [run for run in runs if _rounds([run])]
    found: dict[str, dict[str, Measured]] = {}
    for which, of_runs in rounds.items():
        found[which] = {}
        for name in CALIBRATION:
            means = []
            for run, steps in zip(calibrating, of_runs, strict=True):
                logged = dict(zip(*run.series("tempo", f"tempo/labeled/{name}"), strict=True))
                if values := [logged[step] for step in steps if step in logged]:
                    means.append(float(np.mean(values)))
            if means:
                found[which][name] = over_runs(means)
    return found


def _reliability(runs: Sequence[RunData]) -> dict[str, Reliability]:
    """The pools that all runs have, over the runs."""
    names = [name for name in ("first", "middle", "last") if all(name in run.pools for run in runs)]
    of_runs = {name: [run.pools[name] for run in runs] for name in names}
    return {
        name: reliability(*(np.concatenate([getattr(pool, of) for pool in pools]) for of in ("value", "correct")), BINS)
        for name, pools in of_runs.items()
    }


def _equal_cost(runs: Sequence[RunData]) -> EqualCost | None:
    """Over the runs, whose numbers of samples have to be the same."""
    found = [run.compared for run in runs if run.compared is not None]
    numbers = {(of["equal"], of["before"]["samples"], of["after"]["samples"], of["questions"]) for of in found}
    if len(found) < len(runs) or len(numbers) != 1:
        return None
    ((equal, n_before, n_after, questions),) = numbers

    def over(*path: str) -> dict[str, Measured]:
        parts = [reduce(getitem, path, of) for of in found]
        shared = [name for name in parts[0] if all(name in part for part in parts)]
        estimates = {name: [Estimate(**part[name]) for part in parts] for name in shared}
        return {name: over_runs(of) for name, of in estimates.items()}

    return EqualCost(
        equal=equal,
        samples=(n_before, n_after),
        before=over("before", "measures"),
        after=over("after", "measures"),
        difference=over("difference"),
        changed={
            name: over_runs([of["changed"][name] / questions for of in found])
            for name in found[0]["changed"]
            if all(name in of["changed"] for of in found)
        },
        questions=questions,
    )


def _trust(runs: Sequence[RunData]) -> Trust | None:
    """Over the runs whose answers to D_U were judged."""
    found = [run.judged for run in runs if run.judged is not None]
    if not found:
        return None
    measured = [calibration_metrics(of.probability, of.right) for of in found]
    shared = [name for name in measured[0] if all(name in of for of in measured)]
    probability = list(chain.from_iterable(of.probability for of in found))
    right = list(chain.from_iterable(of.right for of in found))
    return Trust(
        questions=len(right),
        calibrated=all(of.calibrated for of in found),
        measures={name: over_runs([of[name] for of in measured]) for name in shared},
        curve=reliability(probability, right, BINS),
    )


def _seconds(runs: Sequence[RunData]) -> dict[str, Times]:
    """Every part of a round that was timed, those that took longest first."""

    def of(name: str, number: Callable[[list[float]], float]) -> Measured:
        return over_runs([float(number(values)) for run in runs if (values := run.series("tempo", name)[1])])

    names = {name for run in runs for row in run.metrics.get("tempo", {}).values() for name in row}
    parts = [name for name in names if re.fullmatch(r"timing_s/[^/]+", name)]
    times = {name.removeprefix("timing_s/"): Times(of(name, np.median), of(name, sum)) for name in parts}
    return dict(sorted(times.items(), key=lambda item: (-item[1].total.value, item[0])))


def _phases(runs: Sequence[RunData]) -> dict[str, Measured]:
    """Seconds of the phases in ``run.json``, which add up over the parts of a resumed run."""
    found = defaultdict(list)
    for run in runs:
        for phase, value in run.section("seconds").items():
            if isinstance(value, (int, float)):
                found[phase].append(value)
    return {phase: over_runs(values) for phase, values in found.items()}


# ------------------------------------------------------------------------------------------------ against the first


def _paired(first: Group, group: Group, of_runs: Mapping[int, Validated]) -> list[Paired]:
    """Differences to the first group, run by run with the same seeds, where those leave no doubt."""
    alike = [(a, b) for a in first.runs for b in group.runs if a.settings and same_seeds(a.settings, b.settings)]
    pairs = [(a, b) for a, b in alike if sum(a is c or b is d for c, d in alike) == 1]
    gains: dict[tuple[str, str], list[tuple[int, Estimate]]] = defaultdict(list)
    for reference, run in pairs:
        theirs, mine = of_runs[id(reference)], of_runs[id(run)]
        for name, measure in filter(lambda one: is_average(one[1]), _measured([mine])):
            both = set(_series(theirs, name, measure)) & set(_series(mine, name, measure))
            if both and (gain := change((theirs, max(both)), (mine, max(both)), name, measure)):
                gains[name, measure].append((max(both), gain))
    return [
        Paired(group.name, name, measure, sorted({step for step, _ in found}), over_runs([gain for _, gain in found]))
        for (name, measure), found in sorted(gains.items(), key=lambda item: set_order(item[0][0]))
    ]
