# SPDX-License-Identifier: Apache-2.0
"""Credit: R = V(x, y_1:T), A_t = R - V(x, y_1:t-1) (TEMPO, arXiv 2604.19295), or R against its group (GRPO)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

# Added to the variance before the square root, as in verl's ``masked_whiten``.
VARIANCE_EPS = 1e-8
# Added to a group's standard deviation, as in verl's GRPO.
GROUP_STD_EPS = 1e-6


def final_value(values: Tensor, response_mask: Tensor, which: str = "after_last_token") -> Tensor:
    """The critic's estimate that the finished response is right, used as the reward on unlabelled data.

    Args:
        values: (B, T+1) float, column t is V(x, y_1:t).
        response_mask: (B, T), 1 on the policy's own tokens.
        which: ``after_last_token``: the column after the last masked-1 token, V(x, y_1:T);
            ``before_last_token``: one column earlier, V(x, y_1:T-1), the official repository's choice.

    Returns:
        (B,) same dtype as ``values``; 0 for rows without any token.

    Raises:
        ValueError: unknown ``which``, or shapes that do not fit.
    """
    if which not in ("after_last_token", "before_last_token"):
        raise ValueError(f"final value must be 'after_last_token' or 'before_last_token', got {which!r}")
    check_shapes(values, response_mask)
    # A leading 0 turns the index of a token into the column after it, and leaves column 0 for empty rows.
    is_token = torch.nn.functional.pad(response_mask.bool(), (1, 0))
    positions = torch.arange(values.shape[1], dtype=torch.int32, device=values.device)  # half the memory of int64
    column = (is_token * positions).amax(dim=1).long()
    empty = column == 0
    if which == "before_last_token":
        column = (column - 1).clamp(min=0)
    return values.gather(1, column[:, None]).squeeze(1).masked_fill(empty, 0)


def clip_values(values: Tensor, value_range: tuple[float, float] | None) -> Tensor:
    """Clip ``values`` (any shape) to ``value_range`` (low, high); None leaves them as they are.

    Raises:
        ValueError: low > high.
    """
    if value_range is None:
        return values
    low, high = value_range
    if low > high:
        raise ValueError(f"value_range must be (low, high) with low <= high, got ({low}, {high})")
    return values.clamp(low, high)


def masked_moments(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and *unbiased* variance (divided by N - 1) of ``x`` over mask == 1, two float64 scalars.

    Float64 makes the variance of equal entries vanish instead of leaving rounding noise for the whitening to blow up.
    Fewer than 2 entries give variance 0, no entry also mean 0. What lies outside the mask (nan included) is ignored.
    """
    mask = mask.bool()
    count = mask.sum()
    x = torch.where(mask, x, 0).double()
    mean = x.sum() / count.clamp(min=1)
    squares = x.sub_(mean).masked_fill_(~mask, 0).square_().sum()  # in place: the largest tensors of a round
    return mean, squares / (count - 1).clamp(min=1)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) over mask == 1, zero elsewhere.

    The variance is the unbiased one, as in verl's ``masked_whiten``; this convention, not the biased one, reproduces
    the official repository's ``em_token`` advantages. Zero variance or fewer than 2 valid entries give zeros.

    Args:
        x: float, any shape.
        mask: same shape, non-zero on the valid entries.
    """
    mean, variance = masked_moments(x, mask)
    whitened = (x - mean) * torch.rsqrt(variance + VARIANCE_EPS)
    return torch.where(mask.bool(), whitened, 0).to(x.dtype)


def advantage(values: Tensor, reward: Tensor, response_mask: Tensor, *, whiten_advantage: bool = True) -> Tensor:
    """A_t = R - V(x, y_1:t-1): the baseline of an action is the value *before* it.

    Args:
        values: (B, T+1) float, column t is V(x, y_1:t).
        reward: (B,) float, R of each response.
        response_mask: (B, T), 1 on the policy's own tokens.
        whiten_advantage: zero mean and unit variance over all valid tokens of the batch.

    Returns:
        (B, T) same dtype as ``values``, zero outside the mask.

    Raises:
        ValueError: shapes that do not fit.
    """
    check_shapes(values, response_mask)
    check_per_row("reward", reward, values)
    credit = torch.where(response_mask.bool(), reward[:, None] - values[:, :-1], 0).to(values.dtype)
    return whiten(credit, response_mask) if whiten_advantage else credit


def group_advantage(
    reward: Tensor, groups: Sequence[Hashable], response_mask: Tensor, sessions: Sequence[Hashable] | None = None
) -> Tensor:
    """(R - mean) / (std + 1e-6) over the responses to one prompt, the same for all tokens (GRPO, arXiv 2402.03300).

    The standard deviation is the unbiased one, and a prompt with one response keeps R itself, both as in verl.

    Args:
        reward: (B,) float, R of each response; the same on all rows of a session.
        groups: (B,) prompt of each response, hashable.
        response_mask: (B, T), 1 on the policy's own tokens.
        sessions: (B,) session of each row: however many rows it has, it is one response. None: every row is its own.

    Returns:
        (B, T) dtype of ``reward``, zero outside the mask.
    """
    valid = response_mask.bool()
    sessions = range(len(reward)) if sessions is None else sessions
    by_prompt: dict[Hashable, dict[Hashable, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, (prompt, session, has_token) in enumerate(zip(groups, sessions, valid.any(dim=1).tolist(), strict=True)):
        if has_token:
            by_prompt[prompt][session].append(row)
    score = torch.zeros_like(reward)
    for outputs in by_prompt.values():
        group = reward[[rows[0] for rows in outputs.values()]]
        mean, std = (group.mean(), group.std()) if len(group) > 1 else (0.0, 1.0)
        rows = [row for of_session in outputs.values() for row in of_session]
        score[rows] = (reward[rows] - mean) / (std + GROUP_STD_EPS)
    return torch.where(valid, score[:, None], 0)


def check_shapes(values: Tensor, response_mask: Tensor) -> None:
    """Raise ValueError unless ``values`` is (B, T+1) for a (B, T) ``response_mask``: verl's T columns are one short."""
    rows, tokens = response_mask.shape
    if values.shape != (rows, tokens + 1):
        raise ValueError(f"values must be (B, T+1) = {(rows, tokens + 1)}, got {tuple(values.shape)}")


def check_per_row(name: str, x: Tensor, values: Tensor) -> None:
    """Raise ValueError unless ``x`` is (B,); a (B, 1) tensor would broadcast to (B, B) without a word."""
    if x.shape != values.shape[:1]:
        raise ValueError(f"{name} must have shape ({values.shape[0]},), got {tuple(x.shape)}")
