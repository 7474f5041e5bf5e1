# SPDX-License-Identifier: Apache-2.0
"""The training side of ``rollout.name=transformers``: sends the policy's weights to its replica."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
import ray
import torch
from verl.workers.rollout.base import BaseRollout

from tempo_verl.backends.replica import server_name


class TransformersAdapter(BaseRollout):
    """Lives in each training process; the process with rank r feeds replica r."""

    def __init__(self, config, model_config, device_mesh, *args, **kwargs):
        super().__init__(config, model_config, device_mesh)
        self.replica_rank = int(os.environ["RANK"])

    async def update_weights(
        self,
        weights,
        global_steps: int | None = None,
        peft_config: dict | None = None,
        base_sync_done: bool = False,
        **kwargs,
    ) -> None:
        """Gather the full tensors (a collective: every rank iterates) and hand them to this rank's server.

        Args:
            weights: (name, tensor) pairs; of an unmerged LoRA model first the base, once, then each time its adapter.
            peft_config: of an unmerged LoRA model.
            base_sync_done: with ``peft_config``, these weights are the adapter's.
        """
        server, adapter = ray.get_actor(server_name(self.replica_rank)), peft_config if base_sync_done else None
        await server.update_weights.remote(as_arrays(weights), global_steps, adapter)

    async def resume(self, tags: list[str]) -> None:
        """Nothing sleeps on the CPU."""

    async def release(self) -> None:
        """Nothing sleeps on the CPU."""


def as_arrays(weights: Iterable[tuple[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    """float32, by name; the base of a LoRA model by the names of the plain model."""
    return {
        name.replace(".base_layer.", "."): tensor.detach().to("cpu", torch.float32).numpy() for name, tensor in weights
    }
