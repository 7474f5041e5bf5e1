# SPDX-License-Identifier: Apache-2.0
"""Measures over n sampled responses of one question.

An answer is any hashable value, ``None`` where a response gives none; it is never counted and never wins.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import numpy.typing as npt

# maj@k looks at every choice of k samples up to this many, and else at so many drawn at random.
EVERY_CHOICE = 20_000
DRAWN_CHOICES = 4_000


def pass_at_k(n: int, c: int | Sequence[int] | npt.NDArray[np.integer], k: int) -> float | npt.NDArray[np.float64]:
    """Unbiased estimate of P(at least one of k samples is right): 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, eq. 1).

    Args:
        n: samples drawn per question.
        c: how many of them are right; an int, or an int array of any shape (one entry per question).
        k: samples allowed, k <= n.

    Returns:
        A float for an int ``c``, else a float64 array of the shape of ``c``.

    Raises:
        ValueError: negative numbers, fractional c, k > n, or c > n.
    """
    given = np.asarray(c)
    right = given.astype(np.int64)
    if (right != given).any():
        raise ValueError("pass@k needs a whole number of right samples c")
    low, high = (int(right.min()), int(right.max())) if right.size else (0, 0)
    if min(n, k, low) < 0:
        raise ValueError(f"pass@k needs n, c, k >= 0, got n={n}, c={low}, k={k}")
    if k > n:
        raise ValueError(f"pass@k needs k <= n, got n={n}, k={k}")
    if high > n:
        raise ValueError(f"pass@k needs c <= n, got n={n}, c={high}")
    # C(n-c, k) / C(n, k) = prod_{j<k} (n-c-j) / (n-j): factors in [0, 1], so nothing overflows. With fewer than k
    # wrong samples one factor is 0.
    j = np.arange(k)
    all_wrong = np.prod(np.clip(n - right[..., None] - j, 0, None) / (n - j), axis=-1)
    result = 1.0 - all_wrong
    return float(result) if right.ndim == 0 else result


def distinct_answers(answers: Sequence[Hashable | None]) -> int:
    """How many different answers there are; None is no answer and does not count."""
    return len({answer for answer in answers if answer is not None})


def answer_entropy(answers: Sequence[Hashable | None]) -> float | None:
    """Entropy of the given answers in nats: 0 if all agree, ln n if all differ; undefined (None) if there is none."""
    counts = np.array(list(Counter(answer for answer in answers if answer is not None).values()), dtype=float)
    if not len(counts):
        return None
    share = counts / counts.sum()
    return max(0.0, float(-(share * np.log(share)).sum()))  # no -0.0


def distinct_n(texts: Iterable[str], n: int = 2) -> float | None:
    """Different n-grams of words per n-gram, over all texts together (distinct-n of Li et al. 2016).

    Args:
        texts: the responses to one question; words are what white space separates.
        n: length of the n-grams.

    Returns:
        In (0, 1]; undefined (None) where no text has n words.
    """
    words = (text.split() for text in texts)
    grams = [tuple(text[start : start + n]) for text in words for start in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


@dataclass(frozen=True)
class Votes:
    """What one answer got: how many samples gave it, and the sum of their weights."""

    count: int
    weight: float


def tally(answers: Sequence[Hashable | None], weights: Sequence[float] | None = None) -> dict[Hashable, Votes]:
    """Votes of each answer, the winner first: most weight, then most samples, then the smallest text.

    Args:
        answers: one a sample.
        weights: one a sample, at least 0; 1 each by default.

    Raises:
        ValueError: lengths that differ, or a weight that is negative or not finite.
    """
    weights = _weights(answers, weights)
    given: dict[Hashable, list[float]] = defaultdict(list)
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            given[answer].append(weight)
    # fsum: the sum must not depend on the order of the samples
    votes = {answer: Votes(len(of), math.fsum(of)) for answer, of in given.items()}
    return dict(sorted(votes.items(), key=lambda item: (-item[1].weight, -item[1].count, str(item[0]))))


def majority_vote(answers: Sequence[Hashable | None]) -> Hashable | None:
    """The commonest answer; ties go to the smallest by text, so that runs agree. ``None`` if no sample has an answer.

    Args:
        answers: one a sample.
    """
    return next(iter(tally(answers)), None)


def weighted_vote(answers: Sequence[Hashable | None], weights: Sequence[float]) -> Hashable | None:
    """The answer whose samples weigh most together, ties as in :func:`tally`; ``None`` if no sample has an answer.

    Args:
        answers, weights: one a sample, as in :func:`tally`; with critic values this is the critic-weighted vote.
    """
    return next(iter(tally(answers, weights)), None)


def majority_correct(answers: Sequence[Hashable | None], correct: Sequence[float | bool]) -> bool:
    """Whether :func:`majority_vote` elects a right answer; without any answer it does not.

    Args:
        answers, correct: one a sample; ``correct`` is 0 or 1.
    """
    winner = majority_vote(answers)
    return winner is not None and any(right for answer, right in zip(answers, correct, strict=True) if answer == winner)


def maj_at_k(
    answers: Sequence[Hashable | None],
    correct: Sequence[float | bool],
    k: int,
    weights: Sequence[float] | None = None,
) -> float:
    """P(the vote of k of the n samples elects a right answer), over all choices of k samples.

    The mean over every choice if there are at most ``EVERY_CHOICE`` (always so for k = 1 and k = n), else over
    ``DRAWN_CHOICES`` drawn with a fixed seed.

    Args:
        answers, correct: one a sample; an answer is right if any of the n samples that give it is.
        k: samples that vote, 1 <= k <= n.
        weights: as in :func:`tally`; ties are broken as there.

    Raises:
        ValueError: k out of range, lengths that differ, or an impossible weight.
    """
    n = len(answers)
    if not 1 <= k <= n:
        raise ValueError(f"maj@k needs 1 <= k <= n, got n={n}, k={k}")
    right_answers = {answer for answer, right in zip(answers, correct, strict=True) if right}
    candidates = sorted({answer for answer in answers if answer is not None}, key=str)
    weight = np.array(_weights(answers, weights))
    if not candidates:
        return 0.0
    gave = np.array([[answer == candidate for candidate in candidates] for answer in answers], dtype=float)  # (n, A)
    right = np.array([candidate in right_answers for candidate in candidates])
    voters = _choices(n, k)  # (S, n)
    count, total = voters @ gave, voters @ (gave * weight[:, None])  # (S, A)
    total[count == 0] = -1  # not even a candidate
    count[total < total.max(axis=1, keepdims=True)] = 0
    winner = count.argmax(axis=1)
    return float((right[winner] & (count.max(axis=1) > 0)).mean())


def best_of_n(correct: Sequence[float | bool], weights: Sequence[float]) -> float:
    """Whether the sample with the largest weight is right; the mean over those that share it.

    Args:
        correct, weights: one a sample (at least one); the weights are scores of any sign, such as critic values.

    Raises:
        ValueError: lengths that differ.
    """
    best = max(weights)
    return float(np.mean([right for right, weight in zip(correct, weights, strict=True) if weight == best]))


def vote_weights(values: Sequence[float]) -> list[float]:
    """Critic values, one a sample, as weights of a vote: clipped to [0, 1], for they estimate a probability."""
    return np.clip(np.asarray(values, dtype=float), 0.0, 1.0).tolist()


def question_measures(
    answers: Sequence[Hashable | None] | None,
    correct: Sequence[float | bool] | None = None,
    values: Sequence[float] | None = None,
    ks: Sequence[int] = (),
) -> dict[str, float]:
    """All measures of one question; their means over questions are the results of an evaluation.

    Args:
        answers: one a sample, n >= 1 of them; None if they are not known, then what is made of them is absent.
        correct: one a sample, 0 or 1; None if the question has no ground truth.
        values: critic values, one a sample; None without a critic.
        ks: the k of pass@k and maj@k, each from 1 to n.

    Returns:
        ``distinct_answers``, ``no_answer`` (share) and, if there is any answer, ``answer_entropy``; with ``correct``
        also ``avg`` (accuracy), ``pass@k`` and ``maj@k``; with ``values`` too, ``weighted_maj@k`` (see
        :func:`vote_weights`) and ``best_of_n``.

    Raises:
        ValueError: as the functions for the single measures.
    """
    measures: dict[str, float] = {}
    if correct is not None:
        n, right = len(correct), sum(one > 0.5 for one in correct)
        measures["avg"] = right / n
        measures |= {f"pass@{k}": float(pass_at_k(n, right, k)) for k in ks}
    if answers is None:
        return measures
    if correct is not None:
        measures |= {f"maj@{k}": maj_at_k(answers, correct, k) for k in ks}
        if values is not None:
            weights = vote_weights(values)
            measures |= {f"weighted_maj@{k}": maj_at_k(answers, correct, k, weights) for k in ks}
            measures["best_of_n"] = best_of_n(correct, values)
    measures["distinct_answers"] = float(distinct_answers(answers))
    measures["no_answer"] = sum(answer is None for answer in answers) / len(answers)
    entropy = answer_entropy(answers)
    return measures if entropy is None else measures | {"answer_entropy": entropy}


def _weights(answers: Sequence[Hashable | None], weights: Sequence[float] | None) -> list[float]:
    if weights is None:
        return [1.0] * len(answers)
    if len(weights) != len(answers):
        raise ValueError(f"a vote needs one weight a sample, got {len(weights)} for {len(answers)}")
    if not all(0 <= weight < math.inf for weight in weights):
        raise ValueError(f"a vote needs finite weights >= 0, got {list(weights)}")
    return [float(weight) for weight in weights]


@lru_cache(maxsize=8)
def _choices(n: int, k: int) -> npt.NDArray[np.float64]:
    """(S, n) of 0 and 1: in each row k samples are chosen."""
    if math.comb(n, k) <= EVERY_CHOICE:
        picks = np.array(list(combinations(range(n), k)))
    else:
        picks = np.random.default_rng(0).random((DRAWN_CHOICES, n)).argsort(axis=1)[:, :k]
    chosen = np.zeros((len(picks), n))
    np.put_along_axis(chosen, picks, 1.0, axis=1)
    return chosen
