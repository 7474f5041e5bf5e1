# SPDX-License-Identifier: Apache-2.0
"""Every method on real verl: what it is rewarded for, what it trains, and what it leaves alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from harness import Evidence
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

from tempo_verl.backends import batch_rollout
from tempo_verl.errors import UserError
from tempo_verl.trainer import batch

# float32 forward passes of the same weights in another batch, and what is computed from them
VALUE_TOLERANCE, ADVANTAGE_TOLERANCE = 1e-5, 1e-4
EXAMPLE = Path(__file__).parents[2] / "examples" / "own_method"


@pytest.fixture(scope="module")
def train(tour, compose):
    """``train(method, overrides)``: one round, with the weights before and after it and the rows of the update."""

    def run(method: str, *overrides: str, moments=("start", "end")) -> Evidence:
        options = [*tour.models, "actor_rollout_ref.rollout.n=4", f"method={method}", "tempo.rounds=1", *overrides]
        return tour.leg(compose(options), moments=moments, rows=True)

    return run


def assert_grpo(found: Evidence) -> None:
    """The stored advantages are those of verl's GRPO on the stored rewards."""
    rows = found.rows[1]
    mask = rows["mask"]
    rewards = torch.zeros(mask.shape)
    rewards[torch.arange(len(mask)), torch.tensor(rows["lengths"]) - 1] = torch.tensor(rows["reward"])
    expected, _ = compute_grpo_outcome_advantage(rewards, mask, np.array(rows["prompts"]))
    for row, stored in enumerate(rows["advantages"]):
        assert (stored - expected[row, : len(stored)]).abs().max() < ADVANTAGE_TOLERANCE


# ---------------------------------------------------------------------- TEMPO


@pytest.fixture(scope="module")
def rounds(tour, compose) -> Evidence:
    """Two plain TEMPO rounds."""
    options = [*tour.models, "actor_rollout_ref.rollout.n=4", "tempo.calibration.mini_batch_size=4"]
    config = compose([*options, "tempo.calibration.epochs=2", "tempo.value_range=[-1,1]"])
    return tour.leg(config, moments=["start", "between", "end"], rows=True)


@pytest.mark.parametrize("number", [1, 2])
def test_critic_changes_only_in_the_e_step_and_actor_only_in_the_m_step(rounds: Evidence, number: int) -> None:
    assert "score.weight" in rounds.weights_of(number, "critic", "start")
    assert rounds.changed(number, "critic", "start", "between")
    assert not rounds.changed(number, "critic", "between", "end")
    assert not rounds.changed(number, "actor", "start", "between")
    assert rounds.changed(number, "actor", "between", "end")


@pytest.mark.parametrize("number", [1, 2])
def test_values_are_those_of_the_updated_critic(rounds: Evidence, number: int) -> None:
    used = rounds.tokens(number)["unlabeled_values"]
    updated, stale = (rounds.values(number, moment).clip(-1, 1) for moment in ("between", "start"))
    assert np.abs(used - updated).max() < VALUE_TOLERANCE
    assert np.abs(used - stale).max() > 100 * VALUE_TOLERANCE


@pytest.mark.parametrize("number", [1, 2])
def test_advantages_equal_the_formula(rounds: Evidence, number: int) -> None:
    dump, rows = rounds.tokens(number), rounds.rows[number]
    values, mask = dump["unlabeled_values"].astype(float), dump["unlabeled_mask"].astype(bool)
    last = mask.sum(axis=1)
    reward = values[np.arange(len(values)), last]  # V(x, y_1:T)
    assert np.allclose(reward, dump["unlabeled_reward"], atol=1e-6)
    raw = (reward[:, None] - values[:, :-1])[mask]  # R - V(x, y_1:t-1)
    expected = np.zeros(mask.shape)
    expected[mask] = (raw - raw.mean()) / np.sqrt(raw.var(ddof=1) + 1e-8)
    assert np.abs(expected - dump["unlabeled_advantages"]).max() < ADVANTAGE_TOLERANCE
    for row, stored in enumerate(rows["advantages"]):  # what the actor loss reads
        assert np.abs(stored.numpy() - expected[row, : len(stored)]).max() < ADVANTAGE_TOLERANCE


def test_no_answer_of_an_unlabelled_row_is_on_the_training_path(rounds: Evidence) -> None:
    for rows in rounds.rows.values():
        assert [reward_model["ground_truth"] for reward_model in rows["reward_model"]] == [None] * len(rows["real"])


def test_metrics_are_logged(rounds: Evidence) -> None:
    for number, metrics in rounds.metrics.items():
        dump = rounds.dump(number)
        assert metrics["tempo/labeled/accuracy"] == pytest.approx(dump["labeled_correct"].mean())
        assert metrics["tempo/labeled/gap"] == pytest.approx((dump["labeled_value"] - dump["labeled_correct"]).mean())
        assert ("tempo/labeled/auroc" in metrics) == (0 < dump["labeled_correct"].mean() < 1)
        assert metrics["tempo/unlabeled/reward_mean"] == pytest.approx(dump["unlabeled_reward"].mean(), abs=1e-6)
        assert {
            "tempo/labeled/brier",
            "tempo/labeled/ece",
            "tempo/unlabeled/reward_std",
            "tempo/unlabeled/baseline_error",
            "tempo/unlabeled/advantage_positive",
            "tempo/unlabeled/entropy",
            "tempo/unlabeled/response_length",
            "tempo/unlabeled/distinct_answers",
            "tempo/oracle/accuracy",
            "tempo/time/rollout_s",
            "tempo/time/e_step_s",
            "tempo/time/m_step_s",
        } <= metrics.keys()
        # 8 labelled and 4 unlabelled prompts of 4 samples each: every real row, and no other, is in the dumps
        assert len(dump["labeled_correct"]) == 32
        assert len(dump["unlabeled_reward"]) == 16


def test_a_round_reads_its_critic_twice_and_one_of_e_steps_alone_once(train) -> None:
    # labelled values before the fit, unlabelled ones after it
    found = train("tempo", moments=())
    assert found.critic_passes == {1: 2}
    # nor does it read twice what the rollouts have stored
    assert {name for (name, _), times in found.reads[1].items() if times > 1} == set()
    # nor the entropy, whose mean over the same tokens verl has logged
    read = {name for name, _ in found.reads[1]}
    assert {"responses", "response_mask", "extra_fields", "values"} <= read
    assert "entropy" not in read
    assert found.metrics[1]["tempo/unlabeled/entropy"] == found.metrics[1]["actor/entropy"]
    found = train("tempo", "tempo.calibration.warmup_rounds=1")
    assert found.critic_passes == {1: 1}
    assert found.changed(1, "critic")
    assert not found.changed(1, "actor")
    assert not any(name.startswith(("tempo/unlabeled/reward", "tempo/oracle")) for name in found.metrics[1])


def test_an_e_step_replays_rollouts_of_the_last_rounds(tour, compose) -> None:
    replay = ["tempo.calibration.replay.prompts=6", "tempo.calibration.replay.window=2"]
    batch = ["tempo.labeled.batch_size=4", "tempo.calibration.mini_batch_size=2"]
    n = 4  # responses a prompt
    config = compose([*tour.models, f"actor_rollout_ref.rollout.n={n}", "tempo.rounds=4", *batch, *replay])
    found = tour.leg(config, rows=True)
    fresh = {
        number: {key for key in rows if not any(key in found.fitted[earlier] for earlier in range(1, number))}
        for number, rows in found.fitted.items()
    }
    assert [len(fresh[number]) for number in (1, 2, 3, 4)] == [4 * n] * 4
    replayed = {number: set(rows) - fresh[number] for number, rows in found.fitted.items()}
    # as many as there are, in whole updates of two prompts: none, one round, six prompts' worth of two rounds
    assert [len(replayed[number]) for number in (1, 2, 3, 4)] == [0, 4 * n, 6 * n, 6 * n]
    assert replayed[4] <= fresh[2] | fresh[3]  # round 1 has left the window
    for number, keys in replayed.items():
        assert found.metrics[number]["tempo/labeled/replayed"] == len(keys)
        for key in keys:
            first_seen = next(earlier for earlier in range(1, number) if key in fresh[earlier])
            assert found.fitted[number][key] == found.fitted[first_seen][key]
    assert len(found.dump(4)["labeled_value"]) == 4 * n  # the measured rows are the fresh ones alone


# ---------------------------------------------------------------------- the others


def test_frozen_critic(train, traced) -> None:
    found = train("frozen_critic", "tempo.labeled.files=null")
    assert found.changed(1, "actor")
    assert not found.changed(1, "critic")
    assert "tempo/labeled/auroc" not in found.metrics[1]
    assert "tempo/unlabeled/baseline_error" in found.metrics[1]
    measured = traced("frozen_critic")
    assert not measured.changed(1, "critic")
    assert "tempo/labeled/brier" in measured.metrics[1]


def test_ttrl(traced) -> None:
    found = traced("ttrl")
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
    assert not any(role == "critic" for _, role, _ in found.saved)
    assert found.left_in_queue == set()  # nor are the votes that train nothing


def test_empo(traced) -> None:
    found = traced("empo")
    rows = found.rows[1]
    by_prompt = {prompt: [] for prompt in rows["prompts"]}
    for prompt, info in zip(rows["prompts"], rows["infos"], strict=True):
        by_prompt[prompt].append(info["pred"])
    for prompt, info, reward in zip(rows["prompts"], rows["infos"], rows["reward"], strict=True):
        same = by_prompt[prompt].count(info["pred"]) if info["pred"] else 1
        assert reward == pytest.approx(same / 4)
    assert_grpo(found)
    assert 1.0 <= found.metrics[1]["tempo/unlabeled/clusters"] <= 4.0
    assert not any(role == "critic" for _, role, _ in found.saved)


def test_random_reward(traced) -> None:
    found = traced("random_reward")
    rewards = found.rows[1]["reward"]
    assert all(0.0 <= reward < 1.0 for reward in rewards)
    assert len(set(rewards)) == len(rewards)
    assert_grpo(found)


def test_grpo(traced) -> None:
    found = traced("grpo")
    rows = found.rows[1]
    assert rows["reward"] == [info["acc"] for info in rows["infos"]]
    assert_grpo(found)
    assert 0.0 <= found.metrics[1]["tempo/labeled/accuracy"] <= 1.0


def test_official(train) -> None:
    from tempo_verl.algo.official import em_token_advantage

    found = train("official", "tempo.official.filter_groups=false")
    rows, mask = found.rows[1], found.rows[1]["mask"]
    assert found.changed(1, "actor")
    assert found.changed(1, "critic")
    labeled = torch.tensor([info.get("acc") is not None for info in rows["infos"]])
    assert labeled.sum() == 32
    for info, reward in zip(rows["infos"], rows["reward"], strict=True):
        assert reward == (2 * info["acc"] - 1 if "acc" in info else 0.0)

    values = torch.from_numpy(found.values(1, "start")[:, :-1]).float()  # as it was before the round
    at_the_end = torch.arange(len(mask)), torch.tensor(rows["lengths"]) - 1
    before_the_last = values[at_the_end]
    # what is told of the critic is told of the value that rewards, as a probability
    assert np.sort(found.dump(1)["labeled_value"]) == pytest.approx(
        ((1 + before_the_last[labeled]) / 2).sort().values.numpy(), abs=ADVANTAGE_TOLERANCE
    )
    token_reward = torch.zeros(mask.shape)
    token_reward[at_the_end] = torch.tensor(rows["reward"])
    expected, _ = em_token_advantage(values, token_reward, mask, labeled)
    for row, stored in enumerate(rows["advantages"]):
        valid = mask[row, : len(stored)].bool()  # none in a synthetic row
        assert ((stored - expected[row, : len(stored)])[valid].abs() < ADVANTAGE_TOLERANCE).all()


def test_official_without_a_labelled_prompt_of_both_kinds(train) -> None:
    # one sample a prompt: all right or all wrong, so all labelled rows are filtered out and the critic rests
    found = train("official", "tempo.labeled.n=1")
    assert found.metrics[1]["tempo/labeled/kept"] == 0.0
    assert found.rows[1]["real"].sum() == 16
    assert found.metrics[1]["critic/grad_norm"] == 0.0
    assert found.changed(1, "actor")


def test_the_oracle_is_rewarded_with_the_verdict_on_unlabeled_questions(traced) -> None:
    found = traced("oracle")
    for number in (1, 2):
        reward = found.dump(number)["unlabeled_reward"]
        assert set(np.unique(reward)) <= {0.0, 1.0}
        # the monitor checks the same responses by itself
        assert reward.mean() == found.metrics[number]["tempo/oracle/accuracy"]
        assert None not in [row["ground_truth"] for row in found.rows[number]["reward_model"]]


def test_a_run_whose_verifier_fails_on_everything_is_stopped(tour, train, tiny_task, tmp_path) -> None:
    rows = pq.read_table(tiny_task / "labeled.parquet").to_pylist()
    for row in rows:
        row["reward_model"]["style"] = "os:abort"  # takes no argument
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "labeled.parquet")
    with pytest.raises(UserError) as caught:
        train(
            "tempo",
            f"tempo.labeled.files='{tmp_path / 'labeled.parquet'}'",
            "tempo.verifier.allow=['os:abort']",
            moments=(),
        )
    message = str(caught.value)
    assert message.startswith("32 of 32 labeled responses of round 1 got no verdict, more than tempo.verifier.max_err")
    assert "os:abort raised TypeError" in message
    assert len(message.splitlines()) == 1


def test_a_run_that_waits_for_a_prompt_that_never_ends_is_stopped(train, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(partition: str, keys: list[str], tags: list[dict], fields=None) -> None:
        lost = [fields is None and key.startswith("unlabeled-2-") for key in keys]
        told = [(key, tag) for key, tag, is_lost in zip(keys, tags, lost, strict=True) if not is_lost]
        batch.put(partition, [key for key, _ in told], [tag for _, tag in told], fields)

    monkeypatch.setattr(batch_rollout, "put", put)
    with pytest.raises(UserError, match=r"not ended: 1 \(0 running, 1 not begun\).*=3 s; first: unlabeled-2-\d+ \("):
        train("tempo", "tempo.rollout_timeout=3", moments=())


# ---------------------------------------------------------------------- a user's own


def test_a_method_of_ones_own_trains(train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
    found = train("tempo", "tempo.method=confident:Confident", "+tempo.confident.critic_share=0.25")
    assert found.changed(1, "actor")
    assert found.changed(1, "critic")
    rows, dump = found.rows[1], found.tokens(1)
    answers = [info["pred"] for info in rows["infos"]]
    for row, (prompt, answer) in enumerate(zip(rows["prompts"], answers, strict=True)):
        voters = [other for asked, other in zip(rows["prompts"], answers, strict=True) if asked == prompt]
        share = voters.count(answer) / len(voters) if answer else 0.0
        value = dump["unlabeled_values"][row, rows["lengths"][row]]
        assert dump["unlabeled_reward"][row] == pytest.approx(0.25 * value + 0.75 * share, abs=1e-6)
