# SPDX-License-Identifier: Apache-2.0
"""How many samples a run draws, by its settings alone."""

from __future__ import annotations

from tempo_verl.config.ahead import streams_of
from tempo_verl.methods import Method


def samples_of_rounds(method: Method, rollout_n: int, rounds: int, *, has_labeled: bool) -> int:
    """Responses of both streams in the rounds 1 to ``rounds``, with the gate open.

    Args:
        rollout_n: ``actor_rollout_ref.rollout.n``.
        has_labeled: whether the run rolls out D_L at all.
    """
    labeled, unlabeled, n = method.settings.labeled, method.settings.unlabeled, method.responses()
    of_stream = {
        "labeled": labeled.batch_size * labeled.n if has_labeled else 0,
        "unlabeled": unlabeled.batch_size * (rollout_n if n is None else n),
    }
    return sum(of_stream[name] for number in range(1, rounds + 1) for name in streams_of(method.plan(number)))


def equal_samples(of_rounds: int, questions: int, n: int) -> int:
    """Samples for each question of D_U that cost as much sampling as a run and the answers that it ends with.

    Args:
        of_rounds: responses of all rounds.
        questions: of D_U.
        n: samples a question of the trained policy, ``tempo.predictions.n``.
    """
    return round(of_rounds / questions) + n
