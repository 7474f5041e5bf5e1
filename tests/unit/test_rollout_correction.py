# SPDX-License-Identifier: Apache-2.0
"""Rollout correction against numbers worked by hand; verl computes it, so its choices are written down here."""

from __future__ import annotations

import math

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.utils.config import omega_conf_to_dataclass

from tempo_verl.config.preflight import check
from tempo_verl.errors import UserError
from tempo_verl.trainer.correction import corrects, rollout_correction

CORRECTION = "algorithm.rollout_correction"
# A response of three own tokens, one of two with a tool's token between, a synthetic row. Ratios pi_old / pi_rollout:
MASK = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 0]])
RATIO = torch.tensor([[1.0, 4.0, 0.5], [0.5, 100.0, 1.5], [9.0, 9.0, 9.0]])
ROLLOUT = torch.full((3, 3), -1.0)


def settings(**changes) -> DictConfig:
    neutral = {"rollout_is": None, "rollout_is_threshold": 2.0, "rollout_is_batch_normalize": False}
    return OmegaConf.create(
        neutral | {"rollout_rs": None, "rollout_rs_threshold": None, "bypass_mode": False} | changes
    )


def found(**changes) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    return rollout_correction(ROLLOUT + RATIO.log(), ROLLOUT, MASK, settings(**changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rollout_is": "token"}, [[1.0, 2.0, 0.5], [0.5, 0.0, 1.5], [0.0] * 3]),  # 4 is cut to the threshold
        ({"rollout_is": "token", "rollout_is_threshold": "0.6_3.0"}, [[1.0, 0.0, 0.0], [0.0, 0.0, 1.5], [0.0] * 3]),
        # products of the own tokens: 1 * 4 * 0.5 = 2 and 0.5 * 1.5 = 0.75
        ({"rollout_is": "sequence"}, [[2.0] * 3, [0.75, 0.0, 0.75], [0.0] * 3]),
        ({"rollout_is": "sequence", "rollout_is_threshold": 1.8}, [[1.8] * 3, [0.75, 0.0, 0.75], [0.0] * 3]),
    ],
)
def test_weights(changes: dict, expected: list[list[float]]) -> None:
    fields, metrics = found(**changes)
    torch.testing.assert_close(fields["rollout_is_weights"], torch.tensor(expected))
    assert torch.equal(fields["response_mask"], MASK)
    weights = torch.tensor(expected)[MASK.bool()]
    assert metrics["rollout_corr/rollout_is_mean"] == pytest.approx(weights.mean().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rollout_rs": "token_k1", "rollout_rs_threshold": "0.6_3.0"}, [[1, 0, 1], [1, 0, 1], [0] * 3]),
        # k2 = log(r)^2 / 2; its mean is .40 in the first row and .16 in the second
        ({"rollout_rs": "seq_mean_k2", "rollout_rs_threshold": 0.2}, [[0, 0, 0], [1, 0, 1], [0] * 3]),
    ],
)
def test_rejections(changes: dict, expected: list[list[int]]) -> None:
    fields, metrics = found(**changes)
    assert fields["response_mask"].tolist() == expected
    assert fields["response_mask"].dtype == MASK.dtype
    assert fields.keys() == {"response_mask"}
    kept = torch.tensor(expected)[MASK.bool()].float().mean().item()
    assert metrics["rollout_corr/rollout_rs_masked_fraction"] == pytest.approx(1 - kept, abs=1e-6)


def test_synthetic_rows_are_in_no_metric() -> None:
    _, metrics = found(rollout_is="token")
    own = RATIO.log()[MASK.bool()]
    assert metrics["rollout_corr/kl"] == pytest.approx(-own.mean().item(), abs=1e-6)
    assert metrics["rollout_corr/rollout_ppl"] == pytest.approx(math.e)  # a row of zeros would count as 1
    assert metrics["rollout_corr/rollout_is_seq_min"] == pytest.approx(1.0, abs=1e-6)


def test_nothing_is_corrected_unless_it_is_asked_for() -> None:
    assert not corrects(settings())
    assert corrects(settings(rollout_is="token"))
    assert corrects(settings(rollout_rs="token_k1", rollout_rs_threshold=2.0))
    assert not corrects(settings(rollout_rs="token_k1", bypass_mode=True))  # the actor's loss does it


# ---------------------------------------------------------------------- settings


def test_no_correction_where_rollout_and_trainer_agree_and_weights_of_tokens_elsewhere(compose) -> None:
    assert compose().algorithm.rollout_correction.rollout_is is None
    for hardware in ("fsdp", "megatron"):
        correction = compose([f"hardware={hardware}"]).algorithm.rollout_correction
        assert (correction.rollout_is, correction.rollout_is_threshold) == ("token", 2.0)
        assert (correction.rollout_rs, correction.bypass_mode) == (None, False)


@pytest.mark.parametrize(
    "overrides",
    [
        [f"{CORRECTION}.rollout_is=token", f"{CORRECTION}.rollout_is_threshold=0.5_5.0"],
        [f"{CORRECTION}.rollout_is=sequence", f"{CORRECTION}.rollout_is_batch_normalize=true"],
        [f"{CORRECTION}.rollout_rs='token_k1,seq_mean_k3'", f"{CORRECTION}.rollout_rs_threshold='0.5_2.0,0.1'"],
        [f"{CORRECTION}.bypass_mode=true"],
        [f"{CORRECTION}.bypass_mode=true", f"{CORRECTION}.rollout_rs=seq_mean_k3",
         f"{CORRECTION}.rollout_rs_threshold=0.1", "actor_rollout_ref.actor.policy_loss.loss_mode=bypass_mode"],
        [f"{CORRECTION}.bypass_mode=true", f"{CORRECTION}.rollout_is=token", f"{CORRECTION}.loss_type=reinforce",
         "actor_rollout_ref.actor.policy_loss.loss_mode=bypass_mode"],
    ],
)  # fmt: skip
def test_accepted(compose, overrides: list[str]) -> None:
    check(compose(overrides))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([f"{CORRECTION}.rollout_is=word"], "Invalid rollout_is: word"),
        ([f"{CORRECTION}.rollout_is=token", f"{CORRECTION}.rollout_is_threshold=0"], "must be positive"),
        ([f"{CORRECTION}.rollout_is=token", f"{CORRECTION}.rollout_is_threshold=null"], "=null must be a number"),
        ([f"{CORRECTION}.rollout_rs=token_k1"], "rollout_rs_threshold must be explicitly provided"),
        ([f"{CORRECTION}.rollout_rs=token_k9", f"{CORRECTION}.rollout_rs_threshold=1"], "token_k9"),
        (
            [f"{CORRECTION}.rollout_is=token", "actor_rollout_ref.rollout.calculate_log_probs=false"],
            "set actor_rollout_ref.rollout.calculate_log_probs=true",
        ),
        (
            [f"{CORRECTION}.bypass_mode=true", "actor_rollout_ref.rollout.calculate_log_probs=false"],
            "algorithm.rollout_correction.bypass_mode needs",
        ),
        (
            [f"{CORRECTION}.bypass_mode=true", f"{CORRECTION}.rollout_rs=token_k1",
             f"{CORRECTION}.rollout_rs_threshold=2"],
            "algorithm.rollout_correction.rollout_rs=token_k1 would have no effect with bypass_mode=true and this loss",
        ),
        (["actor_rollout_ref.actor.policy_loss.loss_mode=bypass_mode"], "is for algorithm.rollout_correction.bypass_m"),
        (
            ["hardware=fsdp", f"{CORRECTION}.bypass_mode=true"],
            "rollout_is=token would have no effect with bypass_mode=true and this loss; set it to null",
        ),
        (
            [f"{CORRECTION}.bypass_mode=true", f"{CORRECTION}.rollout_is=token",
             "actor_rollout_ref.actor.policy_loss.loss_mode=bypass_mode"],
            "would have no effect with bypass_mode=true and loss_type=ppo_clip",
        ),
    ],
)  # fmt: skip
def test_refused(compose, overrides: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        check(compose(overrides))
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_loss_that_corrects_by_itself_is_told_how(compose) -> None:
    rejecting = [f"{CORRECTION}.rollout_rs=token_k1", f"{CORRECTION}.rollout_rs_threshold=2.0"]
    loss = "actor_rollout_ref.actor.policy_loss.loss_mode=bypass_mode"
    config = compose([f"{CORRECTION}.bypass_mode=true", loss, *rejecting])
    OmegaConf.resolve(config)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    log_prob, advantages = ROLLOUT + RATIO.log(), torch.ones(3, 3)
    _, metrics = get_policy_loss_fn("bypass_mode")(
        ROLLOUT, log_prob, advantages, MASK, loss_agg_mode="token-mean", config=actor
    )
    assert metrics["rollout_corr/rollout_rs_masked_fraction"] == pytest.approx(1 / 5)  # 4 is beyond 1/2 to 2
