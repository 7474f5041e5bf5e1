# SPDX-License-Identifier: Apache-2.0
"""What nobody should be trained on: numbers that are none, or out of range, and groups of which most is missing."""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from tempo_verl.algo.jagged import Rows
from tempo_verl.config.schema import Guard
from tempo_verl.errors import UserError
from tempo_verl.methods import Method

if TYPE_CHECKING:
    from tempo_verl.trainer.batch import Samples  # which checks all that it writes

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of a limit: float32, and means of it
DIVERGED = "lower the learning rates (tempo.calibration.lr, the actor's optim.lr), and go on from the last checkpoint"


def check_range(name: str, values: torch.Tensor, limits: tuple[float, float] | None, samples: Samples) -> None:
    """See that every number is finite and within limits.

    Args:
        name: what they are, in words.
        values: (B,), (B, T) or jagged (B, T_i), 0 where nothing is meant. Integers are finite.
        limits: lowest and highest; None: any.
        samples: the B rows.

    Raises:
        UserError: how many rows are not, and the first.
    """
    if not values.is_floating_point() or not len(values):
        return
    rows = Rows.of(values if values.is_nested else values.reshape(len(values), -1))
    if limits is None and torch.isfinite(rows.flat.sum()):  # a sum of finite numbers may not be, and is looked at
        return
    right = torch.isfinite(rows.flat)
    if limits is not None:
        right &= (rows.flat >= limits[0] - TOLERANCE) & (rows.flat <= limits[1] + TOLERANCE)
    found = (~right).nonzero().flatten()
    if len(found):
        first = rows.flat[found[0]].item()
        wrong = np.unique(np.searchsorted(rows.offsets, found.numpy(), side="right") - 1)
        meant, remedy = "finite numbers", DIVERGED
        if limits is not None and math.isfinite(first):
            meant = f"numbers from {limits[0]:g} to {limits[1]:g}"
            remedy = "if that is what the method means, let its class say so (reward_range)"
        raise UserError(
            f"{name} of {len(wrong)} of {len(samples)} responses are not {meant} (first: {first:g}, response "
            f"{samples.meta.keys[wrong[0]]}), so nothing was trained on them; {remedy}"
        )


def reward_limits(method: Method) -> tuple[float, float] | None:
    """What a reward can be: as the method says, or a value in ``tempo.value_range``; less the penalties. None: any."""
    values, shaping = method.settings.value_range, method.settings.shaping
    if values is None or method.reward_range is None:
        return None
    low, high = min(method.reward_range[0], values[0]), max(method.reward_range[1], values[1])
    if not shaping.configured:
        return low, high
    penalties = (shaping.format_penalty, shaping.overlong_penalty, shaping.length_penalty)  # below 0: a bonus
    return low - sum(p for p in penalties if p > 0), high - sum(p for p in penalties if p < 0)


def check_groups(name: str, samples: Samples, prompts: int, n: int, guard: Guard) -> dict[str, float]:
    """See that most of what was asked for is there.

    Args:
        name: of the stream.
        samples: what has arrived.
        prompts: how many were asked.
        n: responses that each was asked for.

    Returns:
        Metrics: prompts without any response, prompts with too few.

    Raises:
        UserError: more is missing than ``tempo.guard.max_missing_share`` allows.
    """
    arrived = Counter(samples.by_session().prompts)
    failed, partial = prompts - len(arrived), sum(count < n for count in arrived.values())
    missing = prompts * n - arrived.total()
    if missing:
        logger.warning("%d of %d %s responses are missing: no response to %d prompts, too few to %d",
                       missing, prompts * n, name, failed, partial)  # fmt: skip
    if missing > guard.max_missing_share * prompts * n:
        raise UserError(
            f"{missing} of {prompts * n} {name} responses did not arrive, more than tempo.guard.max_missing_share="
            f"{guard.max_missing_share:g} allows; see the agent loop's errors in the log, or raise the limit"
        )
    return {f"tempo/{name}/failed_prompts": float(failed), f"tempo/{name}/partial_groups": float(partial)}
