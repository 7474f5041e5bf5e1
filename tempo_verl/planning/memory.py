# SPDX-License-Identifier: Apache-2.0
"""Bytes on one GPU while the policy is trained, while the critic is, and while the engine generates."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from tempo_verl.config.layout import Role, roles
from tempo_verl.planning.architecture import Architecture

ENGINE_OWN = 4e9  # bytes of the engine's share for activations and CUDA graphs; assumed
RUNTIME = 3e9  # bytes of CUDA, NCCL and the allocator; assumed


@dataclass(frozen=True)
class Part:
    """A part of the memory of a stage, ``size`` in bytes on one GPU."""

    name: str
    size: float


@dataclass(frozen=True)
class Stage:
    """What is on a GPU at one time."""

    name: str
    parts: tuple[Part, ...]

    @property
    def size(self) -> float:
        return sum(part.size for part in self.parts)


@dataclass(frozen=True)
class Memory:
    """Bytes on a GPU by stage, and ``host``: bytes of all nodes that offloading keeps in CPU memory.

    ``kv_space``: bytes for the KV cache of one replica of the engine; None: no engine with a share of its own.
    """

    stages: tuple[Stage, ...]
    kv_space: float | None
    host: float


@dataclass(frozen=True)
class Sizes:
    """Of one role, in bytes on one GPU: ``weights``, ``gradients``, ``adam``; ``shards`` of its layers' weights."""

    weights: float
    gradients: float
    adam: float
    shards: int


def sizes(role: Role, parameters: int) -> Sizes:
    """FSDP shards all over its processes, Megatron weights over tensor and pipeline, Adam over the rest as well."""
    if role.is_fsdp:
        each = 2 if role.get(f"{role.fsdp}.model_dtype") in ("bf16", "bfloat16", "fp16") else 4
        group = role.get(f"{role.fsdp}.fsdp_size") or -1
        shards = role.processes if group < 1 else min(group, role.processes)
        share = parameters / shards
        return Sizes(each * share, each * share, 2 * each * share, shards)
    section = f"{role.section}.megatron"
    shards = (role.get(f"{section}.tensor_model_parallel_size") or 1) * (
        role.get(f"{section}.pipeline_model_parallel_size") or 1
    )
    whole = role.processes if role.get(f"{section}.use_distributed_optimizer") is not False else shards
    # bf16 weights, float32 gradients, float32 main weights beside Adam's moments
    return Sizes(2 * parameters / shards, 4 * parameters / shards, 12 * parameters / whole, shards)


def offloads(role: Role) -> tuple[bool, bool]:
    """Whether weights and optimiser leave the GPU while the role is not at work."""
    section = role.fsdp if role.is_fsdp else f"{role.section}.megatron"
    return bool(role.get(f"{section}.param_offload")), bool(role.get(f"{section}.optimizer_offload"))


def micro_batch(role: Role) -> int:
    """Most tokens of a micro-batch on one process, while it is trained."""
    data = role.config.data
    longest = data.max_prompt_length + data.max_response_length
    assert role.update is not None, "of a role that is trained"
    if role.dynamic:
        return int(role.get(role.update.tokens))
    return role.rows(role.update) * longest // role.sequence


def activations(role: Role, model: Architecture, tokens: int, shards: int) -> list[Part]:
    """What a training pass needs beside the state, for a micro-batch of ``tokens``.

    Under gradient checkpointing the input of each layer is kept and one layer is computed again; without, all layers
    are kept: eight tensors as wide as the model and three as wide as its MLP.
    """
    each = 4 if role.is_fsdp and role.get(f"{role.fsdp}.dtype") == "float32" else 2
    tensor = (role.get(f"{role.section}.megatron.tensor_model_parallel_size") or 1) if not role.is_fsdp else 1
    layer = each * tokens * (8 * model.hidden + 3 * model.mlp) / tensor
    parts = []
    if role.is_fsdp and shards > 1:
        heads = (1 if model.tied else 2) if role.name == "actor" else 1
        parts.append(Part("gathered weights", each * (heads * model.embedding + 2 * model.layer)))
    if role.get(f"{role.model}.enable_gradient_checkpointing") or not role.is_fsdp:
        parts += [
            Part("layer inputs kept", each * model.layers * tokens * model.hidden),
            Part("one layer, recomputed", layer),
        ]
    else:
        parts.append(Part("activations of all layers", model.layers * layer))
    if role.name == "actor" and not role.get(f"{role.model}.use_fused_kernels"):
        parts.append(Part("logits, three copies", 3 * each * tokens * model.vocabulary / tensor))
    return parts


def memory(
    config: DictConfig, models: dict[str, tuple[Architecture, int]], gpu_memory: float | None
) -> Memory:  # fmt: skip
    """Bytes of each stage.

    Args:
        models: architecture and number of weights, by role: actor, and critic where there is one.
        gpu_memory: bytes; None: no accelerator, and no engine with a share of it.
    """
    found = roles(config)
    state = {
        name: sizes(role, models["actor" if name == "reference" else name][1]) for name, role in found.items()
    }  # fmt: skip
    processes = next(iter(found.values())).processes
    resting, host = {}, 0.0
    for name, role in found.items():
        weights, optimizer = offloads(role)
        adam = 0.0 if name == "reference" else state[name].adam
        resting[name] = (0.0 if weights else state[name].weights) + (0.0 if optimizer else adam)
        host += processes * ((state[name].weights if weights else 0.0) + (adam if optimizer else 0.0))
    runtime = Part("CUDA, NCCL, allocator", RUNTIME if gpu_memory is not None else 0.0)
    rollout = config.actor_rollout_ref.rollout
    share = None if gpu_memory is None else rollout.gpu_memory_utilization * gpu_memory
    awake = [] if share is None or rollout.free_cache_engine else [Part("engine, awake", share)]
    stages = []
    for name in ("actor", "critic"):
        if name not in found:
            continue
        role, size = found[name], state[name]
        own = [
            Part("weights", size.weights),
            Part("gradients", size.gradients),
            Part("Adam", size.adam),
            *activations(role, models[name][0], micro_batch(role), size.shards),
        ]
        others = [Part(f"{other}, at rest", resting[other]) for other in found if other != name and resting[other]]
        title = "training the policy" if name == "actor" else "training the critic"
        stages.append(Stage(title, (*own, *others, *awake, runtime)))
    kv_space = None
    if share is not None:
        parallel, weights = rollout.tensor_model_parallel_size, 2 * models["actor"][1]
        kv_space = parallel * (share - ENGINE_OWN) - weights
        at_rest = [Part(f"{other}, at rest", resting[other]) for other in found if resting[other]]
        engine = [
            Part("engine: weights in bf16", weights / parallel),
            Part("engine: its own", ENGINE_OWN),
            Part("engine: KV cache", max(kv_space, 0.0) / parallel),
        ]
        stages.append(Stage("rollout", (*engine, *at_rest, runtime)))
    return Memory(tuple(stages), kv_space, host)


def changed(config: DictConfig, overrides: list[str]) -> DictConfig:
    """A copy with other values, of ``field=value``; interpolations stay."""
    copy = config.copy()
    OmegaConf.set_struct(copy, False)
    for override in overrides:
        field, _, value = override.partition("=")
        OmegaConf.update(copy, field, OmegaConf.from_dotlist([f"v={value}"]).v)
    return copy
