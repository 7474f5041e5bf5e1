# SPDX-License-Identifier: Apache-2.0
"""The scalar head of a critic: one linear layer on the backbone, which gives every position its value."""

from __future__ import annotations

from typing import Any

import torch


class Float32Head(torch.nn.Linear):
    """A linear layer that computes and answers in float32, whatever dtype reaches it and whatever autocast says.

    bfloat16 has steps of .004 between .5 and 1: too coarse for values that are compared with one another.
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., hidden size) of any float dtype -> (..., 1) float32."""
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.nn.functional.linear(hidden.float(), self.weight.float(), bias)


def is_critic(model: torch.nn.Module) -> bool:
    """Whether a model is one of :func:`load_valuehead_model`, by the criterion of verl's checkpoint manager."""
    return "ForTokenClassification" in type(model).__name__


def head_of(critic: Any) -> dict[str, torch.nn.Module]:
    """The parts of a critic beside its backbone, by name."""
    return {name: module for name, module in critic.named_children() if name != critic.base_model_prefix}


def use_float32_head(critic: Any) -> None:
    """Make the head of a critic a :class:`Float32Head`, in place."""
    for module in head_of(critic).values():
        if isinstance(module, torch.nn.Linear):
            module.__class__ = Float32Head
