# SPDX-License-Identifier: Apache-2.0
"""How sure a mean over questions is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 1000
BOOTSTRAP_SEED = 0
QuestionKey = tuple[str, int]  # its text (or a hash of it), how many questions before it have the same


@dataclass(frozen=True)
class Estimate:
    """A mean over questions with its bootstrap 95 % interval; None where one question leaves nothing to resample."""

    value: float
    low: float | None = None
    high: float | None = None
    questions: int = 1


def bootstrap(values: Iterable[float]) -> Estimate:
    """Mean of one value per question (at least one) and its percentile bootstrap 95 % interval (Efron 1979).

    ``RESAMPLES`` resamples of the sorted values with a fixed seed: the same values, in whatever order, always give the
    same mean and interval.
    """
    array = np.sort(np.asarray(list(values), dtype=float))
    mean = float(array.mean())
    if len(array) < 2:
        return Estimate(mean)
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    found = stats.bootstrap((array,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=rng)
    low, high = found.confidence_interval
    return Estimate(mean, float(low), float(high), len(array))


def paired_difference(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """Mean of ``after - before`` over the same questions, in the same order, with its interval.

    Raises:
        ValueError: lengths that differ.
    """
    return bootstrap(late - early for early, late in zip(before, after, strict=True))


def estimates(
    questions: Iterable[Mapping[str, float]], interval: Callable[[str], bool] = lambda name: True
) -> dict[str, Estimate]:
    """The mean of every measure, over the questions for which it is defined.

    Args:
        questions: the measures of each, see ``algo.evaluation.question_measures``.
        interval: whether a measure, by its name, is worth the time of an interval.
    """
    columns: dict[str, list[float]] = defaultdict(list)
    for measures in questions:
        for name, value in measures.items():
            columns[name].append(value)
    return {
        name: bootstrap(values) if interval(name) else Estimate(float(np.mean(values)), questions=len(values))
        for name, values in columns.items()
    }


def differences(pairs: Iterable[tuple[Mapping[str, float], Mapping[str, float]]]) -> dict[str, Estimate]:
    """The mean paired difference of every measure, over the questions for which both have it.

    Args:
        pairs: the measures of each question, before and after.
    """
    return estimates({name: late[name] - early[name] for name in late if name in early} for early, late in pairs)


def question_keys(texts: Iterable[str]) -> list[QuestionKey]:
    """What tells the questions of a set apart, and finds the same ones in another: their texts, in their order."""
    seen: Counter[str] = Counter()
    keys = []
    for text in texts:
        keys.append((text, seen[text]))
        seen[text] += 1
    return keys
