# SPDX-License-Identifier: Apache-2.0
"""One round of every method on real verl: what it is rewarded for, what it trains, and what it leaves alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import Evidence, equal, train
from transformers import AutoModelForTokenClassification
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

ADVANTAGE_TOLERANCE = VALUE_TOLERANCE = 1e-4  # another batch, in float32
NO_CRITIC = ["critic.model.path=null", "tempo.labeled.files=null"]


def run(compose, folder: Path, method: str, *overrides: str) -> Evidence:
    return train(compose, folder, [f"method={method}", "tempo.rounds=1", *overrides])


def changed(found: Evidence, role: str) -> bool:
    return not equal(*(found.weights_of(1, role, moment) for moment in ("start", "end")))


def assert_grpo(found: Evidence) -> None:
    """The stored advantages are those of verl's GRPO on the stored rewards."""
    rows = found.rows[1]
    mask = rows["mask"]
    rewards = torch.zeros(mask.shape)
    rewards[torch.arange(len(mask)), torch.tensor(rows["lengths"]) - 1] = torch.tensor(rows["reward"])
    expected, _ = compute_grpo_outcome_advantage(rewards, mask, np.array(rows["prompts"]))
    for row, stored in enumerate(rows["advantages"]):
        assert (stored - expected[row, : len(stored)]).abs().max() < ADVANTAGE_TOLERANCE


def test_frozen_critic(tmp_path: Path, compose) -> None:
    found = run(compose, tmp_path, "frozen_critic", "tempo.labeled.files=null")
    assert changed(found, "actor")
    assert not changed(found, "critic")
    assert "tempo/labeled/auroc" not in found.metrics[1]
    assert "tempo/unlabeled/baseline_error" in found.metrics[1]


def test_frozen_critic_can_be_measured(tmp_path: Path, compose) -> None:
    found = run(compose, tmp_path, "frozen_critic", "tempo.calibration.interval=1")
    assert not changed(found, "critic")
    assert "tempo/labeled/brier" in found.metrics[1]


def test_ttrl(tmp_path: Path, compose) -> None:
    options = ["tempo.ttrl.n_votes=6", "tempo.ttrl.n_train=4", "actor_rollout_ref.rollout.n=4"]
    found = run(compose, tmp_path, "ttrl", *options, *NO_CRITIC)
    rows = found.rows[1]
    assert Counter(rows["prompts"]) == dict.fromkeys(set(rows["prompts"]), 4)
    assert len(set(rows["prompts"])) == 4
    assert set(rows["reward"]) <= {0.0, 1.0}
    for info, reward in zip(rows["infos"], rows["reward"], strict=True):
        assert "acc" not in info
        assert reward == 0.0 or info["pred"]  # no answer, no reward
    assert_grpo(found)
    assert 0.0 <= found.metrics[1]["tempo/unlabeled/majority_ratio"] <= 1.0
    assert {"tempo/oracle/label_accuracy", "tempo/oracle/reward_accuracy"} <= found.metrics[1].keys()
    assert not any(role == "critic" for _, role, _ in found.weights)


def test_empo(tmp_path: Path, compose) -> None:
    found = run(compose, tmp_path, "empo", "actor_rollout_ref.rollout.n=4", *NO_CRITIC)
    rows = found.rows[1]
    by_prompt = {prompt: [] for prompt in rows["prompts"]}
    for prompt, info in zip(rows["prompts"], rows["infos"], strict=True):
        by_prompt[prompt].append(info["pred"])
    for prompt, info, reward in zip(rows["prompts"], rows["infos"], rows["reward"], strict=True):
        same = by_prompt[prompt].count(info["pred"]) if info["pred"] else 1
        assert reward == pytest.approx(same / 4)
    assert_grpo(found)
    assert 1.0 <= found.metrics[1]["tempo/unlabeled/clusters"] <= 4.0
    assert not any(role == "critic" for _, role, _ in found.weights)


def test_random_reward(tmp_path: Path, compose) -> None:
    found = run(compose, tmp_path, "random_reward", *NO_CRITIC)
    rewards = found.rows[1]["reward"]
    assert all(0.0 <= reward < 1.0 for reward in rewards)
    assert len(set(rewards)) == len(rewards)
    assert_grpo(found)


def test_grpo(tmp_path: Path, compose) -> None:
    found = run(compose, tmp_path, "grpo", "critic.model.path=null", "tempo.unlabeled.files=null")
    rows = found.rows[1]
    assert rows["reward"] == [info["acc"] for info in rows["infos"]]
    assert_grpo(found)
    assert 0.0 <= found.metrics[1]["tempo/labeled/accuracy"] <= 1.0


def test_official(tmp_path: Path, compose) -> None:
    from tempo_verl.algo.official import em_token_advantage

    found = run(compose, tmp_path, "official", "tempo.official.filter_groups=false", "tempo.calibration.lr=1e-2")
    rows, mask = found.rows[1], found.rows[1]["mask"]
    assert changed(found, "actor")
    assert changed(found, "critic")
    labeled = torch.tensor([info.get("acc") is not None for info in rows["infos"]])
    assert labeled.sum() == 16
    for info, reward in zip(rows["infos"], rows["reward"], strict=True):
        assert reward == (2 * info["acc"] - 1 if "acc" in info else 0.0)

    # values of the critic as it was at the start of the round
    model = AutoModelForTokenClassification.from_pretrained(found.weights[1, "critic", "start"], dtype=torch.float32)
    values = torch.zeros(mask.shape)
    with torch.inference_mode():
        for row, (ids, length) in enumerate(zip(rows["input_ids"], rows["lengths"], strict=True)):
            values[row, :length] = model.eval()(input_ids=ids.unsqueeze(0)).logits[0, -(length + 1) : -1, 0]
    before_the_last = values[torch.arange(len(mask)), torch.tensor(rows["lengths"]) - 1]
    # what is told of the critic is told of the value that rewards, as a probability
    assert np.sort(found.dump(1)["labeled_value"]) == pytest.approx(
        ((1 + before_the_last[labeled]) / 2).sort().values.numpy(), abs=VALUE_TOLERANCE
    )
    token_reward = torch.zeros(mask.shape)
    token_reward[torch.arange(len(mask)), torch.tensor(rows["lengths"]) - 1] = torch.tensor(rows["reward"])
    expected, _ = em_token_advantage(values, token_reward, mask, labeled)
    for row, stored in enumerate(rows["advantages"]):
        valid = mask[row, : len(stored)].bool()  # none in a synthetic row
        assert ((stored - expected[row, : len(stored)])[valid].abs() < ADVANTAGE_TOLERANCE).all()


def test_official_without_a_labelled_prompt_of_both_kinds(tmp_path: Path, compose) -> None:
    # one sample a prompt: all right or all wrong, so all labelled rows are filtered out and the critic rests
    found = run(compose, tmp_path, "official", "tempo.labeled.n=1")
    assert found.metrics[1]["tempo/labeled/kept"] == 0.0
    assert found.rows[1]["real"].sum() == 8
    assert found.metrics[1]["critic/grad_norm"] == 0.0
    assert changed(found, "actor")
