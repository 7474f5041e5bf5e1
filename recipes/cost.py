# SPDX-License-Identifier: Apache-2.0
"""Memory and GPU-hours of a recipe, estimated by the formulas of COST.md and never measured.

    python recipes/cost.py qwen3_8b_math [GPUS]

prints the tables of the recipe's README (its own number of GPUs: 8). Settings are those of the recipe's YAML. Models,
GPU and the speed of generation are those of ``tempo-verl plan``, which estimates any run.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from tempo_verl.config.recipes import read, uses
from tempo_verl.errors import UserError
from tempo_verl.planning import architecture
from tempo_verl.planning.estimate import BANDWIDTH_SHARE, MFU
from tempo_verl.planning.estimate import MEAN_PROMPT as PROMPT
from tempo_verl.planning.machine import GPUS
from tempo_verl.planning.memory import ENGINE_OWN as VLLM_OWN
from tempo_verl.planning.memory import RUNTIME
from tempo_verl.planning.speed import sequences, tokens_per_second

STAGE0 = "ppo"  # the method of stage 0

# What is assumed; see COST.md.
GPU_MEMORY, GPU_FLOPS, GPU_BANDWIDTH = GPUS["h100"].memory, GPUS["h100"].flops, GPUS["h100"].bandwidth
RESPONSE = {"math": 8192, "general": 4096}  # mean tokens

N = 8  # responses a prompt

# Questions in the sets as published.
QUESTIONS = {
    "aime24": 30, "aime25": 30, "beyond-aime": 100, "aime26": 30, "olymmath": 100,
    "bbh": 6511, "agieval": 2340, "zebralogic": 1000, "gpqa-diamond": 198,
}  # fmt: skip


MODELS = {name: architecture.MODELS[name.replace("_", "-")] for name in ("olmo3_7b", "qwen3_8b", "qwen3_14b")}


@dataclass(frozen=True)
class Work:
    """A round of a method, in half-steps (prompts / 2 x 8 responses): what is generated, what the policy and the
    critic only read, and what they are trained on."""

    generated: int
    actor_read: int
    actor_trained: int
    critic_read: int = 0
    critic_trained: int = 0


WORK = {
    "stage0": Work(2, 2, 2, 2, 2),
    "tempo": Work(2, 1, 1, 2, 1),
    "frozen_critic": Work(1, 1, 1, 1, 0),
    "ttrl": Work(2, 1, 1),
    "empo": Work(1, 1, 1),
    "random_reward": Work(1, 1, 1),
    "ppo": Work(2, 2, 2, 2, 2),
    "grpo": Work(2, 2, 2),
    "oracle": Work(2, 1, 1, 2, 1),
    "official": Work(2, 2, 2, 3, 2),
    "tempo_pp": Work(2, 2, 2, 3, 1),
    "trapo": Work(2, 2, 2),
}


class Recipe:
    """A recipe's settings, model and lengths, on ``gpus`` GPUs (default: the recipe's).

    Attributes:
        half: responses of a half-step.
        validated: responses of a validation.
        asked: questions of D_U.
        before: responses of the starting policy to each of them.
        calibrated: questions of D_L that predictions are calibrated on.
        micro_batch: tokens a GPU.
        longest: tokens of the longest sample.
        vllm_share: of a GPU's memory.
    """

    def __init__(self, name: str, gpus: int | None = None):
        config = read(name)
        model, _, domain = name.rpartition("_")
        self.model, self.response = MODELS[model], RESPONSE[domain]
        self.gpus = gpus or config.trainer.nnodes * config.trainer.n_gpus_per_node
        self.rounds, self.test_freq = config.tempo.rounds, config.trainer.test_freq
        self.half = config.recipe.samples_per_step // 2
        rollout, sets = config.actor_rollout_ref.rollout, config.recipe.data_sets
        self.tensor_parallel, self.vllm_share = rollout.tensor_model_parallel_size, rollout.gpu_memory_utilization
        self.longest = config.data.max_prompt_length + config.data.max_response_length
        self.micro_batch = config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu
        self.validated = sum(QUESTIONS[name] for name in (*sets.unlabeled, *sets.heldout)) * rollout.val_kwargs.n
        self.asked = sum(QUESTIONS[name] for name in sets.unlabeled)
        predictions = config.tempo.predictions
        self.predictions_n, self.before, self.calibrated = predictions.n, predictions.before, predictions.labeled

    # ------------------------------------------------------------------ memory

    def training(self) -> list[tuple[str, str, float]]:
        """What is on a GPU while the policy is trained, the arithmetic, bytes. Critic and vLLM are not there then."""
        model, tokens = self.model, f"{self.micro_batch:,}"
        return [
            ("policy: weights, gradients, Adam", f"16 x {model.actor / 1e9:.2f}e9 / {self.gpus}", self.state),
            (
                "gathered weights in bf16",
                f"2 x 2 x ({model.embedding / 1e9:.2f} + {model.layer / 1e9:.2f})e9: embedding, head and two layers",
                2 * (2 * model.embedding + 2 * model.layer),
            ),
            (
                "layer inputs kept",
                f"2 x {model.layers} x {tokens} x {model.hidden:,}",
                2 * model.layers * self.micro_batch * model.hidden,
            ),
            (
                "one layer, recomputed",
                f"2 x {tokens} x (8 x {model.hidden:,} + 3 x {model.mlp:,})",
                2 * self.micro_batch * (8 * model.hidden + 3 * model.mlp),
            ),
            ("logits, three copies", f"3 x 2 x {tokens} x {model.vocabulary:,}", self.logits),
            ("CUDA, NCCL, allocator", "assumed", RUNTIME),
        ]

    @property
    def state(self) -> float:
        """Bytes on a GPU of the policy's weights, gradients and Adam's two moments, all float32."""
        return 16 * self.model.actor / self.gpus

    @property
    def logits(self) -> float:
        return 3 * 2 * self.micro_batch * self.model.vocabulary

    @property
    def peak(self) -> float:
        """Bytes on a GPU while the policy is trained."""
        return sum(size for _, _, size in self.training())

    @property
    def critic_peak(self) -> float:
        """Bytes on a GPU while the critic is trained: it takes the policy's place, and has no logits."""
        return self.peak - self.state - self.logits + 16 * self.model.critic / self.gpus

    def kv_space(self) -> float:
        """Bytes for the KV cache of one vLLM replica."""
        return self.tensor_parallel * (self.vllm_share * GPU_MEMORY - VLLM_OWN) - 2 * self.model.actor

    # ------------------------------------------------------------------ time

    def throughput(self) -> float:
        """Tokens that a GPU generates in a second: the whole batch and the weights are read once for each token."""
        space, each = self.kv_space(), self.model.mean_kv_bytes(PROMPT, self.response)
        held, bandwidth = sequences(space, each), GPU_BANDWIDTH * BANDWIDTH_SHARE
        return tokens_per_second(self.model, held, each, self.tensor_parallel, bandwidth)

    def generation(self, responses: int) -> float:
        """GPU-hours."""
        return responses * self.response / self.throughput() / 3600

    def flops(self, work: Work) -> float:
        """Of one round, without generation: 2 a parameter and token to read, 6 to train."""
        passes = self.model.actor * (2 * work.actor_read + 6 * work.actor_trained)
        passes += self.model.critic * (2 * work.critic_read + 6 * work.critic_trained)
        return passes * self.half * (PROMPT + self.response)

    def rest(self, work: Work) -> float:
        """GPU-hours of one round, without generation."""
        return self.flops(work) / (GPU_FLOPS * MFU) / 3600

    @property
    def validations(self) -> int:
        """One before the first round, then every ``test_freq`` rounds."""
        return 1 + self.rounds // self.test_freq

    def validation(self) -> float:
        """GPU-hours of all validations."""
        return self.validations * self.generation(self.validated)

    def predictions(self, stage: str) -> float:
        """GPU-hours before the first round and after the last, of stages that learn on D_U."""
        method = STAGE0 if stage == "stage0" else stage
        if not uses("unlabeled", method, critic=True):
            return 0.0
        questions = self.asked + (self.calibrated if uses("labeled", method, critic=True) else 0)
        return self.generation(self.asked * self.before + questions * self.predictions_n)

    def total(self, stage: str) -> float:
        """GPU-hours of a stage."""
        work = WORK[stage]
        rounds = self.rounds * (self.generation(work.generated * self.half) + self.rest(work))
        return rounds + self.validation() + self.predictions(stage)


def tables(recipe: Recipe) -> str:
    """Both tables in Markdown, with the arithmetic."""
    model, gpus = recipe.model, recipe.gpus
    both = f"({model.actor / 1e9:.2f} + {model.critic / 1e9:.2f})e9"
    vllm, vllm_own, parallel = recipe.vllm_share * GPU_MEMORY, VLLM_OWN / 1e9, recipe.tensor_parallel
    space, mean_kv = recipe.kv_space(), model.mean_kv_bytes(PROMPT, recipe.response)
    memory = [
        *recipe.training(),
        ("**sum: training the policy**", "critic and vLLM are away", recipe.peak),
        (
            "training the critic",
            f"the same with 16 x {model.critic / 1e9:.2f}e9 / {gpus}, no logits",
            recipe.critic_peak,
        ),
        ("**generation**", f"vLLM's share, {recipe.vllm_share} x {GPU_MEMORY / 1e9:.0f}", vllm),
        (
            "KV cache of a replica",
            f"{parallel} x ({vllm / 1e9:.0f} - {vllm_own:.0f}) - 2 x {model.actor / 1e9:.2f}",
            space,
        ),
        ("a full sequence in it", f"{recipe.longest:,} tokens", model.kv_bytes(recipe.longest)),
        ("CPU memory, all nodes", f"12 x {both}: weights and Adam, offloaded", 12 * (model.actor + model.critic)),
        ("disk, a checkpoint", f"16 x {both}; two are kept", 16 * (model.actor + model.critic)),
    ]
    lines = [f"| memory, a GPU of {gpus} | bytes | GB |", "|---|---|---:|"]
    lines += [f"| {name} | {how} | {size / 1e9:.1f} |" for name, how, size in memory]
    tokens = recipe.half * (PROMPT + recipe.response)
    lines += [
        "",
        f"A half-step is {recipe.half // N} prompts x {N} = {recipe.half:,} responses of {recipe.response:,} tokens: "
        f"{recipe.half * recipe.response / 1e6:.2f}M tokens to generate, {tokens / 1e6:.2f}M with the prompts. "
        f"A replica holds {space / 1e9:.1f} GB / {mean_kv / 1e9:.2f} GB = {sequences(space, mean_kv)} growing "
        f"sequences; a GPU generates {recipe.throughput():,.0f} tokens a second, {recipe.generation(recipe.half):.2f} "
        f"GPU-hours a half-step. A validation is {recipe.validated:,} responses, all {recipe.validations} of a "
        f"stage {recipe.validation():,.0f} GPU-hours; predictions for D_U are "
        f"{recipe.asked * recipe.before:,} before and {recipe.asked * recipe.predictions_n:,} after, with "
        f"those for D_L {recipe.predictions('tempo'):.1f} GPU-hours.",
        "",
        "| stage | half-steps generated | policy reads / trains | critic reads / trains | FLOPs a round "
        f"| GPU-hours a round: generation + rest | {recipe.rounds} rounds, validation and predictions, GPU-hours "
        f"| days on {gpus} GPUs |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]
    for stage, work in WORK.items():
        generation, total = recipe.generation(work.generated * recipe.half), recipe.total(stage)
        lines.append(
            f"| `{stage}` | {work.generated} | {work.actor_read} / {work.actor_trained} "
            f"| {work.critic_read} / {work.critic_trained} | {recipe.flops(work):.2e} "
            f"| {generation:.2f} + {recipe.rest(work):.2f} | {total:,.0f} | {total / gpus / 24:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        print(tables(Recipe(sys.argv[1] if sys.argv[1:] else "", *map(int, sys.argv[2:3]))))
    except UserError as error:
        sys.exit(f"cost.py: {error}")
