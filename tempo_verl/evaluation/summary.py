# SPDX-License-Identifier: Apache-2.0
"""What samples measure: means over questions with bootstrap intervals, for each data source and overall."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from tempo_verl.algo.calibration import calibration_metrics
from tempo_verl.algo.evaluation import distinct_n, question_measures
from tempo_verl.algo.statistics import QuestionKey, differences, estimates, question_keys
from tempo_verl.evaluation.samples import Sample

OVERALL = "overall"
Measures = dict[str, float]  # of one question

# Measures that are no shares of 1.
NUMBERS = ("distinct_answers", "answer_entropy", "response_tokens")


def by_question(samples: Iterable[Sample]) -> list[list[Sample]]:
    """The samples of each question, questions by index."""
    groups: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.index].append(sample)
    return [groups[index] for index in sorted(groups)]


def values_of(samples: Sequence[Sample]) -> list[float] | None:
    """Their critic values; None unless all have one."""
    values = [sample.value for sample in samples if sample.value is not None]
    return values if len(values) == len(samples) else None


def measure(samples: Sequence[Sample], ks: Sequence[int]) -> Measures:
    """The measures of one question's n samples: those of ``question_measures``, then those of the text.

    ``distinct_2`` is the share of different pairs of words, absent where no response has two.
    """
    n = len(samples)
    correct = [bool(sample.correct) for sample in samples]
    known = all(sample.correct is not None for sample in samples)
    measures = question_measures([s.answer for s in samples], correct if known else None, values_of(samples), ks)
    names = {"avg": f"avg@{n}", "best_of_n": f"best_of@{n}"}
    measures = {names.get(name, name): value for name, value in measures.items()}
    pairs = distinct_n(sample.response for sample in samples)
    return (
        measures
        | ({} if pairs is None else {"distinct_2": pairs})
        | {
            "formatted": float(np.mean([sample.formatted for sample in samples])),
            "response_tokens": float(np.mean([sample.tokens for sample in samples])),
            "truncated": float(np.mean([sample.truncated for sample in samples])),
        }
    )


def summarise(samples: Sequence[Sample], ks: Sequence[int]) -> dict[str, Any]:
    """The results of an evaluation.

    Args:
        samples: n of every question.
        ks: the k of pass@k and maj@k, at most n.

    Returns:
        ``overall`` and ``sources`` (by data source), each with ``questions``, ``labeled`` (of them with a ground
        truth), ``samples``, ``verifier_failures``, ``measures`` (name -> ``value``, 95 % interval ``low`` to ``high``,
        and ``questions`` it is defined for) and, with a critic and verdicts, ``calibration``, see
        ``algo.calibration.calibration_metrics``.
    """
    return _by_set(by_question(samples), lambda groups: _summarise(groups, ks))


def paired_results(mine: Sequence[Sample], theirs: Sequence[Sample], ks: Sequence[int]) -> dict[str, Any]:
    """Paired differences, mine minus theirs, over the questions in both; the same sets and measures as the results.

    Questions are matched by their text, those with the same text in their order.
    """
    other = {key: measure(group, ks) for key, group in _keyed(theirs).items()}
    shared = {group[0].index: other[key] for key, group in _keyed(mine).items() if key in other}
    groups = [group for group in by_question(mine) if group[0].index in shared]

    def compared(groups: list[list[Sample]]) -> dict[str, Any]:
        pairs = ((shared[group[0].index], measure(group, ks)) for group in groups)
        return {"questions": len(groups), "measures": {name: asdict(of) for name, of in differences(pairs).items()}}

    return _by_set(groups, compared)


def table_rows(results: Mapping[str, Any], comparison: Mapping[str, Any] | None = None) -> list[tuple[str, ...]]:
    """(set, measure, value, 95 % interval[, difference]) as text, by set, a single one once."""
    sets = [*results["sources"].items(), (OVERALL, results[OVERALL])]
    rows: list[tuple[str, ...]] = []
    for name, one in sets[:1] if len(results["sources"]) == 1 else sets:
        against = None if comparison is None else {**comparison["sources"], OVERALL: comparison[OVERALL]}.get(name)
        for measured, estimate in one["measures"].items():
            row = [name, measured, _number(measured, estimate["value"]), _interval(measured, estimate)]
            if comparison is not None:
                difference = None if against is None else against["measures"].get(measured)
                row.append("–" if difference is None else _difference(measured, difference))
            rows.append(tuple(row))
    return rows


def notes(results: Mapping[str, Any]) -> list[str]:
    """What a reader of the table has to know, a line each."""
    overall = results[OVERALL]
    without, said = overall["questions"] - overall["labeled"], []
    if without == overall["questions"]:
        said.append("no question has a ground truth: nothing is said about correctness.")
    elif without:
        said.append(f"{without} of {overall['questions']} questions have no ground truth; accuracies leave them out.")
    if failures := overall["verifier_failures"]:
        said.append(
            f"the verifier gave no verdict on {failures} of {overall['samples']} samples, which count as wrong."
        )
    return said


def _by_set(groups: list[list[Sample]], of: Callable[[list[list[Sample]]], dict[str, Any]]) -> dict[str, Any]:
    sources: dict[str, list[list[Sample]]] = defaultdict(list)
    for group in groups:
        sources[group[0].data_source].append(group)
    return {OVERALL: of(groups), "sources": {name: of(sources[name]) for name in sorted(sources)}}


def _summarise(groups: list[list[Sample]], ks: Sequence[int]) -> dict[str, Any]:
    measured = estimates(measure(group, ks) for group in groups)
    samples = [sample for group in groups for sample in group]
    judged = [sample for sample in samples if sample.correct is not None]
    summary: dict[str, Any] = {
        "questions": len(groups),
        "labeled": sum(group[0].correct is not None for group in groups),
        "samples": len(samples),
        "verifier_failures": sum(sample.error is not None for sample in samples),
        "measures": {name: asdict(estimate) for name, estimate in measured.items()},
    }
    values = values_of(judged)
    if judged and values is not None:
        summary["calibration"] = calibration_metrics(values, [float(bool(sample.correct)) for sample in judged])
    return summary


def _keyed(samples: Sequence[Sample]) -> dict[QuestionKey, list[Sample]]:
    groups = by_question(samples)
    return dict(zip(question_keys(group[0].hash for group in groups), groups, strict=True))


def _number(name: str, value: float) -> str:
    return f"{value:.2f}" if name in NUMBERS else f"{100 * value:.1f} %"


def _interval(name: str, estimate: Mapping[str, Any]) -> str:
    if estimate["low"] is None:
        return "–"
    return f"{_number(name, estimate['low'])} to {_number(name, estimate['high'])}"


def _difference(name: str, estimate: Mapping[str, Any]) -> str:
    factor, digits, unit = (1, 2, "") if name in NUMBERS else (100, 1, " points")
    value, low, high = (
        None if estimate[of] is None else f"{factor * estimate[of]:+.{digits}f}" for of in ("value", "low", "high")
    )
    return f"{value}{unit}" if low is None else f"{value}{unit} [{low}, {high}]"
