# SPDX-License-Identifier: Apache-2.0
"""TTRL's and EMPO's rewards, and GRPO's advantage, on examples worked by hand and against verl."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from verl import DataProto
from verl.trainer.ppo.core_algos import AdvantageEstimator, compute_grpo_outcome_advantage
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

from tempo_verl.algo.advantage import group_advantage
from tempo_verl.algo.self_reward import cluster_reward, majority_reward

# ---------------------------------------------------------------------- TTRL


def test_the_majority_is_right() -> None:
    answers = ["3", "4", "3", None, "1", "2", "2", None]
    reward, majority = majority_reward(answers, ["a"] * 4 + ["b"] * 4)
    assert reward.tolist() == [1, 0, 1, 0, 0, 1, 1, 0]
    assert majority == {"a": "3", "b": "2"}


def test_a_missing_answer_never_wins_and_never_is_right() -> None:
    reward, majority = majority_reward([None, None, None, "7"], ["a"] * 4)
    assert (reward.tolist(), majority) == ([0, 0, 0, 1], {"a": "7"})
    reward, majority = majority_reward([None, None], ["a"] * 2)
    assert (reward.tolist(), majority) == ([0, 0], {"a": None})


def test_ties_do_not_depend_on_the_order() -> None:
    for answers in (["9", "10", "9", "10"], ["10", "9", "10", "9"]):
        _, majority = majority_reward(answers, ["a"] * 4)
        assert majority == {"a": "10"}  # the smallest as text


def test_those_that_do_not_vote_are_judged_too() -> None:
    answers, voters = ["5", "5", "6", "6", "6"], np.array([True, True, True, False, False])
    reward, majority = majority_reward(answers, ["a"] * 5, voters)
    assert (reward.tolist(), majority) == ([1, 1, 0, 0, 0], {"a": "5"})


# ---------------------------------------------------------------------- EMPO


def test_the_reward_is_the_share_of_the_cluster() -> None:
    answers = ["1/2", "1/2", "3", None, "3", "3", None, None]
    reward, labels = cluster_reward(answers, ["a"] * 4 + ["b"] * 4)
    assert reward.tolist() == [0.5, 0.5, 0.25, 0.25, 0.5, 0.5, 0.25, 0.25]  # a missing answer is alone
    assert labels.tolist() == [0, 0, 1, 2, 0, 0, 1, 2]


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([None, "1", "2", "3"])), min_size=1, max_size=20),
    st.randoms(),
)
def test_rewards_do_not_depend_on_the_order_of_rows(rows, random) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    for rewards in (
        lambda rows: majority_reward([a for _, a in rows], [p for p, _ in rows])[0],
        lambda rows: cluster_reward([a for _, a in rows], [p for p, _ in rows])[0],
    ):
        assert rewards([rows[at] for at in order]).tolist() == rewards(rows)[order].tolist()


# ---------------------------------------------------------------------- GRPO


@pytest.mark.parametrize("seed", range(3))
def test_the_group_advantage_is_verls(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    reward = torch.rand(12, generator=generator)
    groups = np.array(["a", "b", "a", "c", "b", "a", "c", "b", "a", "d", "c", "a"])
    lengths = torch.randint(1, 7, (12,), generator=generator)
    mask = (torch.arange(6) < lengths[:, None]).long()
    rewards = torch.zeros(12, 6)
    rewards[torch.arange(12), lengths - 1] = reward
    expected, _ = compute_grpo_outcome_advantage(rewards, mask, groups)
    torch.testing.assert_close(group_advantage(reward, list(groups), mask), expected, atol=1e-6, rtol=0)


def test_the_group_advantage_of_sessions_with_several_outputs_is_verls() -> None:
    keys = ["a_0_1", "a_1_0", "a_0_0", "b_0_0", "a_2_1", "b_1_0", "b_1_1", "a_2_0", "c_0_0"]
    sessions, groups = [key.rpartition("_")[0] for key in keys], [key.split("_")[0] for key in keys]
    score = {session: 0.1 * number**2 for number, session in enumerate(sorted(set(sessions)))}
    reward, mask = torch.tensor([score[session] for session in sessions]), torch.ones(len(keys), 2)
    rewards = torch.stack([torch.zeros(len(keys)), reward], dim=1)
    data = DataProto.from_dict(
        {"token_level_rewards": rewards, "response_mask": mask},
        non_tensors={"uid": np.array(groups, dtype=object)},
    )
    expected = compute_advantage_for_multi_trajectories(data, keys, AdvantageEstimator.GRPO).batch["advantages"]
    torch.testing.assert_close(group_advantage(reward, groups, mask, sessions), expected, atol=1e-6, rtol=0)


def test_equal_rewards_and_empty_rows_give_nothing() -> None:
    mask = torch.tensor([[1, 1], [1, 0], [0, 0]])
    advantage = group_advantage(torch.tensor([0.5, 0.5, 9.0]), ["a", "a", "a"], mask)
    assert advantage.tolist() == [[0, 0], [0, 0], [0, 0]]
