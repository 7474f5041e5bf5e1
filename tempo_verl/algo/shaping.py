# SPDX-License-Identifier: Apache-2.0
"""Reward shaping: penalties that know nothing of correctness, added to the policy's reward only if configured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def format_penalty(formatted: Tensor, penalty: float) -> Tensor:
    """``-penalty`` where the answer does not stand where it was asked for.

    Args:
        formatted: (B,) in {0, 1}.

    Returns:
        (B,) float32.
    """
    return -penalty * (1.0 - formatted.float())


def overlong_penalty(lengths: Tensor, max_length: int, buffer: int, penalty: float) -> Tensor:
    """Soft punishment of responses that come close to the limit (DAPO, arXiv 2503.14476, eq. 13).

    0 up to ``max_length - buffer`` tokens, then linearly down to ``-penalty`` at ``max_length``.

    Args:
        lengths: (B,) response lengths in tokens.
        buffer: tokens; 0 turns it off.

    Returns:
        (B,) float32.
    """
    if buffer == 0:
        return torch.zeros(lengths.shape)
    beyond = (lengths.float() - (max_length - buffer)) / buffer
    return -penalty * beyond.clamp(0.0, 1.0)


def length_penalty(lengths: Tensor, max_length: int, penalty: float) -> Tensor:
    """``-penalty`` times the share of ``max_length`` that a response takes.

    Args:
        lengths: (B,) response lengths in tokens.

    Returns:
        (B,) float32.
    """
    return -penalty * lengths.float() / max_length
