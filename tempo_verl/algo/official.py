# SPDX-License-Identifier: Apache-2.0
"""The official TEMPO repository's advantages and value loss, for the ``official`` preset.

Where it differs from ``tempo_verl.algo.advantage`` and ``calibration``: labelled and unlabelled rows share one batch,
labelled rows keep their true reward and enter the actor loss, whitening is joint, and R is V(x, y_1:T-1).

Here ``values`` are verl's (B, T) columns, aligned with the actions: column t-1 is b_t = V(x, y_1:t-1). A row whose
mask is all 0 takes part in no statistic. ``is_labeled`` is (B,) or (B, 1), 0/1 or bool, a tensor, array or list. The
advantages take padded tensors and jagged ones; the loss is for the small padded batches of a worker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from tempo_verl.algo.advantage import VARIANCE_EPS, group_advantage, masked_moments, on_tokens
from tempo_verl.algo.jagged import Rows, clear_, converted, last_token, spread, zeros

if TYPE_CHECKING:
    from torch import Tensor

    Flags = Tensor | npt.ArrayLike
    Ids = Tensor | npt.NDArray[np.generic] | Sequence[Hashable]


def em_token_advantage(
    values: Tensor,
    token_level_rewards: Tensor,
    response_mask: Tensor,
    is_labeled: Flags,
    *,
    final: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``em_token``: R - b_t, whitened jointly over the valid tokens of labelled and unlabelled rows.

    Args:
        values: (B, T) float, b_t.
        token_level_rewards: (B, T) float; a labelled row's R is its sum.
        response_mask: (B, T), 1 on the policy's own tokens.
        is_labeled: (B,).
        final: (B,) R of unlabelled rows; by default the last valid entry of their own ``values``.

    Returns:
        advantages: (B, T). Entries outside the mask are *not* zero: like the official code, which does not mask after
            whitening, they hold the whitened value of a zero advantage. The actor loss masks them.
        returns: (B, T), R on valid tokens, zero elsewhere.
    """
    rows, valid = Rows.of(values), Rows.of(response_mask).flat.bool()
    returns = on_tokens(_reward(values, token_level_rewards, response_mask, is_labeled, final), response_mask)
    credit = clear_(Rows.of(returns).flat - rows.flat, valid)
    mean, variance = masked_moments(credit, valid)
    credit = credit.sub_(mean).mul_(torch.rsqrt(variance + VARIANCE_EPS))
    return rows.holding(converted(credit, values.dtype)).tensor, returns


def em_outcome_advantage(
    values: Tensor,
    token_level_rewards: Tensor,
    response_mask: Tensor,
    is_labeled: Flags,
    uid: Ids,
    *,
    final: Tensor | None = None,
    sessions: Sequence[Hashable] | None = None,
) -> tuple[Tensor, Tensor]:
    """``em``: GRPO over each prompt's responses, with the final value as the reward of unlabelled rows.

    Unlike ``em_token`` it clamps that value to [-1, 1], and a prompt with one response gets advantage 0.

    Args:
        values: (B, T) float, b_t.
        token_level_rewards: (B, T) float; a labelled row's R is its sum.
        response_mask: (B, T), 1 on the policy's own tokens.
        is_labeled: (B,).
        uid: (B,) prompt of each row.
        final: as above.
        sessions: (B,) as in :func:`~tempo_verl.algo.advantage.group_advantage`.

    Returns:
        advantages: (B, T), constant along a response, zero outside the mask.
        returns: (B, T), R on labelled rows and the values themselves on unlabelled ones (hence no value error there),
            zero outside the mask.
    """
    rows, valid = Rows.of(values), Rows.of(response_mask).flat.bool()
    reward = _reward(values, token_level_rewards, response_mask, is_labeled, final)
    labeled = _flags(is_labeled, values)
    returns = torch.where(spread(labeled, rows.lengths), spread(reward, rows.lengths), rows.flat)
    reward = torch.where(labeled, reward, reward.clamp(-1, 1))
    prompts, sessions = _as_list(uid), range(len(reward)) if sessions is None else sessions
    outputs = zip(prompts, sessions, (last_token(response_mask) > 0).tolist(), strict=True)
    sizes = Counter(prompt for prompt, _ in {(prompt, session) for prompt, session, real in outputs if real})
    in_group = torch.tensor([sizes[prompt] > 1 for prompt in prompts], device=values.device)
    advantages = Rows.of(group_advantage(reward, prompts, response_mask, sessions)).flat
    clear_(advantages, spread(in_group, rows.lengths))
    return rows.holding(advantages).tensor, rows.holding(clear_(returns, valid)).tensor


def last_token_reward(reward: Tensor, response_mask: Tensor) -> Tensor:
    """(B, T) ``reward`` (B,) on each row's last valid token, 0 elsewhere: how both functions above take it."""
    rows, last = Rows.of(response_mask), last_token(response_mask)
    tokens, some = zeros(len(rows.flat), reward.dtype), np.flatnonzero(last)
    tokens[torch.from_numpy((rows.offsets[:-1] + last - 1)[some])] = reward[torch.from_numpy(some)]
    return rows.holding(tokens).tensor


def mixed_groups(outcome: npt.ArrayLike, prompts: Sequence[Hashable]) -> npt.NDArray[np.bool_]:
    """(B,) rows of prompts whose responses are neither all right nor all wrong; the official code drops the others.

    Args:
        outcome: (B,) c(x, y) in {0, 1}.
        prompts: (B,) prompt of each row.
    """
    found: dict[Hashable, set[float]] = {}
    for prompt, correct in zip(prompts, np.asarray(outcome).tolist(), strict=True):
        found.setdefault(prompt, set()).add(correct)
    return np.array([len(found[prompt]) > 1 for prompt in prompts], dtype=bool)


def value_loss(
    new_values: Tensor,
    values: Tensor,
    returns: Tensor,
    response_mask: Tensor,
    is_labeled: Flags,
    cliprange_value: float,
    loss_agg_mode: str = "token-mean",
) -> tuple[Tensor, Tensor]:
    """Half the squared value error on labelled rows, clipped on the *mean value of a response*.

    verl clips each token's value to its old value +- cliprange. Here one shift per response moves all its new values
    so that their mean lies within cliprange of the mean of the old ones; each token then takes the larger of the two
    errors, as in PPO.

    Args:
        new_values: (B, T) float, the critic now.
        values: (B, T) float, the critic before the update.
        returns: (B, T) float, from either advantage above (they agree on labelled rows).
        response_mask: (B, T), 1 on the policy's own tokens.
        is_labeled: (B,); the other rows are left out.
        cliprange_value: largest change of a response's mean value, in value units.
        loss_agg_mode: ``token-mean``, ``seq-mean-token-mean``, ``seq-mean-token-sum`` or ``seq-mean-token-sum-norm``,
            as verl's ``agg_loss``.

    Returns:
        loss: 0-d, differentiable in ``new_values``; 0 without labelled tokens.
        clipfrac: 0-d, share of labelled tokens in responses whose mean was clipped.

    Raises:
        ValueError: unknown ``loss_agg_mode``.
    """
    mask = response_mask.bool() & _flags(is_labeled, values)[:, None]
    tokens = mask.sum(dim=1)
    new_mean = _masked_sum(new_values, mask) / tokens.clamp(min=1)
    old_mean = _masked_sum(values, mask) / tokens.clamp(min=1)
    clipped_mean = torch.clamp(new_mean, old_mean - cliprange_value, old_mean + cliprange_value)
    clipped_values = new_values + (clipped_mean - new_mean)[:, None]
    error = torch.maximum(
        torch.where(mask, new_values - returns, 0).square(), torch.where(mask, clipped_values - returns, 0).square()
    )
    clipfrac = tokens[clipped_mean != new_mean].sum() / tokens.sum().clamp(min=1)
    return 0.5 * _aggregate(error, mask, loss_agg_mode), clipfrac.to(values.dtype)


def _aggregate(error: Tensor, mask: Tensor, loss_agg_mode: str) -> Tensor:
    """verl's ``agg_loss`` on one device. ``error`` and ``mask`` are (B, T); empty rows do not count."""
    tokens = mask.sum(dim=1)
    per_row = _masked_sum(error, mask)
    rows = (tokens > 0).sum().clamp(min=1)
    if loss_agg_mode == "token-mean":
        return per_row.sum() / tokens.sum().clamp(min=1)
    if loss_agg_mode == "seq-mean-token-mean":
        return (per_row / tokens.clamp(min=1)).sum() / rows
    if loss_agg_mode == "seq-mean-token-sum":
        return per_row.sum() / rows
    if loss_agg_mode == "seq-mean-token-sum-norm":
        return per_row.sum() / rows / mask.shape[1]
    raise ValueError(
        "loss_agg_mode must be 'token-mean', 'seq-mean-token-mean', 'seq-mean-token-sum' or "
        f"'seq-mean-token-sum-norm', got {loss_agg_mode!r}"
    )


def _reward(
    values: Tensor, token_level_rewards: Tensor, response_mask: Tensor, is_labeled: Flags, final: Tensor | None
) -> Tensor:
    """(B,) R: the true reward on labelled rows, the last valid entry of ``values``, V(x, y_1:T-1), on the others."""
    if final is None:
        last, rows = last_token(response_mask), Rows.of(values)
        some, final = np.flatnonzero(last), zeros(len(last), values.dtype)
        final[torch.from_numpy(some)] = rows.flat[torch.from_numpy((rows.offsets[:-1] + last - 1)[some])]
    given = Rows.of(token_level_rewards)
    valid = given.holding(torch.where(Rows.of(response_mask).flat.bool(), given.flat, 0))
    return torch.where(_flags(is_labeled, values), torch.from_numpy(valid.reduce(np.add)).to(values.dtype), final)


def _masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, 0).sum(dim=1)


def _flags(is_labeled: Flags, values: Tensor) -> Tensor:
    """(B,) bool on the device of ``values``."""
    if not isinstance(is_labeled, torch.Tensor):
        # bool() of an object array's entries, as verl's non-tensor batch holds them
        is_labeled = torch.from_numpy(np.asarray(is_labeled).astype(bool))
    return is_labeled.reshape(len(values)).bool().to(values.device)


def _as_list(uid: Ids) -> list[Hashable]:
    # Entries of a tensor hash by identity: without tolist() each row would be its own prompt.
    return uid.tolist() if isinstance(uid, torch.Tensor | np.ndarray) else list(uid)
