# SPDX-License-Identifier: Apache-2.0
"""Rewards that a policy gives itself on unlabelled questions, from the answers it draws: TTRL and EMPO.

``None`` stands for a response without an answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from tempo_verl.algo.evaluation import majority_vote

Equivalent = Callable[[str, str], bool | None]  # None: nobody knows, which counts as different


def majority_reward(
    answers: Sequence[str | None], prompts: Sequence[Hashable], voters: npt.NDArray[np.bool_] | None = None
) -> tuple[npt.NDArray[np.float32], dict[Hashable, Hashable | None]]:
    """1 for the answers that equal the majority's of their prompt, else 0 (TTRL, arXiv 2504.16084).

    Args:
        answers: (N,) normalised answers. None never wins, and never is right.
        prompts: (N,) prompt of each answer.
        voters: (N,) which answers vote; all by default.

    Returns:
        (N,) rewards, and each prompt's majority answer; ties go to the smallest text.
    """
    votes: dict[Hashable, list[str | None]] = defaultdict(list)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        votes[prompt] += [answer] if voters is None or voters[row] else []
    majority = {prompt: majority_vote(given) for prompt, given in votes.items()}
    reward = [
        answer is not None and answer == majority[prompt] for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return np.array(reward, dtype=np.float32), majority


def clusters(answers: Iterable[str | None], equivalent: Equivalent) -> list[int]:
    """Number of the cluster of each answer, counted from 0 in order of appearance.

    An answer joins the first cluster whose first member it is equivalent to; a missing one is a cluster of its own.
    """
    first: list[str | None] = []
    labels = []
    for answer in answers:
        label = next(
            (
                number
                for number, member in enumerate(first)
                if answer is not None and member is not None and (member == answer or equivalent(member, answer))
            ),
            len(first),
        )
        if label == len(first):
            first.append(answer)
        labels.append(label)
    return labels


def cluster_reward(
    answers: Sequence[str | None],
    prompts: Sequence[Hashable],
    equivalent: Callable[[Hashable], Equivalent],
    over: Callable[..., Iterable[list[int]]] = map,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Share of a prompt's answers that are in the same cluster (EMPO, arXiv 2504.05812).

    Args:
        answers: (N,) answers.
        prompts: (N,) prompt of each answer.
        equivalent: prompt -> how its answers are compared, ``equivalent(prompt)(first, second)``.
        over: goes over the prompts as ``map`` does, in order.

    Returns:
        (N,) rewards in (0, 1], and (N,) cluster numbers within each prompt.
    """
    rows: dict[Hashable, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        rows[prompt].append(row)
    reward, labels = np.zeros(len(answers), dtype=np.float32), np.zeros(len(answers), dtype=np.int64)

    def labels_of(prompt: Hashable) -> list[int]:
        return clusters((answers[row] for row in rows[prompt]), equivalent(prompt))

    for group, found in zip(rows.values(), over(labels_of, list(rows)), strict=True):
        labels[group] = found
        sizes = np.bincount(labels[group])
        reward[group] = sizes[labels[group]] / len(group)
    return reward, labels


def mean_by_prompt(values: npt.ArrayLike, prompts: Sequence[Hashable]) -> float:
    """Mean over prompts of the mean of their (N,) ``values``."""
    of_prompt: dict[Hashable, list[float]] = defaultdict(list)
    for prompt, value in zip(prompts, np.asarray(values).tolist(), strict=True):
        of_prompt[prompt].append(value)
    return float(np.mean([np.mean(group) for group in of_prompt.values()]))
