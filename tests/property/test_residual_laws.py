# SPDX-License-Identifier: Apache-2.0
"""With residuals on labelled responses the policy's gradient is that of the true reward, whatever the critic says.

A tabular policy answers one of two questions with two of three tokens. All of its responses are enumerated, so that
expectations are sums; then they are drawn, as in a round.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tempo_verl.algo.residual import residual_advantage

law = settings(derandomize=True, deadline=None, max_examples=60, print_blob=True)
QUESTIONS, TOKENS = 2, 3
SHARE = torch.tensor([0.3, 0.7], dtype=torch.float64)  # of the questions, in D_L as in D_U
RESPONSES = torch.cartesian_prod(torch.arange(QUESTIONS), torch.arange(TOKENS), torch.arange(TOKENS))


@dataclass
class World:
    """A policy, what is right, and a critic.

    Attributes:
        logits: (questions, 1 + tokens, tokens): of the first token, and of the second after each first one.
        correct: (18,) c of each response.
        values: (18, 3) V(x), V(x, y_1), V(x, y_1:2).
    """

    logits: Tensor
    correct: Tensor
    values: Tensor

    @classmethod
    def drawn(cls, seed: int) -> World:
        rng = torch.Generator().manual_seed(seed)
        count = len(RESPONSES)
        question, first = RESPONSES[:, 0], RESPONSES[:, 1]
        of_question, of_first = (
            torch.rand(shape, generator=rng, dtype=torch.float64) for shape in ((QUESTIONS,), (QUESTIONS, TOKENS))
        )
        final = torch.rand(count, generator=rng, dtype=torch.float64)
        values = torch.stack([of_question[question], of_first[question, first], final], dim=1)
        logits = torch.randn(QUESTIONS, 1 + TOKENS, TOKENS, generator=rng, dtype=torch.float64)
        correct = torch.randint(2, (count,), generator=rng).double()
        return cls(logits.requires_grad_(), correct, values)

    def log_probs(self, responses: Tensor) -> Tensor:
        """(B, 2)"""
        of_token = self.logits.log_softmax(-1)
        question, first, second = responses.T
        return torch.stack([of_token[question, 0, first], of_token[question, 1 + first, second]], dim=1)

    def probability(self) -> Tensor:
        """(18,) of question and response."""
        return SHARE[RESPONSES[:, 0]] * self.log_probs(RESPONSES).sum(1).exp()

    def true_gradient(self) -> Tensor:
        return torch.autograd.grad((self.probability() * self.correct).sum(), self.logits)[0]

    def credit(self, unlabeled: Tensor, labeled: Tensor, **options) -> tuple[Tensor, Tensor]:
        """(N, 2) of rows of ``RESPONSES``, unlabelled and labelled; and the rows."""
        rows, guided = torch.cat([unlabeled, labeled]), np.arange(len(unlabeled) + len(labeled)) >= len(unlabeled)
        residual = self.correct - self.values[:, -1]
        reward = torch.where(torch.from_numpy(guided), residual[rows], self.values[rows, -1])
        mask = torch.ones(len(rows), 2, dtype=torch.bool)
        return residual_advantage(self.values[rows], reward, mask, guided, **options), rows

    def expected_gradient(self, **options) -> Tensor:
        """Every response once in each stream, counted by its probability."""
        every = torch.arange(len(RESPONSES))
        credit, rows = self.credit(every, every, **options)
        weight = self.probability().detach()[rows]
        loss = (weight[:, None] * credit * self.log_probs(RESPONSES[rows])).sum()
        return torch.autograd.grad(loss, self.logits)[0]


def cosine(one: Tensor, other: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0).item()


@law
@given(st.integers(0, 2**31))
def test_the_expected_gradient_is_that_of_the_true_reward_for_any_critic(seed: int) -> None:
    world = World.drawn(seed)
    assert torch.allclose(world.expected_gradient(whitening="off"), world.true_gradient(), atol=1e-12)
    if world.true_gradient().norm() > 1e-3:
        for whitening in ("apart", "joint"):  # a scale, and constants that cancel
            assert cosine(world.expected_gradient(whitening=whitening), world.true_gradient()) == pytest.approx(1.0)


def test_tempos_is_not() -> None:
    worlds = [World.drawn(seed) for seed in range(20)]
    angles = [cosine(world.expected_gradient(whitening="off", weight=0.0), world.true_gradient()) for world in worlds]
    assert np.nanmedian(angles) < 0.8


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("unlabeled", "labeled"), [(40_000, 40_000), (40_000, 10_000)])
def test_drawn_responses_agree_to_monte_carlo_error(seed: int, unlabeled: int, labeled: int) -> None:
    """In 100 batches, whose spread gives the standard error: 24 numbers within 4.5 of them, for 8 tests."""
    world, rng, batches = World.drawn(seed), torch.Generator().manual_seed(seed), 100
    probability = world.probability().detach()
    found: dict[float, list[Tensor]] = {1.0: [], 0.0: []}
    for _ in range(batches):
        drawn = [
            torch.multinomial(probability, count // batches, replacement=True, generator=rng)
            for count in (unlabeled, labeled)
        ]
        for weight, gradients in found.items():
            credit, rows = world.credit(*drawn, weight=weight * unlabeled / labeled, whitening="off")
            mean = (credit * world.log_probs(RESPONSES[rows])).sum() / len(drawn[0])
            gradients.append(torch.autograd.grad(mean, world.logits)[0])
    truth = world.true_gradient()
    errors = {}
    for weight, gradients in found.items():
        stacked = torch.stack(gradients)
        error = stacked.std(0) / batches**0.5
        errors[weight] = ((stacked.mean(0) - truth).abs() / error.clamp(min=1e-12)).max().item()
    assert errors[1.0] < 4.5
    assert errors[0.0] > 9.0
