# SPDX-License-Identifier: Apache-2.0
"""How the pass rates of questions move while a policy learns, for TraPO (arXiv 2512.13106)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tempo_verl.algo.self_reward import majority_reward


@dataclass
class PassRates:
    """The pass rate of each unlabelled question by its own pseudo-label, visit by visit; and D_L's at that time.

    Attributes:
        visits: question -> (its pass rate, the mean pass rate on D_L in the same round), both in [0, 1].
    """

    visits: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def visit(self, question: int, rate: float, on_labeled: float) -> None:
        """Take note of a round that drew ``question``."""
        self.visits.setdefault(question, []).append((rate, on_labeled))

    def count(self, question: int) -> int:
        """Rounds that drew it."""
        return len(self.visits.get(question, ()))

    def similarity(self, question: int) -> float:
        """Cosine of the two standardised trajectories: in [-1, 1], 1 if the question is learnt as D_L is.

        0 where there is no trajectory: fewer than two visits, or no change in one of them.
        """
        if self.count(question) < 2:
            return 0.0
        own, labeled = np.array(self.visits[question]).T
        if np.ptp(own) == 0 or np.ptp(labeled) == 0:
            return 0.0
        return float(np.corrcoef(own, labeled)[0, 1])

    def reliable(self, questions: Sequence[int], warmup: int, top: float, threshold: float) -> set[int]:
        """Which of a round's questions have a pseudo-label to train on.

        Args:
            questions: of the round.
            warmup: visits that a question needs, this one included.
            top: share of those questions that is taken in any case, at least one.
            threshold: similarity that is enough by itself.
        """
        known = {question: self.similarity(question) for question in set(questions) if self.count(question) >= warmup}
        best = sorted(known, key=lambda question: (-known[question], question))[: max(1, int(top * len(known)))]
        return {*best, *(question for question, similarity in known.items() if similarity >= threshold)}

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {str(question): [list(visit) for visit in visits] for question, visits in self.visits.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As :meth:`state_dict` gave it."""
        self.visits = {int(question): [(own, of) for own, of in visits] for question, visits in state.items()}


def clear_majority(answers: Sequence[str | None], prompts: Sequence[Hashable]) -> npt.NDArray[np.float32]:
    """1 for the answers that equal the majority's of their prompt, else 0; all 0 where two answers have as many votes.

    Args:
        answers: (N,) answers, in one spelling for those that are the same. None never wins, and never is right.
        prompts: (N,) prompt of each answer.

    Returns:
        (N,) rewards.
    """
    return majority_reward(answers, prompts, elect=_clear_winner)[0]


def _clear_winner(answers: Sequence[str | None]) -> str | None:
    first = Counter(answer for answer in answers if answer is not None).most_common(2)
    return first[0][0] if first and (len(first) == 1 or first[0][1] > first[1][1]) else None
