# SPDX-License-Identifier: Apache-2.0
"""What each method asks for, and in which order, on examples worked by hand; no verl."""

from __future__ import annotations

import inspect
import threading

import numpy as np
import pytest
import torch
from fake_round import FakeRound, FakeSamples
from fields import method_of

from tempo_verl.algo.self_reward import clusters
from tempo_verl.methods import Needs, empo, find, known
from tempo_verl.methods.ttrl import first_samples
from tempo_verl.rewards import process

MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])  # two responses, of 3 and 2 tokens


def labeled(correct: list[float] = (1.0, 0.0)) -> FakeSamples:
    return FakeSamples(["l0_0", "l1_0"], MASK, list(correct))


def unlabeled(texts: list[str | None] = ("7", "8")) -> FakeSamples:
    return FakeSamples(["u0_0", "u0_1"], MASK, None, list(texts))


BEFORE = {"l0_0": [0.5] * 4, "l1_0": [0.5] * 4, "u0_0": [0.1] * 4, "u0_1": [0.1] * 4}
AFTER = {
    "l0_0": [0.9] * 4,
    "l1_0": [0.2] * 4,
    "u0_0": [0.5, 0.5, 0.75, 1.5],  # V(x, y_1:T) = 1.5, clipped to 1
    "u0_1": [0.5, 0.25, 0.0, 9.0],  # the last column is padding
}


def world(texts: list[str | None] = ("7", "8"), **options) -> FakeRound:
    return FakeRound(labeled(), unlabeled(texts), BEFORE, AFTER, **options)


# ---------------------------------------------------------------------- every method


@pytest.mark.parametrize("name", known())
def test_a_method_says_what_it_is(name: str) -> None:
    method = known()[name]
    assert (method.name, find(name)) == (name, method)
    assert inspect.getdoc(method) and method.title and all(method.row) and isinstance(method.needs, Needs)
    assert "arXiv" in str(method.__doc__) or name in ("random_reward", "oracle", "official")


@pytest.mark.parametrize("name", [name for name, method in known().items() if method.fits_critic])
def test_a_round_of_e_steps_alone_updates_no_policy(name: str) -> None:
    fake = world()
    method_of(name).step(fake.round(improve=False))
    assert fake.calls == ["measure 2", "fit 2 to [1.0, 0.0]", "store"]


# ---------------------------------------------------------------------- TEMPO and its ablation


def test_tempo_fits_its_critic_before_it_values_the_unlabelled_rows() -> None:
    fake = world()
    trained = method_of("tempo", whiten=False).step(fake.round())
    assert fake.calls == ["measure 2", "fit 2 to [1.0, 0.0]", "values of 2", "store", "update 2"]
    assert fake.log.phases == ["e_step", "m_step"]
    assert trained.reward.tolist() == [1.0, 0.0]  # after the last token of each row, clipped
    expected = [[1 - 0.5, 1 - 0.5, 1 - 0.75], [0 - 0.5, 0 - 0.25, 0.0]]  # R - V(x, y_1:t-1), 0 outside the mask
    assert trained.advantages.tolist() == expected
    assert fake.stored["advantages"].tolist() == expected
    assert trained.unlabeled.tolist() == [0, 1]


def test_a_round_of_e_steps_alone_tells_the_values_before_the_fit() -> None:
    fake = world()
    trained = method_of("tempo").step(fake.round(improve=False))
    assert fake.calls == ["measure 2", "fit 2 to [1.0, 0.0]", "store"]
    assert fake.stored["values"].tolist() == [[0.5] * 4] * 2
    assert (trained.samples, trained.unlabeled) == (fake.labeled, None)


def test_a_round_without_an_e_step_uses_the_critic_as_it_is() -> None:
    fake = FakeRound(None, unlabeled(), BEFORE, AFTER)
    trained = method_of("tempo").step(fake.round(label=False))
    assert fake.calls == ["values of 2", "store", "update 2"]
    assert trained.reward.tolist() == pytest.approx([0.1, 0.1])


def test_the_official_choice_of_the_final_value_and_no_range() -> None:
    trained = method_of("tempo", final_value="before_last_token", value_range=None).step(world().round())
    assert trained.reward.tolist() == [0.75, 0.25]


def test_labelled_rows_may_join_the_policys_loss_with_their_verdicts() -> None:
    fake = world()
    trained = method_of("tempo", actor_on_labeled=True, whiten=False).step(fake.round())
    assert trained.samples.keys == ["u0_0", "u0_1", "l0_0", "l1_0"]
    assert trained.reward.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert trained.unlabeled.tolist() == [0, 1]
    assert trained.advantages[2].tolist() == pytest.approx([1 - 0.9] * 3)


def test_synthetic_rows_are_no_unlabelled_rows() -> None:
    rows = FakeSamples(["u0_0", "pad_0"], torch.tensor([[1, 1, 1], [0, 0, 0]]), None, ["7", None], [True, False])
    fake = FakeRound(None, rows, BEFORE, {**AFTER, "pad_0": [0.3] * 4}, fitted=True)
    trained = method_of("tempo").step(fake.round(label=False))
    assert trained.unlabeled.tolist() == [0]
    assert trained.advantages[1].tolist() == [0.0, 0.0, 0.0]


def test_penalties_reach_the_stored_reward_alone() -> None:
    fake = world(penalty=-0.25)
    trained = method_of("tempo", whiten=False).step(fake.round())
    assert trained.reward.tolist() == [1.0, 0.0]
    assert fake.stored["reward"].tolist() == [0.75, -0.25]


def test_a_frozen_critic_is_measured_and_not_fitted() -> None:
    fake = world()
    trained = method_of("frozen_critic").step(fake.round())
    assert fake.calls == ["measure 2", "values of 2", "store", "update 2"]
    assert trained.reward.tolist() == pytest.approx([0.1, 0.1])


# ---------------------------------------------------------------------- rewards that need no critic


def six(texts: list[str | None]) -> FakeSamples:
    return FakeSamples([f"u0_{n}" for n in range(6)], torch.ones(6, 2, dtype=torch.int64), None, texts)


def test_ttrl_lets_all_vote_and_trains_on_the_first() -> None:
    fake = FakeRound(None, six(["1", "2", None, "2", "2", "1"]), has_critic=False)
    method = method_of("ttrl", ttrl__n_votes=6, ttrl__n_train=4)
    trained = method.step(fake.round())
    assert trained.samples.keys == ["u0_0", "u0_1", "u0_2", "u0_3"]
    assert trained.reward.tolist() == [0.0, 1.0, 0.0, 1.0]  # "2" has three votes; no answer, no reward
    assert fake.log.metrics["tempo/unlabeled/majority_ratio"] == 0.5
    std = torch.tensor([0.0, 1.0, 0.0, 1.0]).std()
    assert trained.advantages[1].tolist() == pytest.approx([0.5 / (std + 1e-6).item()] * 2)
    assert method.responses() == 6


def test_the_first_samples_of_each_prompt() -> None:
    assert first_samples(["a", "b", "a", "a", "b"], 2).tolist() == [0, 1, 2, 4]


def test_empo_rewards_the_share_of_equivalent_answers() -> None:
    fake = FakeRound(None, six(["1", "2", None, "2", "2", None]), has_critic=False)
    trained = method_of("empo").step(fake.round())
    assert trained.reward.tolist() == pytest.approx([1 / 6, 3 / 6, 1 / 6, 3 / 6, 3 / 6, 1 / 6])
    assert fake.log.metrics["tempo/unlabeled/clusters"] == 4.0  # "1", "2", and each missing one


def test_empo_compares_the_answers_to_several_prompts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(process.PROCESSES, "2")
    both = threading.Barrier(2, timeout=60)
    monkeypatch.setattr(empo, "equivalent", lambda first, second, **_: both.wait() is None)  # none is the same
    answers = FakeSamples(["a_0", "a_1", "b_0", "b_1"], torch.ones(4, 2, dtype=torch.int64), None, ["1", "2", "3", "4"])
    trained = method_of("empo").step(FakeRound(None, answers, has_critic=False).round())
    assert trained.reward.tolist() == [0.5] * 4


def test_empo_gives_up_on_an_answer_that_gives_no_verdict() -> None:
    asked = []

    def equivalent(first: str, second: str) -> bool | None:
        asked.append((first, second))
        return None if "bomb" in (first, second) else first[0] == second[0]

    answers = ["bomb", "a", "b", "a1", "a2", "b1", "bomb"]
    assert clusters(answers, empo.Patient(equivalent)) == [0, 1, 2, 1, 1, 2, 0]
    assert [pair for pair in asked if "bomb" in pair] == [("bomb", "a"), ("bomb", "b")]


@pytest.mark.parametrize("answers", [3, 8])
def test_at_most_one_comparison_fails_for_each_answer_to_a_prompt(answers: int) -> None:
    asked = []
    compare = empo.Patient(lambda first, second: asked.append((first, second)))
    assert clusters(map(str, range(answers)), compare) == list(range(answers))
    assert len(asked) <= answers


def test_random_rewards_are_the_same_for_seed_and_round() -> None:
    rewards = [
        method_of("random_reward", unlabeled__seed=seed).step(FakeRound(None, unlabeled(), has_critic=False).round())
        for seed in (2, 2, 3)
    ]
    first, again, other = ([round(value, 6) for value in trained.reward.tolist()] for trained in rewards)
    assert first == again != other
    assert all(0 <= value < 1 for value in first)


# ---------------------------------------------------------------------- on labelled questions


def test_ppo_takes_the_values_before_the_update() -> None:
    fake = FakeRound(labeled(), None, BEFORE, AFTER)
    trained = method_of("ppo", whiten=False).step(fake.round())
    assert fake.calls == ["measure 2", "fit 2 to [1.0, 0.0]", "store", "update 2"]
    assert fake.stored["advantages"].tolist() == [[0.5, 0.5, 0.5], [-0.5, -0.5, 0.0]]
    assert trained.unlabeled is None  # nothing of D_U was learnt from, so nothing is told of it


def test_grpo_compares_with_the_group() -> None:
    rows = FakeSamples(["l0_0", "l0_1"], MASK, [1.0, 0.0])
    fake = FakeRound(rows, None, has_critic=False)
    method_of("grpo").step(fake.round())
    assert fake.log.metrics["tempo/labeled/accuracy"] == 0.5
    size = 0.5 / (np.sqrt(0.5) + 1e-6)
    assert fake.stored["advantages"][0].tolist() == pytest.approx([size] * 3)


def test_the_oracle_is_rewarded_with_verdicts_on_unlabelled_rows() -> None:
    rows = FakeSamples(["u0_0", "u0_1"], MASK, [0.0, 1.0], ["7", "8"])
    fake = FakeRound(labeled(), rows, BEFORE, AFTER)
    trained = method_of("oracle", allow_labels_on_unlabeled=True).step(fake.round())
    assert trained.reward.tolist() == [0.0, 1.0]
    assert fake.calls[:2] == ["measure 2", "fit 2 to [1.0, 0.0]"]


def test_rows_without_an_answer_have_no_verdict() -> None:
    with pytest.raises(KeyError):
        method_of("oracle", allow_labels_on_unlabeled=True).step(world().round())


# ---------------------------------------------------------------------- the official code's round


def test_official_takes_stale_values_and_trains_the_critic_on_labelled_rows() -> None:
    fake = world()
    trained = method_of("official", official__filter_groups=False).step(fake.round())
    assert fake.calls == ["measure 2", "values of 4", "train 4", "update 4"]
    assert trained.samples.keys == ["u0_0", "u0_1", "l0_0", "l1_0"]
    assert trained.values[0].tolist() == pytest.approx([0.1] * 4)  # before the update
    assert [row.tolist() for row in fake.stored["critic_mask"]] == [[0, 0, 0], [0, 0], [1, 1, 1], [1, 1]]
    assert [row.sum().item() for row in trained.samples.written["rm_scores"]] == [0.0, 0.0, 1.0, -1.0]
    assert trained.unlabeled.tolist() == [0, 1]


def test_official_leaves_out_prompts_that_are_all_right_or_all_wrong() -> None:
    fake = world()  # one response a prompt: each is all right or all wrong
    trained = method_of("official").step(fake.round())
    assert fake.log.metrics["tempo/labeled/kept"] == 0.0
    assert trained.samples.keys == ["u0_0", "u0_1"]


def test_the_critic_of_official_is_told_of_as_a_probability() -> None:
    values = torch.tensor([[0.0, 0.0, -1.0, 9.0], [0.0, 0.5, 9.0, 9.0]])
    assert method_of("official").probability(values, MASK).tolist() == [0.0, 0.75]
    assert method_of("tempo").probability(values, MASK).tolist() == [9.0, 9.0]
