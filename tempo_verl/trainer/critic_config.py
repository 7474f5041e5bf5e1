# SPDX-License-Identifier: Apache-2.0
"""verl's critic configs plus our fields, which reach the loader on the critic's Hugging Face config."""

from __future__ import annotations

from dataclasses import dataclass

from verl.workers.config import FSDPCriticConfig as VerlFSDPCriticConfig
from verl.workers.config import McoreCriticConfig as VerlMcoreCriticConfig

from tempo_verl.compat import ALLOW_NEW_VALUE_HEAD, FLOAT32_HEAD


@dataclass
class FSDPCriticConfig(VerlFSDPCriticConfig):
    """Adds ``allow_new_value_head``: start a zero head where ``model.path`` holds none; and ``float32_head``: compute
    the head, and answer, in float32."""

    allow_new_value_head: bool = False
    float32_head: bool = True

    def __post_init__(self):
        super().__post_init__()
        setattr(self.model.hf_config, ALLOW_NEW_VALUE_HEAD, self.allow_new_value_head)
        setattr(self.model.hf_config, FLOAT32_HEAD, self.float32_head)


@dataclass
class McoreCriticConfig(VerlMcoreCriticConfig):
    """As above, for Megatron: its loader never reads a Hugging Face head, so only the checks before a run
    read the fields."""

    allow_new_value_head: bool = False
    float32_head: bool = False
