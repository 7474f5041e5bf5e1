# SPDX-License-Identifier: Apache-2.0
"""The critic's losses in the form verl's training workers call: micro-batch in, loss and metrics out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from verl.utils.metric import AggregationType, Metric

from tempo_verl.algo.calibration import calibration_loss
from tempo_verl.algo.official import value_loss
from tempo_verl.trainer.batch import final_values_of


def value_calibration_loss(model_output: dict, data: TensorDict, dp_group=None, *, loss_agg_mode: str):
    """Mean squared error between the critic and c(x, y) over the T + 1 response positions.

    verl's own value loss stops at V(x, y_1:T-1) and so never trains the value that TEMPO uses as reward.

    Args:
        model_output: ``values``, jagged (B, prompt + response).
        data: micro-batch with ``responses`` (jagged), ``outcome`` (B, 1) = c(x, y) and ``loss_mask``, jagged
            (B, T + 1): 1 where a value is trained. verl sums that field over the whole mini-batch into
            ``batch_num_tokens``, which makes the loss independent of how the mini-batch is cut.
        loss_agg_mode: ``token-mean`` or ``seq-mean-token-mean``. The latter divides by the rows of the mini-batch as
            verl counts them, synthetic ones included: where rollouts have failed, the loss is that much smaller.

    Returns:
        The loss, scaled so that the data-parallel mean of summed micro-batches is the mini-batch loss; and metrics.
    """
    values = final_values_of(model_output["values"], data["responses"].offsets().diff().tolist())
    mask = data["loss_mask"].to_padded_tensor(0).to(values.dtype)
    outcome = data["outcome"]  # jagged after its way through TransferQueue, with one entry a row
    target = (outcome.values() if outcome.is_nested else outcome.reshape(-1)).to(values.dtype)
    num_positions = max(data["batch_num_tokens"], 1)  # synthetic rows alone have none
    loss = data["dp_size"] * calibration_loss(
        values,
        target,
        mask,
        loss_agg_mode,
        num_positions=num_positions,
        num_sequences=data["global_batch_size"],
    )
    with torch.no_grad():
        mean_value = (values * mask).sum() * data["dp_size"] / num_positions
    metrics = {
        "critic/vf_loss": Metric(value=loss.detach(), aggregation=AggregationType.SUM),
        "critic/vpred_mean": Metric(value=mean_value, aggregation=AggregationType.SUM),
    }
    return loss, metrics


def clipped_value_loss(model_output: dict, data: TensorDict, dp_group=None, *, cliprange_value: float):
    """The official repository's value loss: on the labelled rows of a mixed batch, clipped.

    Args:
        model_output: ``values``, jagged (B, prompt + response).
        data: micro-batch with ``responses``, ``values`` (before the update), ``returns`` and ``loss_mask``, all jagged
            (B, T); the mask is 1 on the tokens of labelled responses.
        cliprange_value: see :func:`tempo_verl.algo.official.value_loss`.

    Returns:
        The loss, scaled as in :func:`value_calibration_loss`; and metrics.
    """
    new_values = final_values_of(model_output["values"], data["responses"].offsets().diff().tolist())[:, :-1]
    mask = data["loss_mask"].to_padded_tensor(0)
    old_values, returns = (data[name].to_padded_tensor(0.0).to(new_values.dtype) for name in ("values", "returns"))
    loss, clipfrac = value_loss(new_values, old_values, returns, mask, mask.bool().any(dim=1), cliprange_value)
    # the mean over this micro-batch becomes its part of the mean over the mini-batch, which may have no labelled row
    share = data["dp_size"] * mask.sum() / max(data["batch_num_tokens"], 1)
    metrics = {
        "critic/vf_loss": Metric(value=(loss * share).detach(), aggregation=AggregationType.SUM),
        "critic/vf_clipfrac": Metric(value=clipfrac * share, aggregation=AggregationType.SUM),
    }
    return loss * share, metrics


@dataclass(frozen=True)
class Loss:
    """A critic loss.

    Attributes:
        build: from the whole configuration, the picklable function that the workers call.
        reads: fields that it reads beside those that every critic pass is sent.
        on_policy_batch: it trains on the policy's batch, which then is in whole mini-batches of the critic as well.
    """

    build: Callable[[DictConfig], Callable]
    reads: frozenset[str] = frozenset()
    on_policy_batch: bool = False


# What a method's ``critic_loss`` may name.
LOSSES = {
    "calibration": Loss(
        lambda config: partial(value_calibration_loss, loss_agg_mode=config.tempo.calibration.loss_agg_mode)
    ),
    "clipped": Loss(
        lambda config: partial(clipped_value_loss, cliprange_value=config.critic.cliprange_value),
        reads=frozenset({"values", "returns"}),
        on_policy_batch=True,
    ),
}
