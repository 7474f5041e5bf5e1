# SPDX-License-Identifier: Apache-2.0
"""How verl lays a run out. For each role: which processes share its rows and its sequences, how a batch is cut.

The fields are those that verl's FSDP and Megatron engines read. Of other engines nothing is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

ULYSSES = "ulysses_sequence_parallel_size"
MEGATRON = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")


@dataclass(frozen=True)
class Pass:
    """Over a batch, in micro-batches.

    Attributes:
        tokens: field of a micro-batch's token budget on one process, read with dynamic micro-batches.
        rows: field of its rows on one process, read with fixed ones.
    """

    tokens: str
    rows: str


@dataclass(frozen=True, eq=False)
class Role:
    """The actor, the reference or the critic.

    Attributes:
        name: actor, reference or critic.
        section: its field in the configuration.
        model: field of its model.
        fsdp: field of its FSDP engine.
        dynamic_field: whether micro-batches are cut by tokens.
        forward: the pass without gradients, over whole batches.
        update: the pass over one mini-batch; None: never trained.
    """

    config: DictConfig
    name: str
    section: str
    model: str
    fsdp: str
    dynamic_field: str
    forward: Pass
    update: Pass | None

    @property
    def passes(self) -> list[Pass]:
        return [*([] if self.update is None else [self.update]), self.forward]

    @property
    def is_fsdp(self) -> bool:
        return self.strategy.startswith("fsdp")

    @property
    def strategy(self) -> str:
        return str(self.get(f"{self.section}.strategy"))

    @property
    def dynamic(self) -> bool:
        return bool(self.get(self.dynamic_field))

    @property
    def processes(self) -> int:
        return self.config.trainer.n_gpus_per_node * self.config.trainer.nnodes

    @property
    def sequence_field(self) -> str:
        """What says how many processes share a sequence.

        FSDP: of the actor and the reference, verl reads the deprecated field first. The critic's reaches nothing.
        """
        if not self.is_fsdp:
            return f"{self.section}.megatron.context_parallel_size"
        deprecated = f"{self.section}.{ULYSSES}"
        return deprecated if self.name != "critic" and (self.get(deprecated) or 1) > 1 else f"{self.fsdp}.{ULYSSES}"

    @property
    def sequence(self) -> int:
        """Processes that share a sequence."""
        return self.get(self.sequence_field) or 1

    @property
    def dynamic_context(self) -> bool:
        """Megatron alone: all processes are handed the whole batch, and share it out by themselves."""
        return self.strategy == "megatron" and bool(self.get(f"{self.section}.megatron.dynamic_context_parallel"))

    @property
    def sharing(self) -> dict[str, int]:
        """Processes that hold the same rows, a factor for each field. Those that hold an expert share none."""
        fields = [self.sequence_field]
        if self.strategy == "megatron":
            fields = [f"{self.section}.megatron.{name}" for name in MEGATRON]
        return {field: self.get(field) or 1 for field in fields}

    @property
    def ranks(self) -> int | None:
        """Data-parallel size: the parts that verl cuts a batch into. None: an engine that we do not know."""
        if self.dynamic_context:
            return 1
        if not self.is_fsdp and self.strategy != "megatron":
            return None
        size = self.processes
        for factor in self.sharing.values():
            size //= factor
        return size

    def rows(self, of: Pass) -> int:
        """Rows of a process come in multiples of it."""
        return 1 if self.dynamic else self.get(of.rows) or 1

    def get(self, field: str) -> Any:
        return OmegaConf.select(self.config, field)


def roles(config: DictConfig) -> dict[str, Role]:
    """The models of a run, by name."""
    policy = "actor_rollout_ref"
    found = [
        Role(
            config,
            "actor",
            section=f"{policy}.actor",
            model=f"{policy}.model",
            fsdp=f"{policy}.actor.fsdp_config",
            dynamic_field=f"{policy}.actor.use_dynamic_bsz",
            forward=_pass(f"{policy}.rollout.log_prob"),
            update=_pass(f"{policy}.actor.ppo"),
        )
    ]
    model = config.actor_rollout_ref.model
    # with LoRA, the actor without its adapters is the reference
    lora = (model.get("lora") or {}).get("rank") or model.get("lora_rank") or model.get("lora_adapter_path")
    if config.actor_rollout_ref.actor.use_kl_loss and not lora:
        found.append(
            Role(
                config,
                "reference",
                section=f"{policy}.ref",
                model=f"{policy}.model",
                fsdp=f"{policy}.ref.fsdp_config",
                dynamic_field=f"{policy}.ref.log_prob_use_dynamic_bsz",
                forward=_pass(f"{policy}.ref.log_prob"),
                update=None,
            )
        )
    if config.critic.enable:
        found.append(
            Role(
                config,
                "critic",
                section="critic",
                model="critic.model",
                fsdp="critic.fsdp",
                dynamic_field="critic.use_dynamic_bsz",
                forward=Pass("critic.ppo_max_token_len_per_gpu", "critic.ppo_infer_micro_batch_size_per_gpu"),
                update=_pass("critic.ppo"),
            )
        )
    return {role.name: role for role in found}


def _pass(prefix: str) -> Pass:
    return Pass(f"{prefix}_max_token_len_per_gpu", f"{prefix}_micro_batch_size_per_gpu")
