# SPDX-License-Identifier: Apache-2.0
"""What each method asks for, and in which order, on examples worked by hand; no verl."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from fake_round import FakeRound, FakeSamples
from fields import method_of

from tempo_verl.algo.jagged import pad
from tempo_verl.errors import UserError
from tempo_verl.methods import Needs, find, known
from tempo_verl.methods.ttrl import first_samples

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
    assert pad(trained.advantages).tolist() == expected
    assert fake.stored["advantages"].tolist() == expected
    assert trained.unlabeled.tolist() == [0, 1]


def test_a_round_of_e_steps_alone_tells_the_values_before_the_fit() -> None:
    fake = world()
    trained = method_of("tempo").step(fake.round(improve=False))
    assert fake.calls == ["measure 2", "fit 2 to [1.0, 0.0]", "store"]
    assert fake.stored["values"].tolist() == [[0.5] * 4, [0.5] * 3 + [0.0]]  # the last one is padding
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
    assert pad(trained.advantages)[2].tolist() == pytest.approx([1 - 0.9] * 3)


def test_synthetic_rows_are_no_unlabelled_rows() -> None:
    rows = FakeSamples(["u0_0", "pad_0"], torch.tensor([[1, 1, 1], [0, 0, 0]]), None, ["7", None], [True, False])
    fake = FakeRound(None, rows, BEFORE, {**AFTER, "pad_0": [0.3] * 4}, fitted=True)
    trained = method_of("tempo").step(fake.round(label=False))
    assert trained.unlabeled.tolist() == [0]
    assert pad(trained.advantages)[1].tolist() == [0.0, 0.0, 0.0]


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


# ---------------------------------------------------------------------- residuals of labelled rows


def test_tempo_pp_rewards_labelled_rows_with_what_the_critic_got_wrong_before_it_saw_them() -> None:
    fake = world()
    trained = method_of("tempo_pp", whiten=False).step(fake.round())
    assert fake.calls == ["measure 2", "fit 2 to [1.0, 0.0]", "values of 4", "store", "update 4"]
    assert fake.log.phases == ["e_step", "m_step"]
    assert trained.samples.keys == ["u0_0", "u0_1", "l0_0", "l1_0"]
    assert trained.unlabeled.tolist() == [0, 1]
    assert trained.reward.tolist() == [1.0, 0.0, 0.5, -0.5]  # V(x, y_1:T); c - .5
    of_unlabeled = [[1 - 0.5, 1 - 0.5, 1 - 0.75], [0 - 0.5, 0 - 0.25, 0.0]]  # as TEMPO's
    assert fake.stored["advantages"].tolist() == [*of_unlabeled, [0.5] * 3, [-0.5, -0.5, 0.0]]
    assert fake.log.metrics["tempo/labeled/residual"] == 0.0


def test_every_stream_counts_as_one_mean_whatever_its_size() -> None:
    rows = FakeSamples(["u0_0", "u0_1", "u1_0", "u1_1"], torch.ones(4, 3, dtype=torch.long), None, ["7"] * 4)
    after = AFTER | {key: [0.5] * 4 for key in rows.keys}
    fake = FakeRound(labeled(), rows, BEFORE, after)
    method_of("tempo_pp", whiten=False, tempo_pp__weight=0.5).step(fake.round())
    assert fake.stored["advantages"][4].tolist() == [0.5 * (4 / 2) * 0.5] * 3


def test_tempo_pp_without_weight_is_tempo() -> None:
    ours, theirs = world(penalty=-0.25), world(penalty=-0.25)
    method_of("tempo_pp", tempo_pp__weight=0.0).step(ours.round())
    method_of("tempo").step(theirs.round())
    assert ours.calls == theirs.calls
    assert torch.equal(ours.stored["advantages"], theirs.stored["advantages"])
    assert torch.equal(ours.stored["reward"], theirs.stored["reward"])


def test_tempo_pp_without_labelled_rows_is_tempo() -> None:
    fake = FakeRound(None, unlabeled(), BEFORE, AFTER)
    method_of("tempo_pp").step(fake.round(label=False))
    assert fake.calls == ["values of 2", "store", "update 2"]


def test_penalties_are_for_unlabelled_rows() -> None:
    """A verdict has its penalty, too."""
    fake = world(penalty=-0.25)
    method_of("tempo_pp", whiten=False).step(fake.round())
    assert fake.stored["reward"].tolist() == [0.75, -0.25, 0.5, -0.5]
    fake = world(penalty=-0.25)
    method_of("tempo_pp", whiten=False, tempo_pp__weight=0.0, tempo_pp__verdict=1.0).step(fake.round())
    assert fake.stored["reward"].tolist() == [0.75, -0.25, 0.75, -0.25]


def test_the_critic_may_be_fitted_last_so_that_both_streams_are_judged_by_the_same() -> None:
    fake = world()
    trained = method_of("tempo_pp", whiten=False, tempo_pp__fit="last").step(fake.round())
    assert fake.calls == ["measure 2", "values of 4", "store", "update 4", "fit 2 to [1.0, 0.0]"]
    assert trained.reward.tolist() == pytest.approx([0.1, 0.1, 0.5, -0.5])
    fake = world()
    method_of("tempo_pp", tempo_pp__fit="last").step(fake.round(improve=False))
    assert fake.calls == ["measure 2", "store", "fit 2 to [1.0, 0.0]"]


def test_residuals_after_the_fit() -> None:
    fake = world()
    trained = method_of("tempo_pp", whiten=False, tempo_pp__residual="after_fit").step(fake.round())
    assert fake.calls[:3] == ["measure 2", "fit 2 to [1.0, 0.0]", "values of 2"]
    assert trained.reward[2:].tolist() == pytest.approx([1 - 0.9, 0 - 0.2])


def test_the_true_reward_in_place_of_the_residual() -> None:
    fake = world()
    trained = method_of("tempo_pp", whiten=False, actor_on_labeled=True, tempo_pp__weight=0.0).step(fake.round())
    assert trained.reward[2:].tolist() == [1.0, 0.0]
    assert pad(trained.advantages)[2].tolist() == pytest.approx([1 - 0.9] * 3)


def test_the_true_reward_beside_the_residual() -> None:
    fake = world()
    trained = method_of("tempo_pp", whiten=False, actor_on_labeled=True).step(fake.round())
    # (c - .5) + (c - .9) for the first, by the critic before and after the fit
    assert pad(trained.advantages)[2].tolist() == pytest.approx([0.5 + 0.1] * 3)
    assert pad(trained.advantages)[3].tolist() == pytest.approx([-0.5 - 0.2] * 2 + [0.0])


def test_confident_false_positives_count_more_in_the_e_step() -> None:
    fake = world()
    method_of("tempo_pp", tempo_pp__false_positives=2.0).step(fake.round())
    assert fake.calls[1] == "fit 2 to [1.0, 0.0], weighed [1.0, 2.0]"  # wrong, and V = .5


def many(score: list[float], correct: list[float]) -> tuple[FakeSamples, dict[str, list[float]]]:
    keys = [f"l{row}_0" for row in range(len(score))]
    rows = FakeSamples(keys, torch.ones(len(keys), 1, dtype=torch.long), correct, ["7"] * len(keys))
    return rows, dict(zip(keys, [[0.5, value] for value in score], strict=True))


def tuned(**options):
    """Of 20 labelled responses with V = .9 half are right, of 20 with V = .1 one in ten: the slope is .5."""
    correct = [float(row % 2) for row in range(20)] + [float(row % 10 == 0) for row in range(20)]
    rows, before = many([0.9] * 20 + [0.1] * 20, correct)
    asked = FakeSamples(["u0_0", "u0_1"], torch.ones(2, 1, dtype=torch.long), None, ["7", "8"])
    values = before | {"u0_0": [0.5, 0.9], "u0_1": [0.5, 0.1]}
    fake = FakeRound(rows, asked, values, values)
    return fake, method_of("tempo_pp", whiten=False, **options).step(fake.round())


def test_a_critic_is_trusted_as_far_as_its_values_are_right() -> None:
    fake, trained = tuned(tempo_pp__tuned=True)
    assert fake.log.metrics["tempo/labeled/slope"] == pytest.approx(0.5)
    assert trained.reward[2:4].tolist() == pytest.approx([0 - 0.45, 1 - 0.45])  # c - .5 V
    credit = pad(trained.advantages)[:, 0]
    assert credit[:2].tolist() == pytest.approx([0.5 * 0.4, 0.5 * -0.4])
    # two unlabelled responses to 40 labelled ones; the baseline has what the residual lacks
    assert credit[2].item() == pytest.approx(2 / 40 * (0 - 0.45 - 0.5 * 0.5))


def test_a_reward_that_labels_have_corrected() -> None:
    _, trained = tuned(tempo_pp__reward="corrected")
    assert trained.reward[:2].tolist() == pytest.approx([0.5, 0.1], abs=0.06)
    assert trained.reward[2:4].tolist() == pytest.approx([0 - 0.5, 1 - 0.5], abs=0.06)


def test_votes_beside_the_critic() -> None:
    """Each labelled prompt has one response, so votes say nothing there, and get no say."""
    _, fused = tuned(tempo_pp__reward="fused")
    _, corrected = tuned(tempo_pp__reward="corrected")
    assert fused.reward.tolist() == pytest.approx(corrected.reward.tolist(), abs=1e-3)


def test_a_response_is_as_good_as_its_worst_step() -> None:
    trained = method_of("tempo_pp", tempo_pp__reward="lowest", tempo_pp__weight=0.0).step(world().round())
    assert trained.reward.tolist() == [0.5, 0.0]


def test_wrong_may_be_trusted_more_than_right() -> None:
    fake = world()
    method_of("tempo_pp", whiten=False, tempo_pp__positive=0.5, tempo_pp__weight=0.0).step(fake.round())
    assert fake.stored["advantages"].tolist() == [[0.25, 0.25, 0.125], [-0.5, -0.25, 0.0]]


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
    assert pad(trained.advantages)[1].tolist() == pytest.approx([0.5 / (std + 1e-6).item()] * 2)
    assert method.responses() == 6


def test_the_first_samples_of_each_prompt() -> None:
    assert first_samples(["a", "b", "a", "a", "b"], 2).tolist() == [0, 1, 2, 4]


def test_empo_rewards_the_share_of_equivalent_answers() -> None:
    fake = FakeRound(None, six(["1", "2", None, "2", "2", None]), has_critic=False)
    trained = method_of("empo").step(fake.round())
    assert trained.reward.tolist() == pytest.approx([1 / 6, 3 / 6, 1 / 6, 3 / 6, 3 / 6, 1 / 6])
    assert fake.log.metrics["tempo/unlabeled/clusters"] == 4.0  # "1", "2", and each missing one


@pytest.mark.parametrize("method", ["ttrl", "empo"])
def test_spellings_of_one_answer_agree(method: str) -> None:
    half = six(["1/2", "0.5", r"\frac{2}{4}", "3", "3", r"50\%"])
    options = {"ttrl__n_votes": 6, "ttrl__n_train": 6} if method == "ttrl" else {}
    trained = method_of(method, **options).step(FakeRound(None, half, has_critic=False).round())
    same, other = (1, 0) if method == "ttrl" else (4 / 6, 2 / 6)
    assert trained.reward.tolist() == pytest.approx([same, same, same, other, other, same])


def test_random_rewards_are_the_same_for_seed_and_round() -> None:
    rewards = [
        method_of("random_reward", unlabeled__seed=seed).step(FakeRound(None, unlabeled(), has_critic=False).round())
        for seed in (2, 2, 3)
    ]
    first, again, other = ([round(value, 6) for value in trained.reward.tolist()] for trained in rewards)
    assert first == again != other
    assert all(0 <= value < 1 for value in first)


def trapo(memory: dict[str, list[list[float]]], texts: list[str], **options):
    """Two labelled responses, one right, and four responses to each of two questions."""
    keys = [f"u{question}_{n}" for question in range(2) for n in range(4)]
    rows = FakeSamples(keys, torch.ones(8, 3, dtype=torch.int64), None, texts)
    method = method_of("trapo", **options)
    method.memory.load_state_dict(memory)
    fake = FakeRound(FakeSamples(["l0_0", "l0_1"], MASK, [1.0, 0.0]), rows, has_critic=False)
    return fake, method, method.step(fake.round())


LEARNT = {"0": [[0.25, 0.1], [0.5, 0.3]], "1": [[0.75, 0.1], [0.5, 0.3]]}  # as D_L is; the other way round


def test_trapo_trains_on_labelled_rows_and_on_questions_that_are_learnt_like_them() -> None:
    fake, method, trained = trapo(LEARNT, ["7", "7", "7", "8", "7", "8", "9", "9"], trapo__warmup=3)
    assert trained.samples.keys == ["l0_0", "l0_1", "u0_0", "u0_1", "u0_2", "u0_3"]
    assert trained.unlabeled.tolist() == [2, 3, 4, 5]
    assert trained.reward.tolist() == [1, 0, 1, 1, 1, 0]
    assert method.memory.visits[0][-1] == (0.75, 0.5)
    assert fake.log.metrics["tempo/unlabeled/kept"] == 0.5
    std = torch.tensor([1.0, 1.0, 1.0, 0.0]).std().item()
    assert pad(trained.advantages)[2].tolist() == pytest.approx([0.25 / (std + 1e-6)] * 3)


def test_trapo_begins_with_labelled_rows_alone() -> None:
    _, method, trained = trapo(LEARNT, ["7"] * 8, trapo__warmup=4)
    assert (trained.samples.keys, trained.unlabeled) == (["l0_0", "l0_1"], None)
    assert [method.memory.count(question) for question in (0, 1)] == [3, 3]


def test_a_tie_has_no_majority() -> None:
    _, method, trained = trapo(LEARNT, ["7", "7", "8", "8", "9", "9", "9", "9"], trapo__warmup=3, trapo__top=1.0)
    assert trained.reward.tolist() == [1, 0, *[0] * 4, *[1] * 4]
    assert method.memory.visits[0][-1] == (0.0, 0.5)


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
    with pytest.raises(UserError, match="no verdict"):
        method_of("oracle", allow_labels_on_unlabeled=True).step(world().round())


# ---------------------------------------------------------------------- the official code's round


def test_official_takes_stale_values_and_trains_the_critic_on_labelled_rows() -> None:
    fake = world()
    trained = method_of("official", official__filter_groups=False).step(fake.round())
    assert fake.calls == ["measure 2", "values of 4", "train 4", "update 4"]
    assert trained.samples.keys == ["u0_0", "u0_1", "l0_0", "l1_0"]
    assert pad(trained.values)[0].tolist() == pytest.approx([0.1] * 4)  # before the update
    assert [row.tolist() for row in fake.stored["critic_mask"]] == [[0, 0, 0], [0, 0], [1, 1, 1], [1, 1]]
    assert [row.sum().item() for row in trained.samples.written["rm_scores"].unbind()] == [0.0, 0.0, 1.0, -1.0]
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


# ---------------------------------------------------------------------- sessions with several outputs


def of_outputs(keys: list[str], **columns) -> FakeSamples:
    """Rows of two tokens, those that end with a dash synthetic."""
    genuine = [not key.endswith("-") for key in keys]
    mask = torch.tensor([[1, 1] if real else [0, 0] for real in genuine])
    return FakeSamples([key.rstrip("-") for key in keys], mask, genuine=genuine, **columns)


# A session of two outputs, one of one and one of three, in an order that balancing may have made; a synthetic row.
SPLIT = ["u0_0_1", "u0_1_0", "u0_2_0", "u0_0_0", "u0_2_2", "u0_2_1", "pad_0_0-"]
FINAL = {"u0_0_1": 0.9, "u0_1_0": 0.4, "u0_2_0": 0.6, "u0_0_0": 0.1, "u0_2_2": 0.2, "u0_2_1": 0.7, "pad_0_0": 0.3}
OF_SESSION = [0.9, 0.4, 0.2, 0.9, 0.2, 0.2, 0.0]  # the value after the session's last output, 0 on a synthetic row
AFTER_SPLIT = {key: [0.5, 0.25, final] for key, final in FINAL.items()}
ANSWERED = ["7", "8", "7", "7", "7", "7", None]  # verl writes a session's answer on each of its outputs


def split(texts: list[str | None] = ANSWERED, correct: list[float] | None = None) -> FakeSamples:
    return of_outputs(SPLIT, texts=list(texts), correct=correct)


@pytest.mark.parametrize("name", ["tempo", "frozen_critic"])
def test_the_value_after_the_last_output_rewards_all_outputs(name: str) -> None:
    fake = FakeRound(None, split(), AFTER_SPLIT, AFTER_SPLIT)
    trained = method_of(name, whiten=False).step(fake.round(label=False))
    assert trained.reward.tolist() == pytest.approx(OF_SESSION)
    expected = [pytest.approx([r - 0.5, r - 0.25]) for r in OF_SESSION[:-1]] + [[0.0, 0.0]]
    assert pad(trained.advantages).tolist() == expected
    assert trained.unlabeled.tolist() == [0, 1, 2, 3, 4, 5]


def test_the_verdict_on_a_session_is_the_target_of_all_its_outputs() -> None:
    rows = of_outputs(["l0_0_0", "l0_0_1", "l1_0_0"], correct=[1.0, 1.0, 0.0])
    values = {key: [0.5, 0.5, 0.5] for key in rows.keys} | AFTER_SPLIT
    for name in ("tempo", "oracle", "ppo"):
        fake = FakeRound(rows, split(correct=[0.0] * 7), values, values)
        method_of(name, allow_labels_on_unlabeled=name == "oracle").step(fake.round())
        assert fake.calls[1] == "fit 3 to [1.0, 1.0, 0.0]"


def test_labelled_sessions_may_join_the_policys_loss() -> None:
    rows = of_outputs(["l0_0_0", "l0_0_1", "l1_0_0"], correct=[1.0, 1.0, 0.0])
    values = {key: [0.5, 0.25, 0.8] for key in rows.keys} | AFTER_SPLIT
    fake = FakeRound(rows, split(), values, values)
    trained = method_of("tempo", actor_on_labeled=True).step(fake.round())
    assert trained.reward.tolist() == pytest.approx([*OF_SESSION, 1.0, 1.0, 0.0])
    assert trained.unlabeled.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_session_has_one_vote_and_trains_with_all_its_outputs() -> None:
    # by rows "7" would have one vote more than "8"; by sessions it has one less
    keys = ["u0_0_0", "u0_0_1", "u0_0_2", "u0_0_3", "u0_1_0", "u0_1_1", "u0_2_0", "u0_2_1"]
    fake = FakeRound(None, of_outputs(keys, texts=["7"] * 4 + ["8"] * 4), has_critic=False)
    trained = method_of("ttrl", ttrl__n_votes=3, ttrl__n_train=2).step(fake.round())
    assert trained.samples.keys == keys[:6]
    assert trained.reward.tolist() == [0.0] * 4 + [1.0] * 2
    assert fake.log.metrics["tempo/unlabeled/majority_ratio"] == pytest.approx(2 / 3)
    size = 0.5 / (np.sqrt(0.5) + 1e-6)  # of rewards 0 and 1, whatever their numbers of outputs
    assert pad(trained.advantages)[:, 0].tolist() == pytest.approx([-size] * 4 + [size] * 2)


def test_a_session_is_in_its_cluster_once() -> None:
    fake = FakeRound(None, split(), has_critic=False)
    fake.unlabeled = fake.unlabeled.rows(np.arange(6))  # as drawn: no synthetic row
    trained = method_of("empo").step(fake.round())
    assert trained.reward.tolist() == pytest.approx([2 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert fake.log.metrics["tempo/unlabeled/clusters"] == 2.0


def test_a_random_reward_is_drawn_once_a_session() -> None:
    alone = of_outputs(["u0_0_1", "u0_1_0", "u0_2_2"], texts=["7"] * 3)
    one, several = (
        method_of("random_reward").step(FakeRound(None, rows, has_critic=False).round())
        for rows in (alone, split().rows(np.arange(6)))
    )
    drawn = dict(zip(one.samples.sessions, one.reward.tolist(), strict=True))
    assert several.reward.tolist() == [drawn[session] for session in several.samples.sessions]


def test_a_group_counts_a_session_once() -> None:
    rows = of_outputs(["l0_0_0", "l0_0_1", "l0_0_2", "l0_1_0", "pad_0_0-"], correct=[1.0, 1.0, 1.0, 0.0, 1.0])
    fake = FakeRound(rows, None, has_critic=False)
    method_of("grpo").step(fake.round())
    assert fake.log.metrics["tempo/labeled/accuracy"] == 0.5
    size = 0.5 / (np.sqrt(0.5) + 1e-6)
    assert fake.stored["advantages"][:, 0].tolist() == pytest.approx([size, size, size, -size, 0.0])


def test_the_oracles_verdicts_and_ppos_are_the_sessions() -> None:
    verdicts = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    fake = FakeRound(None, split(correct=verdicts), AFTER_SPLIT, AFTER_SPLIT)
    trained = method_of("oracle", allow_labels_on_unlabeled=True).step(fake.round(label=False))
    assert trained.reward.tolist() == verdicts

    fake = FakeRound(split(correct=verdicts), None, AFTER_SPLIT, AFTER_SPLIT)
    method_of("ppo", whiten=False).step(fake.round())
    assert fake.stored["advantages"][:6, 0].tolist() == [0.5, -0.5, -0.5, 0.5, -0.5, -0.5]


@pytest.mark.parametrize("kind", ["em_token", "em"])
def test_official_rewards_all_outputs_of_a_session_alike(kind: str) -> None:
    rows = of_outputs(["l0_0_0", "l0_0_1", "l0_1_0"], correct=[1.0, 1.0, 0.0])
    values = {key: [0.5, 0.0, 0.0] for key in rows.keys} | {key: [0.5, final, 0.0] for key, final in FINAL.items()}
    fake = FakeRound(rows, split().rows(np.arange(6)), values, values)
    trained = method_of("official", official__advantage=kind).step(fake.round())
    assert fake.log.metrics["tempo/labeled/kept"] == 1.0
    assert trained.reward[:6].tolist() == pytest.approx(OF_SESSION[:6])  # V(x, y_1:T-1) of the last output
    assert [row.sum().item() for row in trained.samples.written["rm_scores"].unbind()] == [0.0] * 6 + [1.0, 1.0, -1.0]
    reward = torch.tensor([*OF_SESSION[:6], 1.0, 1.0, -1.0])
    if kind == "em":
        once = reward[[0, 1, 2]]  # a row of each session
        expected = (reward[:6] - once.mean()) / (once.std() + 1e-6)
        assert pad(trained.advantages)[:6, 0].tolist() == pytest.approx(expected.tolist())
        assert pad(trained.advantages)[6:, 0].tolist() == pytest.approx([2**-0.5] * 2 + [-(2**-0.5)], abs=1e-5)
    else:
        credit = reward[:, None] - torch.tensor([values[key][:2] for key in trained.samples.keys])
        expected = (credit - credit.mean()) / (credit.var() + 1e-8).sqrt()
        torch.testing.assert_close(pad(trained.advantages), expected)
