# SPDX-License-Identifier: Apache-2.0
"""The training side of ``rollout.name=transformers``: sends the policy's weights to its replica."""

from __future__ import annotations

import os

import ray
import torch
from verl.workers.rollout.base import BaseRollout

from tempo_verl.backends.replica import server_name


class TransformersAdapter(BaseRollout):
    """Lives in each training process; the process with rank r feeds replica r."""

    def __init__(self, config, model_config, device_mesh, *args, **kwargs):
        super().__init__(config, model_config, device_mesh)
        self.replica_rank = int(os.environ["RANK"])

    async def update_weights(self, weights, global_steps: int | None = None, **kwargs) -> None:
        """Gather the full tensors (a collective: every rank iterates) and hand them to this rank's server."""
        state = {name: tensor.detach().to("cpu", torch.float32).numpy() for name, tensor in weights}
        await ray.get_actor(server_name(self.replica_rank)).update_weights.remote(state, global_steps)

    async def resume(self, tags: list[str]) -> None:
        """Nothing sleeps on the CPU."""

    async def release(self) -> None:
        """Nothing sleeps on the CPU."""
