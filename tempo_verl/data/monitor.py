# SPDX-License-Identifier: Apache-2.0
"""Monitoring answers of D_U: what the ``oracle/`` metrics, and nothing else, may look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from sklearn.metrics import roc_auc_score

from tempo_verl.data.streams import Answer, row_of
from tempo_verl.rewards import SECONDS, score
from tempo_verl.rewards.process import Workers, most, use

Checks = Mapping[str, "Future[float]"]


class Monitor:
    """Compares responses with the answers of D_U: begun before the policy's update, read after it.

    The child processes are the monitor's own, so that a reward which asks verifiers as well neither waits for these
    checks nor meets what they have left behind.

    Args:
        answers: one a dataset row, ``None`` where the row has none; empty: nothing is monitored.
        votes: the reward is 1 for the answer that a vote takes for the truth.
        timeout: seconds for one response.
        read_unfinished: see ``rewards.score``.
    """

    def __init__(
        self,
        answers: list[Answer | None],
        votes: bool = False,
        timeout: float = SECONDS,
        read_unfinished: bool = False,
    ):
        self._answers, self._votes = answers, votes
        self._timeout, self._read_unfinished = timeout, read_unfinished
        processes = max(1, most() // 2)  # as many as can be spared while a policy is updated
        self._threads = ThreadPoolExecutor(processes, "monitor", initializer=use, initargs=(Workers(processes),))

    def begin(self, keys: list[str], reader: Callable[[], Callable[[int], str]]) -> Checks:
        """Begin to check responses. What it returns is not for whoever trains.

        Args:
            keys: (N,) of rows: ``<uid of the prompt>_<sample>_<output>``.
            reader: gives row -> text of its response; called only if there is an answer.

        Returns:
            By key, what is to come: 1 right, 0 wrong. A row without an answer is left out.
        """
        if not any(self._answers):
            return {}
        text_of, checks = reader(), {}
        for row, key in enumerate(keys):
            answer = self._answers[row_of(key.split("_")[0])]
            if answer is not None:
                checks[key] = self._threads.submit(self._check, text_of, row, answer)
        return checks

    def _check(self, text_of: Callable[[int], str], row: int, answer: Answer) -> float:
        verdict = score(
            text_of(row),
            answer.ground_truth,
            answer.style,
            options=answer.options,
            timeout=self._timeout,
            read_unfinished=self._read_unfinished,
        )
        return float(verdict.correct)

    def judge(self, rows: Sequence[int], texts: Sequence[str]) -> list[bool | None]:
        """Verdicts for a report, when the run is over; ``None`` where a row has no answer.

        Args:
            rows: (N,) of the dataset.
            texts: (N,) responses to them.
        """
        answers = [self._answers[row] if self._answers else None for row in rows]
        checks = [
            None if answer is None else self._threads.submit(self._check, texts.__getitem__, at, answer)
            for at, answer in enumerate(answers)
        ]
        return [None if check is None else bool(check.result()) for check in checks]

    def metrics(self, correct: np.ndarray, prompts: list[str], reward: np.ndarray) -> dict[str, float]:
        """``tempo/oracle/*`` of a round; empty if nothing is monitored.

        Args:
            correct: (N,) from :func:`verdicts`.
            prompts: (N,) uids.
            reward: (N,) what they were trained with.
        """
        found = oracle_metrics(reward, correct) | (label_metrics(reward, correct, prompts) if self._votes else {})
        return {f"tempo/oracle/{name}": value for name, value in found.items()}


def verdicts(checks: Checks, keys: list[str]) -> np.ndarray:
    """Wait for checks. Returns (N,) float by row: 1 right, 0 wrong, nan where it has no answer."""
    return np.array([checks[key].result() if key in checks else float("nan") for key in keys])


def oracle_metrics(reward: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    """Accuracy on D_U and how well the training reward ranks right above wrong.

    Args:
        reward: (N,) training reward.
        correct: (N,) from :func:`verdicts`; nan rows are left out.

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
        correct: (N,) from :func:`verdicts`; nan rows are left out.
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
