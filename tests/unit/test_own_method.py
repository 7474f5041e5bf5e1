# SPDX-License-Identifier: Apache-2.0
"""``examples/own_method``: the reward of the example, on a round that is small enough to work out by hand."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tempo_verl.methods import Plan, Round, find

ROOT = Path(__file__).parents[2]
ANSWERS = ["7", "7", "3", None]  # of one prompt: shares 2/4, 2/4, 1/4, and 0 for the missing answer
FINAL = [0.9, 0.1, 0.5, 0.3]


class Samples:
    """Rows of two tokens."""

    def __init__(self, prompts: list[str], answers: list[str | None], verdicts: list[float] | None = None):
        self.prompts, self.answers = prompts, answers
        self.sessions = [f"{prompt}_{row}" for row, prompt in enumerate(prompts)]
        self.real = np.ones(len(prompts), dtype=bool)
        self.response_mask = torch.ones(len(prompts), 2, dtype=torch.int64)
        if verdicts is not None:
            self.verdicts = torch.tensor(verdicts)

    def __len__(self) -> int:
        return len(self.prompts)

    def by_session(self) -> Samples:
        return self

    def align(self, part: Samples, values: torch.Tensor) -> torch.Tensor:
        assert part is self
        return values


class Critic:
    """V rises to the final value; remembers what was asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def values(self, samples: Samples) -> torch.Tensor:
        self.calls.append("values")
        return torch.tensor([[0.2, 0.4, final] for final in FINAL[: len(samples)]])

    def measure(self, samples: Samples) -> torch.Tensor:
        self.calls.append("measure")
        return torch.full((len(samples), 3), 0.5)

    def fit(self, samples: Samples, target: torch.Tensor) -> None:
        self.calls.append(f"fit {target.tolist()}")


class Policy:
    def __init__(self) -> None:
        self.stored: dict[str, Any] = {}
        self.updates = 0

    def batch(self, *parts: Samples) -> Samples:
        return parts[0]

    def penalties(self, samples: Samples) -> torch.Tensor:
        return torch.zeros(len(samples))

    def store(self, samples: Samples, reward: torch.Tensor, advantages: torch.Tensor, values: torch.Tensor) -> None:
        self.stored = {"reward": reward, "advantages": advantages, "values": values}

    def update(self, samples: Samples) -> None:
        self.updates += 1


@pytest.fixture
def confident(monkeypatch: pytest.MonkeyPatch) -> type:
    monkeypatch.syspath_prepend(ROOT / "examples" / "own_method")
    return find("confident:Confident")


def a_round(confident: type, plan: Plan, **options: float) -> tuple[Any, Critic, Policy]:
    settings = SimpleNamespace(
        final_value="after_last_token",
        value_range=(0.0, 1.0),
        whiten=False,
        advantage="baseline",
        actor_on_labeled=False,
    )
    critic, policy = Critic(), Policy()
    labeled = Samples(["l", "l"], ["1", "2"], [1.0, 0.0]) if plan.label else None
    unlabeled = Samples(["u"] * 4, ANSWERS) if plan.improve else None
    log = SimpleNamespace(metrics={}, time=lambda phase: nullcontext())
    method = confident(settings, confident.Options(**options))
    return method.step(Round(1, plan, labeled, unlabeled, critic, policy, log)), critic, policy


def test_the_reward_is_the_mean_of_value_and_vote_share(confident: type) -> None:
    trained, critic, policy = a_round(confident, Plan(label=True, improve=True))
    assert critic.calls == ["measure", "fit [1.0, 0.0]", "values"]  # values after the E-step
    torch.testing.assert_close(trained.reward, torch.tensor([0.7, 0.3, 0.375, 0.15]))
    baselines = torch.tensor([[0.2, 0.4]] * 4)
    torch.testing.assert_close(policy.stored["advantages"], trained.reward[:, None] - baselines)
    assert policy.updates == 1
    assert trained.unlabeled.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("share", "expected"), [(1.0, FINAL), (0.0, [0.5, 0.5, 0.25, 0.0])])
def test_the_option_weighs_the_two(confident: type, share: float, expected: list[float]) -> None:
    trained, _, _ = a_round(confident, Plan(label=False, improve=True), critic_share=share)
    torch.testing.assert_close(trained.reward, torch.tensor(expected))


def test_a_warm_up_round_trains_the_critic_alone(confident: type) -> None:
    trained, critic, policy = a_round(confident, Plan(label=True, improve=False))
    assert critic.calls == ["measure", "fit [1.0, 0.0]"]
    assert policy.updates == 0
    assert trained.reward is None
