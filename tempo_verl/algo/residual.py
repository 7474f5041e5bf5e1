# SPDX-License-Identifier: Apache-2.0
"""Credit from labels and from a critic together: prediction-powered inference (Angelopoulos et al., arXiv 2301.09633)
applied to a policy gradient.

A critic's reward on D_U has a bias, E[grad log pi (c - R)], which D_L can measure where D_L is like D_U. Labelled rows
with the *residual* c - R as their reward, and 0 as their baseline, add it back. Then the gradient is that of the true
reward whatever the critic says; a good critic only makes it less noisy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from tempo_verl.algo.advantage import VARIANCE_EPS, check_per_row, check_shapes, masked_moments
from tempo_verl.algo.jagged import Rows, clear_, converted, spread

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

WHITENING = ("apart", "joint", "off")


def residual_advantage(
    values: Tensor,
    reward: Tensor,
    response_mask: Tensor,
    labeled: npt.NDArray[np.bool_],
    *,
    weight: float = 1.0,
    trust: float = 1.0,
    positive: float = 1.0,
    labeled_baseline: float = 0.0,
    whitening: str = "apart",
) -> Tensor:
    """``trust`` (R - V(x, y_1:t-1)) on unlabelled rows, ``weight`` times the residual on labelled ones.

    Args:
        values: (B, T+1) float, column t is V(x, y_1:t).
        reward: (B,) float, R of an unlabelled row; of a labelled one the residual c - R, or another c - k R.
        response_mask: (B, T), 1 on the policy's own tokens.
        labeled: (B,) bool.
        weight: of a labelled row. For the mean over labelled responses to count ``w`` times the mean over unlabelled
            ones it is w times the number of unlabelled responses over that of labelled ones.
        trust: of the critic on D_U, after whitening.
        positive: factor of positive advantages on D_U, after whitening.
        labeled_baseline: how much of V(x, y_1:t-1) labelled rows have as their baseline: 1 - k for a reward c - k R.
        whitening: ``apart``: both divided by the standard deviation of the unlabelled tokens, the unlabelled ones
            centred; ``joint``: both centred and divided by what all tokens have, which mixes their means; ``off``.

    Returns:
        (B, T) same dtype as ``values``, zero outside the mask.

    Raises:
        ValueError: unknown ``whitening``, or shapes that do not fit.
    """
    if whitening not in WHITENING:
        raise ValueError(f"whitening must be one of {', '.join(WHITENING)}, got {whitening!r}")
    check_shapes(values, response_mask)
    check_per_row("reward", reward, values)
    check_per_row("labeled", labeled, values)
    before, valid = Rows.of(values).without_last(), Rows.of(response_mask).flat.bool()
    of_labeled = spread(torch.from_numpy(labeled), before.lengths)
    credit = spread(reward, before.lengths) - torch.where(of_labeled, labeled_baseline, 1.0) * before.flat
    credit = clear_(torch.where(of_labeled, weight, 1.0) * credit, valid)
    if whitening != "off":
        mean, variance = masked_moments(credit, valid & ~of_labeled if whitening == "apart" else valid)
        shift = torch.where(of_labeled, 0.0, mean.to(credit.dtype)) if whitening == "apart" else mean
        credit = clear_(credit.sub_(shift).mul_(torch.rsqrt(variance + VARIANCE_EPS)), valid)
    factor = torch.where(credit > 0, trust * positive, trust)
    return before.holding(converted(torch.where(of_labeled, credit, factor * credit), values.dtype)).tensor


def lowest_value(values: Tensor, response_mask: Tensor) -> Tensor:
    """The lowest V(x, y_1:t) after any of the policy's own tokens: a response is as good as its worst step (PURE's
    min-form credit, arXiv 2504.15275).

    Args:
        values: (B, T+1) float, column t is V(x, y_1:t).
        response_mask: (B, T), 1 on the policy's own tokens.

    Returns:
        (B,) same dtype as ``values``; 0 for rows without any token.
    """
    check_shapes(values, response_mask)
    rows, mask = Rows.of(values), Rows.of(response_mask)
    after = rows.last(mask.lengths)
    hidden = after.holding(torch.where(mask.flat.bool(), after.flat, torch.inf))
    found = torch.from_numpy(hidden.reduce(np.minimum, np.inf)).to(values.dtype)
    return torch.where(torch.isinf(found), 0, found)
