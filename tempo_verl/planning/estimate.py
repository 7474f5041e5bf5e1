# SPDX-License-Identifier: Apache-2.0
"""The whole estimate of a run, and what to change where it does not fit."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig

from tempo_verl.config.checks import check_divisions
from tempo_verl.config.layout import roles
from tempo_verl.config.schema import read_settings
from tempo_verl.config.space import bytes_a_weight, kept
from tempo_verl.errors import UserError
from tempo_verl.planning.architecture import Architecture
from tempo_verl.planning.machine import Machine
from tempo_verl.planning.memory import Memory, changed, memory, micro_batch
from tempo_verl.planning.speed import sequences, tokens_per_second
from tempo_verl.planning.work import Phase, phases

MFU = 0.3  # share of the GPU's FLOP/s that training and scoring reach; assumed, recomputation is in it
BANDWIDTH_SHARE = 0.5  # share of its bandwidth that generation reaches; assumed
USABLE = 0.9  # share of a GPU's memory that is planned with; the rest is for fragments
MEAN_PROMPT = 256  # tokens, where the limit is not lower


@dataclass(frozen=True)
class Assumed:
    """What the settings do not say. Means in tokens, efficiencies as shares."""

    prompt: int
    response: int
    mfu: float = MFU
    bandwidth: float = BANDWIDTH_SHARE


def assumed(
    config: DictConfig, prompt: int | None, response: int | None, mfu: float, bandwidth: float
) -> Assumed:  # fmt: skip
    """Defaults: prompts of 256 tokens, responses of half of their limit.

    Raises:
        UserError: beyond the limits of the settings, or no share.
    """
    data = config.data
    prompt = min(MEAN_PROMPT, data.max_prompt_length) if prompt is None else prompt
    response = max(data.max_response_length // 2, 1) if response is None else response
    for option, value, field in (
        ("--mean-prompt", prompt, "max_prompt_length"),
        ("--mean-response", response, "max_response_length"),
    ):
        if not 0 < value <= data[field]:
            raise UserError(f"{option}={value}: must be 1 to data.{field}={data[field]}; lower it, or raise the limit")
    for option, value in (("--mfu", mfu), ("--bandwidth-share", bandwidth)):
        if not 0 < value <= 1:
            raise UserError(f"{option}={value}: must be more than 0 and at most 1")
    return Assumed(prompt, response, mfu, bandwidth)


@dataclass(frozen=True)
class Estimate:
    """Of a run.

    Attributes:
        weights: by role.
        phases: of a mean round.
        seconds: of each phase, as long as ``phases``; None: without a known GPU.
        checkpoints: by role: bytes of one, and how many are on the disk at a time.
        problems: what does not fit, in words.
    """

    method: str
    rounds: int
    machine: Machine
    assumed: Assumed
    weights: dict[str, int]
    memory: Memory
    phases: list[Phase]
    seconds: list[float] | None
    checkpoints: dict[str, tuple[int, int]]
    problems: list[str]

    @property
    def disk(self) -> int:
        """Bytes of all checkpoints that are on the disk at a time."""
        return sum(size * number for size, number in self.checkpoints.values())

    @property
    def gpu_hours(self) -> float | None:
        """Of all rounds, without validation, predictions, loading and saving."""
        if self.seconds is None:
            return None
        return sum(self.seconds) * self.rounds * self.machine.gpus / 3600


def estimate(
    config: DictConfig, models: dict[str, tuple[Architecture, int]], machine: Machine, given: Assumed
) -> Estimate:  # fmt: skip
    """Estimate a run.

    Args:
        models: architecture and number of weights, of actor and critic; the latter is not used where there is none.

    Raises:
        UserError: the settings are wrong, or a size cannot be split.
    """
    method = read_settings(config)
    check_divisions(config, method)
    actor = models["actor"][0]
    parallel, processes = config.actor_rollout_ref.rollout.tensor_model_parallel_size, machine.gpus
    field = f"actor_rollout_ref.rollout.tensor_model_parallel_size={parallel}"
    if processes % parallel:
        raise UserError(f"{field} does not divide the {processes} GPUs; choose a divisor")
    if actor.heads % parallel:
        raise UserError(f"{field} does not divide the {actor.heads} attention heads of the policy; choose a divisor")
    gpu = machine.gpu
    taken = memory(config, models, gpu.memory if gpu else None)
    done = phases(config, method, actor, models.get("critic", models["actor"])[0], given.prompt, given.response)
    problems, seconds = [], None
    if gpu is not None:
        # the engine takes its share of the whole memory, and what it takes is not in fragments
        limits = [(gpu.memory if stage.name == "rollout" else USABLE * gpu.memory) for stage in taken.stages]
        problems = [
            f"{stage.name} takes {stage.size / 1e9:,.1f} GB of {limit / 1e9:,.1f} GB"
            for stage, limit in zip(taken.stages, limits, strict=True)
            if stage.size > limit
        ]
        longest = config.data.max_prompt_length + config.data.max_response_length
        one = actor.kv_bytes(longest)
        assert taken.kv_space is not None, "there is a GPU"
        if taken.kv_space < one:
            problems.append(
                f"the KV cache of a replica has {taken.kv_space / 1e9:,.1f} GB, one sequence of {longest:,} tokens "
                f"takes {one / 1e9:,.1f} GB"
            )
        else:
            mean = actor.mean_kv_bytes(given.prompt, given.response)
            replicas = processes // parallel
            most = -(-round(done[0].responses) // replicas)  # a replica has no more to do
            held = min(sequences(taken.kv_space, mean), config.actor_rollout_ref.rollout.max_num_seqs, most)
            speed = tokens_per_second(actor, max(held, 1), mean, parallel, gpu.bandwidth * given.bandwidth)
            train = gpu.flops * given.mfu * processes
            seconds = [done[0].tokens / speed / processes, *(phase.flops / train for phase in done[1:])]
    checkpoints = {}
    for name in models:
        if name == "critic" and not config.critic.enable:
            continue
        checkpoints[name] = (models[name][1] * bytes_a_weight(config, name), kept(config, name))
    return Estimate(
        method.name,
        method.settings.rounds,
        machine,
        given,
        {name: count for name, (_, count) in models.items() if name in checkpoints},
        taken,
        done,
        seconds,
        checkpoints,
        problems,
    )


def advice(
    config: DictConfig, models: dict[str, tuple[Architecture, int]], machine: Machine, given: Assumed
) -> list[tuple[list[str], str]]:
    """Overrides to try where something does not fit, each tried by itself and then all together.

    Returns:
        the overrides and what becomes of it: "fits", or what still does not.
    """
    tried: list[tuple[list[str], str]] = []
    together: list[str] = []
    for overrides in _knobs(config):
        fields = {override.partition("=")[0] for override in together}
        together += [override for override in overrides if override.partition("=")[0] not in fields]
        tried.append((overrides, _outcome(config, overrides, models, machine, given)))
    if not any(outcome == "fits" for _, outcome in tried):
        tried.append((together, _outcome(config, together, models, machine, given)))
    return tried


def _outcome(config: DictConfig, overrides: list[str], models, machine: Machine, given: Assumed) -> str:
    try:
        problems = estimate(changed(config, overrides), models, machine, given).problems
    except UserError as error:
        return str(error)
    return "; ".join(problems) or "fits"


def _knobs(config: DictConfig) -> list[list[str]]:
    """What may help and is not turned yet."""
    found, trained = roles(config), [role for role in roles(config).values() if role.update is not None]
    rollout, knobs = config.actor_rollout_ref.rollout, []
    offload = []
    for role in found.values():
        section = role.fsdp if role.is_fsdp else f"{role.section}.megatron"
        fields = ("param_offload", "optimizer_offload") if role.update else ("param_offload",)
        offload += [f"{section}.{field}=true" for field in fields if not role.get(f"{section}.{field}")]
    if offload:
        knobs.append(offload)
    longest = config.data.max_prompt_length + config.data.max_response_length
    budgets = []
    for role in trained:
        # a micro-batch holds one whole sample at least
        if role.dynamic and micro_batch(role) * role.sequence > longest:
            least = -(-longest // role.sequence)
            budgets.append(f"{role.update.tokens}={max(micro_batch(role) // 2, least)}")  # type: ignore[union-attr]
    if budgets:
        knobs.append(budgets)
    checkpointing = [
        f"{role.model}.enable_gradient_checkpointing=true"
        for role in trained
        if role.is_fsdp and not role.get(f"{role.model}.enable_gradient_checkpointing")
    ]
    if checkpointing:
        knobs.append(checkpointing)
    share, parallel = rollout.gpu_memory_utilization, rollout.tensor_model_parallel_size
    field = "actor_rollout_ref.rollout"
    knobs.append([f"{field}.tensor_model_parallel_size={2 * parallel}"])
    if share > 0.35:
        knobs.append([f"{field}.gpu_memory_utilization={max(share - 0.15, 0.3):.2f}"])
    if share < 0.8:
        knobs.append([f"{field}.gpu_memory_utilization={min(share + 0.2, 0.85):.2f}"])
    return knobs
