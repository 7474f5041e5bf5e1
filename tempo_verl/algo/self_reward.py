# SPDX-License-Identifier: Apache-2.0
"""Rewards that a policy gives itself on unlabelled questions, from the answers it draws: TTRL and EMPO.

``None`` stands for a response without an answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import numpy.typing as npt

from tempo_verl.algo.evaluation import majority_vote


def majority_reward(
    answers: Sequence[str | None],
    prompts: Sequence[Hashable],
    voters: npt.NDArray[np.bool_] | None = None,
    elect: Callable[[Sequence[str | None]], Hashable | None] = majority_vote,
) -> tuple[npt.NDArray[np.float32], dict[Hashable, Hashable | None]]:
    """1 for the answers that equal the majority's of their prompt, else 0 (TTRL, arXiv 2504.16084).

    Args:
        answers: (N,) answers, in one spelling for those that are the same. None never wins, and never is right.
        prompts: (N,) prompt of each answer.
        voters: (N,) which answers vote; all by default.
        elect: the winner of a prompt's votes.

    Returns:
        (N,) rewards, and each prompt's majority answer; by default ties go to the smallest text.
    """
    votes: dict[Hashable, list[str | None]] = defaultdict(list)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        votes[prompt] += [answer] if voters is None or voters[row] else []
    majority = {prompt: elect(given) for prompt, given in votes.items()}
    reward = [
        answer is not None and answer == majority[prompt] for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return np.array(reward, dtype=np.float32), majority


def cluster_reward(
    answers: Sequence[str | None], prompts: Sequence[Hashable]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Share of a prompt's answers that are the same (EMPO, arXiv 2504.05812). A missing answer is alone.

    Args:
        answers: (N,) answers, in one spelling for those that are the same.
        prompts: (N,) prompt of each answer.

    Returns:
        (N,) rewards in (0, 1], and (N,) cluster numbers within each prompt, in order of appearance.
    """
    rows: dict[Hashable, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        rows[prompt].append(row)
    reward, labels = np.zeros(len(answers), dtype=np.float32), np.zeros(len(answers), dtype=np.int64)
    for group in rows.values():
        numbers: dict[Hashable, int] = {}
        for row in group:
            answer = answers[row]
            labels[row] = numbers.setdefault(row if answer is None else answer, len(numbers))
        sizes = np.bincount(labels[group])
        reward[group] = sizes[labels[group]] / len(group)
    return reward, labels


def mean_by_prompt(values: npt.ArrayLike, prompts: Sequence[Hashable]) -> float:
    """Mean over prompts of the mean of their (N,) ``values``."""
    of_prompt: dict[Hashable, list[float]] = defaultdict(list)
    for prompt, value in zip(prompts, np.asarray(values).tolist(), strict=True):
        of_prompt[prompt].append(value)
    return float(np.mean([np.mean(group) for group in of_prompt.values()]))
