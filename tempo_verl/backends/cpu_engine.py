# SPDX-License-Identifier: Apache-2.0
"""verl's FSDP engines, registered for the CPU as they are."""

from __future__ import annotations

from types import ModuleType


def register(engine_module: ModuleType) -> None:
    """Register verl's own FSDP/FSDP2 engines (policy and value model) for device "cpu"."""
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead

    for model_type, engine in (("language_model", FSDPEngineWithLMHead), ("value_model", FSDPEngineWithValueHead)):
        engine_module.EngineRegistry.register(model_type, ["fsdp", "fsdp2"], device="cpu")(engine)
