# SPDX-License-Identifier: Apache-2.0
"""Measures over n sampled responses of one question."""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt


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


def majority_vote(answers: Sequence[Hashable | None]) -> Hashable | None:
    """The commonest answer; ``None`` (no answer) never wins. Ties go to the smallest by text, so that runs agree.

    Args:
        answers: one a sample.

    Returns:
        The winner, or ``None`` if no sample has an answer.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    return min(votes, key=lambda answer: (-votes[answer], str(answer)), default=None)


def majority_correct(answers: Sequence[Hashable | None], correct: Sequence[float | bool]) -> bool:
    """Whether :func:`majority_vote` elects a right answer; without any answer it does not.

    Args:
        answers, correct: one a sample; ``correct`` is 0 or 1.
    """
    winner = majority_vote(answers)
    return winner is not None and any(right for answer, right in zip(answers, correct, strict=True) if answer == winner)
