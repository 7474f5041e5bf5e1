# SPDX-License-Identifier: Apache-2.0
"""The E-step loss, and measures of how well the critic's values match correctness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from tempo_verl.algo.advantage import check_per_row
from tempo_verl.algo.jagged import Rows, last_token

if TYPE_CHECKING:
    from torch import Tensor

    ArrayLike1D = npt.ArrayLike | Tensor

ECE_BINS = 15
FEWEST_LABELED = 20  # questions on which a probability may be calibrated
FloatArray = npt.NDArray[np.float64]


def position_mask(response_mask: Tensor) -> Tensor:
    """The positions at which the critic is trained: before the response, and after each of the policy's tokens.

    Args:
        response_mask: (B, T), 1 on the policy's own tokens.

    Returns:
        (B, T+1), dtype of ``response_mask``: column 0 is 1 iff the row has any token, column t is mask_t.
    """
    has_token = torch.from_numpy(last_token(response_mask) > 0).to(response_mask.device, response_mask.dtype)
    return Rows.of(response_mask).after(has_token).tensor


def calibration_loss(
    values: Tensor,
    target: Tensor,
    mask: Tensor,
    loss_agg_mode: str = "token-mean",
    *,
    num_positions: int | float | Tensor | None = None,
    num_sequences: int | float | Tensor | None = None,
) -> Tensor:
    """Mean squared error between V at each valid position and the correctness of the response (E-step).

    Args:
        values: (B, T+1) float, column t is V(x, y_1:t).
        target: (B,) float, c(x, y) of each response.
        mask: (B, T+1), see ``position_mask``; or the weight of each position, 0 where nothing is meant.
        loss_agg_mode: ``token-mean``: mean over all valid positions;
            ``seq-mean-token-mean``: mean over non-empty rows of each row's mean.
        num_positions: valid positions of the *whole* batch, or the sum of their weights, for ``token-mean``.
        num_sequences: non-empty rows of the *whole* batch, for ``seq-mean-token-mean``. With the global denominator
            the losses of micro-batches (or of data-parallel ranks) add up exactly to the loss of the whole batch.

    Returns:
        0-d float tensor, differentiable in ``values``; 0 if nothing is valid.

    Raises:
        ValueError: unknown mode, shapes that do not fit, or a global denominator below 1.
    """
    if values.shape != mask.shape:
        raise ValueError(f"values and mask must have the same shape, got {tuple(values.shape)}, {tuple(mask.shape)}")
    check_per_row("target", target, values)
    valid = mask.bool()
    # Half-precision sums lose small terms; torch.where keeps nan in padding out of both the loss and the gradient.
    values = values if values.dtype == torch.float64 else values.float()
    error = torch.where(valid, values - target[:, None], 0).square() * mask
    if loss_agg_mode == "token-mean":
        return error.sum() / _denominator("num_positions", num_positions, mask.sum())
    if loss_agg_mode == "seq-mean-token-mean":
        row_mean = error.sum(dim=1) / valid.sum(dim=1).clamp(min=1)
        return row_mean.sum() / _denominator("num_sequences", num_sequences, valid.any(dim=1).sum())
    raise ValueError(f"loss_agg_mode must be 'token-mean' or 'seq-mean-token-mean', got {loss_agg_mode!r}")


def _denominator(name: str, given: int | float | Tensor | None, local: Tensor) -> int | float | Tensor:
    if given is None:
        return local.clamp(min=1)
    if given < 1:
        raise ValueError(f"{name} counts the whole batch and must be at least 1, got {given}")
    return given


def calibration_metrics(score: ArrayLike1D, correct: ArrayLike1D) -> dict[str, float]:
    """How well a critic's scores agree with correctness.

    Args:
        score: (N,) critic values, as they are (they may leave [0, 1]).
        correct: (N,) 0/1 or bool.

    Returns:
        ``accuracy`` mean c; ``value_mean`` mean V; ``gap`` mean V - c; ``brier`` mean (V - c)^2;
        ``ece`` expected calibration error over 15 equal-width bins of V clipped to [0, 1] (Guo et al. 2017);
        ``auroc`` and ``explained_variance`` 1 - var(c - V) / var(c), both absent when only one class is there;
        ``auroc`` also where all scores are equal, which rank nothing. Nothing at all for empty input.

    Raises:
        ValueError: lengths that differ, non-finite scores, or correctness other than 0 and 1.
    """
    score, correct = _scored(score, correct)
    if not len(score):
        return {}
    error = score - correct
    curve = reliability(score, correct, bins=ECE_BINS)
    metrics = {
        "accuracy": correct.mean(),
        "value_mean": score.mean(),
        "gap": error.mean(),
        "brier": np.square(error).mean(),
        "ece": np.average(np.abs(curve.accuracy - curve.mean_score), weights=curve.count),
    }
    if 0 < correct.mean() < 1:
        if np.ptp(score) > 0:
            from sklearn.metrics import roc_auc_score  # half a second, which reading the settings should not take

            metrics["auroc"] = roc_auc_score(correct, score)
        metrics["explained_variance"] = 1 - error.var() / correct.var()
    return {name: float(value) for name, value in metrics.items()}


@dataclass(frozen=True, eq=False)
class Reliability:
    """Points of a reliability diagram, one per non-empty bin, in ascending order of score."""

    centers: FloatArray  # (K,) middle of each bin
    mean_score: FloatArray  # (K,) mean of the scores in it, clipped to [0, 1]
    accuracy: FloatArray  # (K,) share that is right
    count: npt.NDArray[np.int64]  # (K,) samples in it


def reliability(score: ArrayLike1D, correct: ArrayLike1D, bins: int = 10) -> Reliability:
    """Accuracy against score in equal-width bins of the score clipped to [0, 1]; empty bins are dropped.

    A bin holds its lower edge; the last one holds 1 as well.

    Args:
        score: (N,) critic values.
        correct: (N,) 0/1 or bool.
        bins: number of bins, at least 1.

    Raises:
        ValueError: as ``calibration_metrics``, or fewer than 1 bin.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    score, correct = _scored(score, correct)
    score = score.clip(0, 1)
    member = np.minimum((score * bins).astype(np.int64), bins - 1)
    count = np.bincount(member, minlength=bins)
    used = np.flatnonzero(count)
    count = count[used]
    return Reliability(
        centers=(used + 0.5) / bins,
        mean_score=np.bincount(member, weights=score, minlength=bins)[used] / count,
        accuracy=np.bincount(member, weights=correct, minlength=bins)[used] / count,
        count=count,
    )


def _scored(score: ArrayLike1D, correct: ArrayLike1D) -> tuple[FloatArray, FloatArray]:
    score, correct = _float_array(score), _float_array(correct)
    if score.ndim != 1 or score.shape != correct.shape:
        raise ValueError(f"score and correct must be 1-D of one length, got shapes {score.shape} and {correct.shape}")
    if not np.isfinite(score).all():
        raise ValueError(f"score has {(~np.isfinite(score)).sum()} non-finite entries")
    if not np.isin(correct, (0, 1)).all():
        raise ValueError(f"correct must be 0 or 1, got {np.unique(correct)[:5].tolist()}")
    return score, correct


def _float_array(x: ArrayLike1D) -> FloatArray:
    if isinstance(x, torch.Tensor):
        # numpy has no bfloat16
        x = x.detach().cpu().double().numpy()
    return np.asarray(x, dtype=np.float64)
