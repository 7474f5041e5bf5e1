# SPDX-License-Identifier: Apache-2.0
"""Checks of LoRA: settings that the engine in use does not read, and exports that would not be the trained model."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from tempo_verl.errors import UserError

ACTOR, CRITIC = "actor_rollout_ref", "critic"

# What must not be set (to anything but 0, false or null), and what to do instead.
FSDP = {"model.lora.rank": "is Megatron's; set {part}.model.lora_rank instead"}
FSDP1 = {"model.lora_rank": "with strategy=fsdp its export is untested; set {strategy}=fsdp2"}
MEGATRON = {
    "model.lora_rank": "is FSDP's; set {part}.model.lora.rank instead",
    "model.lora_adapter_path": "is FSDP's; set {part}.model.lora.adapter_path instead",
}
HEADLESS = "Megatron's checkpoints of an adapter leave out the value head; set it to 0"
MEGATRON_CRITIC = {"model.lora_rank": HEADLESS, "model.lora.rank": HEADLESS}
ANY_CRITIC = {
    "model.lora_adapter_path": "an adapter has no value head; merge it and name the whole critic in critic.model.path",
    "checkpoint.save_lora_only": "it would leave out the value head; set it to false",
}
TRANSFORMERS = {
    "model.lora.merge": "verl rounds merged weights to bfloat16, rollout.name=transformers takes the adapter as it is; "
    "set it to false"
}


def check_lora(config: DictConfig) -> None:
    """Refuse what would be ignored, would fail late or would export another model.

    Raises:
        UserError: field, value and remedy.
    """
    refused = [(ACTOR, _unread(config.actor_rollout_ref.actor.strategy, MEGATRON))]
    if config.actor_rollout_ref.rollout.name == "transformers":
        refused.append((ACTOR, TRANSFORMERS))
    if config.critic.enable:
        refused.append((CRITIC, _unread(config.critic.strategy, MEGATRON_CRITIC) | ANY_CRITIC))
    for part, fields in refused:
        strategy = {ACTOR: f"{ACTOR}.actor.strategy", CRITIC: f"{CRITIC}.strategy"}[part]
        for field, why in fields.items():
            value = OmegaConf.select(config, f"{part}.{field}")
            if value:
                raise UserError(f"{part}.{field}={value}: {why.format(part=part, strategy=strategy)}")
    model = config.actor_rollout_ref.model
    if model.lora_adapter_path and not model.lora_rank:
        raise UserError(
            f"actor_rollout_ref.model.lora_adapter_path={model.lora_adapter_path} is not read while lora_rank is 0; "
            "set actor_rollout_ref.model.lora_rank to the adapter's rank"
        )


def _unread(strategy: str, megatron: dict[str, str]) -> dict[str, str]:
    """What the engine of a strategy does not read, or not rightly."""
    if not strategy.startswith("fsdp"):
        return megatron
    return FSDP | FSDP1 if strategy == "fsdp" else FSDP
