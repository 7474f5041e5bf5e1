# SPDX-License-Identifier: Apache-2.0
"""verl's critic configs plus our fields, which reach the loader on the critic's Hugging Face config.

They also hand the engine the micro-batches of ``critic.use_dynamic_bsz=false``, which verl leaves behind.
"""

from __future__ import annotations

from dataclasses import dataclass

from verl.workers.config import CriticConfig
from verl.workers.config import FSDPCriticConfig as VerlFSDPCriticConfig
from verl.workers.config import McoreCriticConfig as VerlMcoreCriticConfig

from tempo_verl.compat import ALLOW_NEW_VALUE_HEAD, FLOAT32_HEAD


def _cut_as_configured(critic: CriticConfig) -> None:
    """Hand the engine what ``critic`` says of micro-batches. verl does so for the actor, and here with budgets only."""
    critic.engine.use_dynamic_bsz = critic.use_dynamic_bsz
    critic.engine.micro_batch_size_per_gpu = critic.ppo_micro_batch_size_per_gpu
    critic.engine.infer_micro_batch_size_per_gpu = critic.ppo_infer_micro_batch_size_per_gpu


@dataclass
class FSDPCriticConfig(VerlFSDPCriticConfig):
    """Adds ``allow_new_value_head``: start a zero head where ``model.path`` holds none; and ``float32_head``: compute
    the head, and answer, in float32."""

    allow_new_value_head: bool = False
    float32_head: bool = True

    def __post_init__(self):
        super().__post_init__()
        _cut_as_configured(self)
        setattr(self.model.hf_config, ALLOW_NEW_VALUE_HEAD, self.allow_new_value_head)
        setattr(self.model.hf_config, FLOAT32_HEAD, self.float32_head)


@dataclass
class McoreCriticConfig(VerlMcoreCriticConfig):
    """As above, for Megatron, which computes the value head in its own way: ``float32_head`` must be false."""

    allow_new_value_head: bool = False
    float32_head: bool = False

    def __post_init__(self):
        super().__post_init__()
        _cut_as_configured(self)
        setattr(self.model.hf_config, ALLOW_NEW_VALUE_HEAD, self.allow_new_value_head)
