# SPDX-License-Identifier: Apache-2.0
"""What nobody should be trained on: numbers that are none, or out of range, and groups of which most is missing."""

from __future__ import annotations

import logging
from collections import Counter

import torch

from tempo_verl.config.schema import Guard, Shaping
from tempo_verl.errors import UserError
from tempo_verl.trainer.batch import Samples

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of a limit: float32, and means of it


def check_range(name: str, values: torch.Tensor, limits: tuple[float, float] | None, samples: Samples) -> None:
    """See that every number is finite and within limits.

    Args:
        name: what they are, in words.
        values: (B, ...), 0 where nothing is meant.
        limits: lowest and highest; None: any.
        samples: the B rows.

    Raises:
        UserError: how many rows are not, and the first.
    """
    low, high = limits or (-float("inf"), float("inf"))
    right = torch.isfinite(values) & (values >= low - TOLERANCE) & (values <= high + TOLERANCE)
    wrong = (~right.reshape(len(values), -1)).any(1).nonzero().flatten().tolist()
    if wrong:
        first = values[wrong[0]].flatten()[~right[wrong[0]].flatten()][0].item()
        meant = "finite numbers" if limits is None else f"numbers from {low:g} to {high:g}"
        raise UserError(
            f"{name} of {len(wrong)} of {len(samples)} responses are not {meant} (first: {first:g}, response "
            f"{samples.meta.keys[wrong[0]]}), so nothing was trained on them; lower the learning rates "
            "(actor_rollout_ref.actor.optim.lr, tempo.calibration.lr) and go on from the last checkpoint"
        )


def reward_limits(value_range: tuple[float, float] | None, shaping: Shaping) -> tuple[float, float] | None:
    """What a reward can be: a verdict, a share or a value, less the penalties. None: values are not clipped."""
    if value_range is None:
        return None
    penalties = sum(map(abs, (shaping.format_penalty, shaping.overlong_penalty, shaping.length_penalty)))
    low, high = min(0.0, value_range[0]), max(1.0, value_range[1])
    return (low - penalties, high + penalties) if shaping.configured else (low, high)


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
