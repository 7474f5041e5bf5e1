# SPDX-License-Identifier: Apache-2.0
"""The inference engine's probabilities are not the trainer's: verl's weights and rejections, on the policy's batch.

verl's own trainer corrects while it computes advantages, which methods do here. See ``algorithm.rollout_correction``.
"""

from __future__ import annotations

import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from verl import DataProto
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_add_to_batch


def corrects(settings: DictConfig) -> bool:
    """Whether weights or rejections are computed before the update; with ``bypass_mode`` the actor's loss does it."""
    return not settings.bypass_mode and not (settings.rollout_is is None and settings.rollout_rs is None)


def rollout_correction(
    old_log_probs: torch.Tensor,
    rollout_log_probs: torch.Tensor,
    response_mask: torch.Tensor,
    settings: DictConfig,
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """What verl's actor loss reads, and how far the two policies are apart.

    Args:
        old_log_probs: (B, T) log-probabilities by the trainer's policy before the update.
        rollout_log_probs: (B, T) those by the inference engine.
        response_mask: (B, T) int64, 1 on the policy's own tokens; all 0 on synthetic rows, which no metric counts.
        settings: ``algorithm.rollout_correction``.

    Returns:
        ``response_mask`` (B, T), 0 on rejected tokens as well, and with ``rollout_is`` ``rollout_is_weights`` (B, T)
        float, 0 outside the mask; and verl's metrics, ``rollout_corr/*``.
    """
    real = response_mask.any(dim=1)
    columns = {
        "old_log_probs": old_log_probs[real],
        "rollout_log_probs": rollout_log_probs[real],
        "response_mask": response_mask[real],
    }
    data = DataProto(batch=TensorDict(columns, batch_size=int(real.sum())))
    data, metrics = compute_rollout_correction_and_add_to_batch(data, settings)
    found = {}
    for name in ("response_mask", "rollout_is_weights"):
        if name in data.batch:
            found[name] = torch.zeros(response_mask.shape, dtype=data.batch[name].dtype)
            found[name][real] = data.batch[name]
    return found, metrics
