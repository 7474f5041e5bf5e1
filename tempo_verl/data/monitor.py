# SPDX-License-Identifier: Apache-2.0
"""Monitoring answers of D_U: what the ``oracle/`` metrics, and nothing else, may look at."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.metrics import roc_auc_score

from tempo_verl.data.streams import Answer, row_of
from tempo_verl.rewards import score


class Monitor:
    """Compares responses with the answers of D_U, after the policy has been updated.

    Args:
        answers: one a dataset row, ``None`` where the row has none; empty: nothing is monitored.
        votes: the reward is 1 for the answer that a vote takes for the truth.
    """

    def __init__(self, answers: list[Answer | None], votes: bool = False):
        self._answers, self._votes = answers, votes

    def metrics(self, prompts: list[str], responses: Callable[[], list[str]], reward: np.ndarray) -> dict[str, float]:
        """``tempo/oracle/*`` of a round.

        Args:
            prompts: (N,) uids.
            responses: gives the (N,) texts; called only if there is an answer.
            reward: (N,) what they were trained with.
        """
        if not any(answer is not None for answer in self._answers):
            return {}
        correct = self.correct(prompts, responses())
        found = oracle_metrics(reward, correct) | (label_metrics(reward, correct, prompts) if self._votes else {})
        return {f"tempo/oracle/{name}": value for name, value in found.items()}

    def correct(self, uids: list[str], responses: list[str]) -> np.ndarray:
        """(N,) float: 1 right, 0 wrong, nan where the row has no answer."""
        return np.array([self._check(uid, response) for uid, response in zip(uids, responses, strict=True)])

    def _check(self, uid: str, response: str) -> float:
        answer = self._answers[row_of(uid)]
        if answer is None:
            return float("nan")
        return float(score(response, answer.ground_truth, answer.style).correct)


def oracle_metrics(reward: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    """Accuracy on D_U and how well the training reward ranks right above wrong.

    Args:
        reward: (N,) training reward.
        correct: (N,) from :meth:`Monitor.correct`; nan rows are left out.

    Returns:
        ``accuracy``, and ``auroc`` unless only one class is present; empty if no row has an answer.
    """
    known = ~np.isnan(correct)
    if not known.any():
        return {}
    reward, correct = reward[known], correct[known]
    metrics = {"accuracy": float(correct.mean())}
    if 0.0 < correct.mean() < 1.0:
        metrics["auroc"] = float(roc_auc_score(correct, reward))
    return metrics


def label_metrics(reward: np.ndarray, correct: np.ndarray, prompts: list[str]) -> dict[str, float]:
    """How good a majority vote is as a label.

    Args:
        reward: (N,) 1 for answers that equal the majority's.
        correct: (N,) from :meth:`Monitor.correct`; nan rows are left out.
        prompts: (N,) prompt of each row.

    Returns:
        ``label_accuracy``: share of prompts whose majority answer is right; ``reward_accuracy``: share of rows rewarded
        as the truth would have it. Empty if no row has an answer.
    """
    known = np.flatnonzero(~np.isnan(correct))
    if len(known) == 0:
        return {}
    right: dict[str, float] = {}
    for row in known:
        # rows that agree with the majority are as right as it is
        right[prompts[row]] = max(right.get(prompts[row], 0.0), float(reward[row] * correct[row]))
    return {
        "label_accuracy": float(np.mean(list(right.values()))),
        "reward_accuracy": float((reward[known] == correct[known]).mean()),
    }
