# SPDX-License-Identifier: Apache-2.0
"""Rollout correction in real rounds: the actor's loss reads the weights and the mask, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import traces
from harness import equal

from tempo_verl.algo.jagged import of_rows, pad
from tempo_verl.trainer.port import Port

CORRECTION = "algorithm.rollout_correction"
LIMIT = 2.0
WEIGHTS = [f"{CORRECTION}.rollout_is=token", f"{CORRECTION}.rollout_is_threshold={LIMIT}"]
REJECTIONS = [f"{CORRECTION}.rollout_rs=token_k1", f"{CORRECTION}.rollout_rs_threshold='0.2_3.0'"]
FIELDS = ("old_log_probs", "rollout_log_probs", "rollout_is_weights", "response_mask", "advantages")
RATIOS = torch.tensor([1.0, 0.25, 4.0, 0.5, 1.5])  # pi_old / pi_rollout of the tokens of a response, in turn


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Callable[[torch.Tensor], list[dict[str, Any]]]:
    """``apart(ratios)``: the inference engine's probabilities are off by these. Returns what each update then reads.

    ``after`` is the mask after the update.
    """

    def begin(ratios: torch.Tensor) -> list[dict[str, Any]]:
        correct, update, read = Port._correct_rollout, Port.update_actor, []

        def with_ratios(self, samples, correction, log) -> None:
            old = samples.read("old_log_probs")["old_log_probs"].unbind()
            off = [ratios.log().repeat(len(row))[: len(row)] for row in old]
            samples.write(rollout_log_probs=of_rows([row - ratio for row, ratio in zip(old, off, strict=True)]))
            correct(self, samples, correction, log)
            stored = samples.read(*FIELDS).to_padded_tensor()
            read.append({name: stored[name] for name in FIELDS} | {"own": pad(samples.response_mask).long()})

        def looked_at(self, samples, *args) -> None:
            update(self, samples, *args)
            read[-1]["after"] = samples.read("response_mask")["response_mask"].to_padded_tensor(0)

        monkeypatch.setattr(Port, "_correct_rollout", with_ratios)
        monkeypatch.setattr(Port, "update_actor", looked_at)
        return read

    return begin


def test_weights_of_one_change_nothing(tour, compose, traced, apart) -> None:
    read = apart(torch.ones(1))
    options = [*tour.models, "method=tempo", *traces.COMMON, *traces.METHODS["tempo"], *WEIGHTS, *REJECTIONS]
    found, plain = tour.leg(compose(options), moments=["end"]), traced("tempo")
    for number, fields in enumerate(read, start=1):
        assert torch.equal(fields["rollout_is_weights"], fields["own"].float())
        assert torch.equal(fields["response_mask"], fields["own"])
        for role in ("actor", "critic"):
            assert equal(found.weights_of(number, role, "end"), plain.weights_of(number, role, "end"))
        assert found.metrics[number]["rollout_corr/kl"] == 0.0
    assert len(read) == 2


def test_the_loss_weighs_and_rejects_labelled_tokens_too(tour, compose, apart) -> None:
    read = apart(RATIOS)
    options = ["method=grpo", "actor_rollout_ref.rollout.n=4", "tempo.rounds=1", "tempo.unlabeled.files=null"]
    one_update = ["tempo.labeled.batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=8"]
    config = compose([*tour.models, *options, "critic.model.path=null", *one_update, *WEIGHTS, *REJECTIONS])
    metrics = tour.leg(config, rows=True).metrics[1]

    (fields,) = read
    own = fields["own"].bool()
    ratio = (fields["old_log_probs"] - fields["rollout_log_probs"]).exp()
    torch.testing.assert_close(fields["rollout_is_weights"], ratio.clamp(max=LIMIT) * own)
    kept = own & (1 / ratio > 0.2) & (1 / ratio < 3.0)  # verl's k1 is of the inverse
    assert torch.equal(fields["response_mask"].bool(), kept)
    assert 0 < kept.sum() < own.sum()
    # before the first update the policy's ratio is 1; what is rejected counts as 0 in the mean over all own tokens
    expected = -(fields["advantages"] * fields["rollout_is_weights"])[kept].sum() / own.sum()
    assert metrics["actor/pg_loss"] == pytest.approx(expected.item(), abs=1e-6)
    share = 1 - (kept.sum() / own.sum()).item()
    assert metrics["rollout_corr/rollout_rs_masked_fraction"] == pytest.approx(share, abs=1e-6)
    assert metrics["rollout_corr/rollout_is_max"] == pytest.approx(LIMIT)
    assert torch.equal(fields["after"], fields["own"])  # what verl's metrics count


def test_the_bypass_takes_the_rollouts_probabilities_for_the_old_ones(tour, compose, monkeypatch) -> None:
    update, read = Port.update_actor, []

    def reading(self, samples, *args) -> None:
        update(self, samples, *args)
        read.append(samples.read("old_log_probs", "rollout_log_probs").to_padded_tensor())

    monkeypatch.setattr(Port, "update_actor", reading)
    options = ["actor_rollout_ref.rollout.n=4", "tempo.rounds=1", f"{CORRECTION}.bypass_mode=true"]
    found = tour.leg(compose([*tour.models, *options]), moments=["start", "end"])
    assert torch.equal(read[0]["old_log_probs"], read[0]["rollout_log_probs"])
    assert found.changed(1, "actor")
    assert "tempo/unlabeled/entropy" not in found.metrics[1]  # a pass that was not made
