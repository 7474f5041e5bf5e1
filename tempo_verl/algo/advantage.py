# SPDX-License-Identifier: Apache-2.0
"""Credit: R = V(x, y_1:T), A_t = R - V(x, y_1:t-1) (TEMPO, arXiv 2604.19295), or R against its group (GRPO)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tempo_verl.algo.jagged import BLOCK, Rows, clear_, empty, inside, last_token, spread

if TYPE_CHECKING:
    import numpy.typing as npt
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
    rows, column = Rows.of(values), last_token(response_mask)
    empty = torch.from_numpy(column == 0).to(values.device)
    if which == "before_last_token":
        column = (column - 1).clip(0)
    return rows.flat[torch.from_numpy(rows.offsets[:-1] + column).to(values.device)].masked_fill(empty, 0)


def clip_values(values: Tensor, value_range: tuple[float, float] | None) -> Tensor:
    """Clip ``values`` (any shape, or jagged) to ``value_range`` (low, high); None leaves them as they are.

    Raises:
        ValueError: low > high.
    """
    if value_range is None:
        return values
    low, high = value_range
    if low > high:
        raise ValueError(f"value_range must be (low, high) with low <= high, got ({low}, {high})")
    if not values.is_nested:
        return values.clamp(low, high)
    rows = Rows.of(values)
    clipped = empty(len(rows.flat), values.dtype, values.device)
    return rows.holding(torch.clamp(rows.flat, low, high, out=clipped)).tensor


def masked_moments(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and *unbiased* variance (divided by N - 1) of ``x`` over mask == 1, two float64 scalars.

    Float64 makes the variance of equal entries vanish instead of leaving rounding noise for the whitening to blow up.
    Fewer than 2 entries give variance 0, no entry also mean 0. What lies outside the mask (nan included) is ignored.

    Args:
        x: float, any shape, or jagged.
        mask: the same, non-zero on the valid entries.
    """
    return _moments(_entries(x), _entries(mask).bool())


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) over mask == 1, zero elsewhere.

    The variance is the unbiased one, as in verl's ``masked_whiten``; this convention, not the biased one, reproduces
    the official repository's ``em_token`` advantages. Zero variance or fewer than 2 valid entries give zeros.

    Args:
        x: float, any shape, or jagged.
        mask: the same, non-zero on the valid entries.
    """
    valid = _entries(mask).bool()
    whitened = _whiten_(_entries(x).clone(), valid)
    return Rows.of(x).holding(whitened).tensor if x.is_nested else whitened.reshape(x.shape)


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
    valid, before = Rows.of(response_mask).flat.bool(), Rows.of(values).without_last()
    lengths = before.lengths
    for rows, here in before.blocks():  # in place of the copy that it is
        part = before.flat[here]
        torch.sub(spread(reward[rows], lengths[rows]), part, out=part)
        clear_(part, valid[here])
    return before.holding(_whiten_(before.flat, valid) if whiten_advantage else before.flat).tensor


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
    has_token = (last_token(response_mask) > 0).tolist()
    sessions = range(len(reward)) if sessions is None else sessions
    by_prompt: dict[Hashable, dict[Hashable, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, (prompt, session, some) in enumerate(zip(groups, sessions, has_token, strict=True)):
        if some:
            by_prompt[prompt][session].append(row)
    score = torch.zeros_like(reward)
    for outputs in by_prompt.values():
        group = reward[[rows[0] for rows in outputs.values()]]
        mean, std = (group.mean(), group.std()) if len(group) > 1 else (0.0, 1.0)
        rows = [row for of_session in outputs.values() for row in of_session]
        score[rows] = (reward[rows] - mean) / (std + GROUP_STD_EPS)
    return on_tokens(score, response_mask)


def on_tokens(numbers: Tensor, response_mask: Tensor) -> Tensor:
    """(B, T) each of the (B,) ``numbers`` on the policy's own tokens of its row, zero elsewhere.

    Args:
        response_mask: (B, T), 1 on the policy's own tokens.
    """
    rows = Rows.of(response_mask)
    return rows.holding(clear_(spread(numbers, rows.lengths), rows.flat.bool())).tensor


def _entries(x: Tensor) -> Tensor:
    """(N,) all entries."""
    return (x.values() if x.is_nested else x.reshape(-1)).detach()


def _moments(flat: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`masked_moments`, of (N,) entries, by blocks: float64 would take twice the room of all of them."""
    counts, sums, means, squares = [], [], [], []
    for part, mask in zip(flat.split(BLOCK), valid.split(BLOCK), strict=True):
        entries = inside(part, mask).to(torch.float64, copy=True)
        counts.append(len(entries))
        sums.append(entries.sum())
        means.append(sums[-1] / max(len(entries), 1))
        entries.sub_(means[-1])
        squares.append(torch.dot(entries, entries))
    count = torch.tensor(counts, dtype=torch.float64, device=flat.device)
    total = count.sum()
    mean = torch.stack(sums).sum() / total.clamp(min=1)
    between = count * (torch.stack(means) - mean).square()
    return mean, (torch.stack(squares).sum() + between.sum()) / (total - 1).clamp(min=1)


def _whiten_(flat: Tensor, valid: Tensor) -> Tensor:
    """As :func:`whiten`, of (N,) entries, in place."""
    mean, variance = _moments(flat, valid)
    scale = torch.rsqrt(variance + VARIANCE_EPS)
    for part, mask in zip(flat.split(BLOCK), valid.split(BLOCK), strict=True):
        clear_(part.sub_(mean).mul_(scale), mask)
    return flat


def check_shapes(values: Tensor, response_mask: Tensor) -> None:
    """Raise ValueError unless ``values`` is (B, T+1) for a (B, T) ``response_mask``: verl's T columns are one short."""
    if values.is_nested or response_mask.is_nested:
        both = values.is_nested and response_mask.is_nested
        if not both or not np.array_equal(Rows.of(values).lengths, Rows.of(response_mask).lengths + 1):
            raise ValueError("values must be jagged as response_mask is, with one entry more in each row")
        return
    rows, tokens = response_mask.shape
    if values.shape != (rows, tokens + 1):
        raise ValueError(f"values must be (B, T+1) = {(rows, tokens + 1)}, got {tuple(values.shape)}")


def check_per_row(name: str, x: Tensor | npt.NDArray[Any], values: Tensor) -> None:
    """Raise ValueError unless ``x`` is (B,); a (B, 1) tensor would broadcast to (B, B) without a word."""
    if tuple(x.shape) != (len(values),):
        raise ValueError(f"{name} must have shape ({len(values)},), got {tuple(x.shape)}")
