# SPDX-License-Identifier: Apache-2.0
"""Rollouts ahead of their round: by which policy they are drawn, what is left of them, and that a run can go on."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import ray
import torch
from harness import Evidence
from ray import cloudpickle
from transformers import AutoModelForCausalLM

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test

BOTH = "tempo.ahead.streams=[labeled,unlabeled]"
TOLERANCE = 1e-4  # of float32 forward passes of the same weights in another batch
ROUNDS = 4


@pytest.fixture(scope="module")
def train(tour, compose):
    """``train(overrides)``: rounds with a checkpoint after every second one, so that every other round draws ahead."""

    def run(*overrides: str) -> Evidence:
        options = [*tour.models, "actor_rollout_ref.rollout.n=4", f"tempo.rounds={ROUNDS}", "trainer.save_freq=2", BOTH]
        return tour.leg(compose([*options, *overrides]), moments=["start"], rows=True)

    return run


@pytest.fixture(scope="module")
def overlapping(train) -> Evidence:
    return train()


@pytest.fixture(scope="module")
def partial(tour, train) -> Evidence:
    """In batches so small that those of the next round are under way when the round's own have ended."""
    (server,) = tour._trainer.llm_server_manager.get_replicas()[0].servers

    def limit(size: int) -> int:
        def swap(self) -> int:
            before = self.config.max_num_seqs
            object.__setattr__(self.config, "max_num_seqs", size)
            return before

        return ray.get(server.__ray_call__.remote(swap))

    before = limit(2)
    found = train("tempo.ahead.mode=partial", "actor_rollout_ref.rollout.agent.agent_loop_manager_class=null")
    limit(before)
    return found


def errors_under(found: Evidence, number: int, policy_of: int) -> torch.Tensor:
    """Of all tokens of a round's unlabelled rollouts: log-probability less that by the policy before another round."""
    model = AutoModelForCausalLM.from_pretrained(found.model(policy_of, "actor", "start"), dtype=torch.float32).eval()
    rows, errors = found.rows[number], []
    for ids, length, told in zip(rows["input_ids"], rows["lengths"], rows["rollout_log_probs"], strict=True):
        with torch.inference_mode():
            logits = model(ids.unsqueeze(0)).logits[0, -(length + 1) : -1]
        drawn = logits.log_softmax(-1).gather(-1, ids[-length:, None]).squeeze(-1)
        errors.append((drawn - told[-length:]).abs())
    return torch.cat(errors)


def staleness(found: Evidence, name: str = "staleness") -> np.ndarray:
    """(2, rounds) of labelled and unlabelled rollouts."""
    streams = ("labeled", "unlabeled")
    return np.array([[found.metrics[n][f"tempo/{s}/{name}"] for n in range(1, ROUNDS + 1)] for s in streams])


def test_a_round_that_nothing_interrupts_lags_one_policy_version(overlapping: Evidence) -> None:
    assert staleness(overlapping).tolist() == [[0.0, 1.0, 0.0, 1.0]] * 2
    assert not staleness(overlapping, "interrupted").any()


@pytest.mark.parametrize(("number", "policy_of"), [(1, 1), (2, 1), (3, 3), (4, 3)])
def test_rollouts_are_those_of_the_policy_that_they_are_said_to_be(
    overlapping: Evidence, number: int, policy_of: int
) -> None:
    assert errors_under(overlapping, number, policy_of).max() < TOLERANCE
    if number > 1:
        assert errors_under(overlapping, number, number - 1 if policy_of == number else number).max() > 10 * TOLERANCE


def test_interrupted_rollouts_lag_one_version_at_most(partial: Evidence) -> None:
    lag = staleness(partial)
    assert (lag[:, [0, 2]] == 0).all()  # nothing is drawn ahead over a checkpoint
    assert (lag <= 1).all()
    assert lag[:, [1, 3]].max() > 0
    interrupted = staleness(partial, "interrupted")
    assert (interrupted <= lag).all()
    assert interrupted.max() > 0
    for number in (2, 4):  # every token is of one of the two policies
        errors = torch.stack([errors_under(partial, number, policy_of) for policy_of in (number - 1, number)])
        assert errors.min(dim=0).values.max() < TOLERANCE


def test_nothing_is_left_under_way(overlapping: Evidence, partial: Evidence) -> None:
    assert overlapping.left_in_queue == partial.left_in_queue == set()
    for found in (overlapping, partial):
        for number in range(1, ROUNDS + 1):
            assert len(found.rows[number]["prompts"]) == 4 * 4
            assert found.metrics[number]["tempo/labeled/partial_groups"] == 0.0


def test_a_run_that_an_alarm_ends_leaves_nothing_either(train) -> None:
    found = train("trainer.save_freq=4", "tempo.alarms.min_auroc=0.99", "tempo.alarms.stop=[auroc]")
    assert list(found.metrics) == [1, 2]  # the round after the alarm is the last
    assert found.metrics[2]["tempo/labeled/staleness"] == 1.0
    assert found.left_in_queue == set()
