# SPDX-License-Identifier: Apache-2.0
"""verl's critic configs plus ``allow_new_value_head``, which reaches the loader on the critic's Hugging Face config."""

from __future__ import annotations

from dataclasses import dataclass

from verl.workers.config import FSDPCriticConfig as VerlFSDPCriticConfig
from verl.workers.config import McoreCriticConfig as VerlMcoreCriticConfig

from tempo_verl.compat import ALLOW_NEW_VALUE_HEAD


@dataclass
class FSDPCriticConfig(VerlFSDPCriticConfig):
    """Adds ``allow_new_value_head``: start a zero head where ``model.path`` holds none."""

    allow_new_value_head: bool = False

    def __post_init__(self):
        super().__post_init__()
        setattr(self.model.hf_config, ALLOW_NEW_VALUE_HEAD, self.allow_new_value_head)


@dataclass
class McoreCriticConfig(VerlMcoreCriticConfig):
    """As above, for Megatron."""

    allow_new_value_head: bool = False

    def __post_init__(self):
        super().__post_init__()
        setattr(self.model.hf_config, ALLOW_NEW_VALUE_HEAD, self.allow_new_value_head)
