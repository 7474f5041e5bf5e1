# SPDX-License-Identifier: Apache-2.0
"""A short real run on this machine, and what is expected of it: ``tempo-verl doctor --gpu``.

Stage 0 and TEMPO, three rounds each, on made-up sums: FSDP2, vLLM, packed sequences, bf16, one accelerator. The rounds
are too few to learn anything. What is judged is whether the parts fit together.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tempo_verl.doctor import versions
from tempo_verl.errors import UserError
from tempo_verl.launch import Run, run_training
from tempo_verl.models import missing_value_head

ROUNDS, PROMPTS, RESPONSES, QUESTIONS = 3, 8, 4, 32
MAX_PROMPT_LENGTH, MAX_RESPONSE_LENGTH, TOKEN_BUDGET = 128, 256, 4096
# Rollout and trainer compute the same probabilities with other kernels, in bf16. verl logs both.
MOST_PROBABILITY_DIFFERENCE, LEAST_CORRELATION = 0.02, 0.99
# A value of the trainer against the saved critic's, another kernel again; bf16 has steps of 0.004 below 1.
MOST_VALUE_DIFFERENCE = 0.05
# float32 weights, gradients and two moments of Adam; a bf16 copy while a layer is gathered.
BYTES_PER_PARAMETER = 18
GIB = 1024**3


@dataclass(frozen=True)
class Verdict:
    """One thing that was looked at."""

    item: str
    expected: str
    found: str
    passed: bool


def run_trial(model: str, folder: Path, console: Console, overrides: Sequence[str] = (), verbose: bool = False) -> bool:
    """Train, judge, print a table to paste, and write it to ``folder/doctor.md``.

    Args:
        model: Hugging Face directory of a small instruction-tuned model.
        folder: of the two runs; must not hold any.
        overrides: Hydra overrides, after the trial's own.

    Returns:
        Whether everything is as expected.

    Raises:
        UserError: no accelerator, no model, a folder in use, or a training that failed.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--run-dir={folder} is not empty; name another folder, or remove it")
    if not (Path(model) / "config.json").is_file():
        raise UserError(f"--model={model}: no config.json there; give the directory of a small instruction-tuned model")
    on_cpu = "hardware=cpu" in overrides
    card = accelerator()
    if card is None and not on_cpu:
        raise UserError(
            "--gpu: torch finds no accelerator here; run it on a machine that has one, or add hardware=cpu to try the "
            "same without"
        )
    for name, seed in (("labeled", 1), ("unlabeled", 2)):
        write_sums(folder / "data" / f"{name}.parquet", seed)
    stage0, tempo = Run(folder / "stage0"), Run(folder / "tempo")
    common = [*_common(folder / "data"), *overrides]
    base = [f"actor_rollout_ref.model.path='{model}'", f"critic.model.path='{model}'"]
    seconds = [
        run_training(stage0, ["method=ppo", *base, *common], console, title="stage 0", verbose=verbose),
        run_training(
            tempo,
            [
                "method=tempo",
                f"tempo.start_from='{stage0.folder.resolve()}'",
                f"tempo.unlabeled.files='{(folder / 'data' / 'unlabeled.parquet').resolve()}'",
                f"tempo.unlabeled.batch_size={PROMPTS}",
                f"tempo.predictions.n={RESPONSES}",
                "tempo.predictions.before=0",  # a trial of the training, not of what it is worth
                *common,
            ],
            console,
            title="TEMPO",
            verbose=verbose,
        ),
    ]
    found = judge(Path(model), stage0, tempo, None if on_cpu else card)
    text = as_markdown(found, card, seconds)
    (folder / "doctor.md").write_text(text)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return all(verdict.passed for verdict in found)


def judge(model: Path, stage0: Run, tempo: Run, card: tuple[str, float] | None = None) -> list[Verdict]:
    """What is expected of the two runs, and what is found in their folders.

    Args:
        model: what stage 0 started from.
        card: name and GiB of the accelerator; None: nothing is said of memory.
    """
    rounds = [line for run in (stage0, tempo) for line in read_rounds(run)]
    actor, critic = (exported(tempo, role) for role in ("actor", "critic"))
    found = [
        _finite(rounds),
        _agree(rounds),
        _changed("the policy is trained, and exported as trained", model, actor),
        _changed("the critic is trained on by TEMPO", exported(stage0, "critic"), critic),
        _head(critic),
    ]
    if found[-1].passed:
        found.append(_values(tempo, actor, critic))
    return found if card is None else [*found, _memory(rounds, card, actor, critic)]


def as_markdown(found: Sequence[Verdict], card: tuple[str, float] | None, seconds: Sequence[float]) -> str:
    """The table that a user pastes into an issue."""
    machine = "no accelerator: this says nothing of one" if card is None else f"{card[0]}, {card[1]:.0f} GiB"
    lines = [
        f"tempo-verl doctor --gpu: {machine}; stage 0 {seconds[0]:.0f} s, TEMPO {seconds[1]:.0f} s",
        ", ".join(f"{name} {number}" for name, number in versions().items()),
        "",
        "| | expected | found | |",
        "|---|---|---|---|",
    ]
    lines += [f"| {v.item} | {v.expected} | {v.found} | {'ok' if v.passed else '**not ok**'} |" for v in found]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------- verdicts


def _finite(rounds: Sequence[dict[str, float]]) -> Verdict:
    bad = sorted({name for line in rounds for name, value in line.items() if not math.isfinite(value)})
    return Verdict("every metric is a number", "none is nan or inf", ", ".join(bad) or "none", not bad)


def _agree(rounds: Sequence[dict[str, float]]) -> Verdict:
    prefix = "training/rollout"
    trained = [line for line in rounds if f"{prefix}_probs_diff_mean" in line]
    expected = f"mean difference up to {MOST_PROBABILITY_DIFFERENCE}, correlation from {LEAST_CORRELATION}, every round"
    if not trained:
        return Verdict("rollout and trainer agree on probabilities", expected, "no round has logged it", False)
    difference = max(line[f"{prefix}_probs_diff_mean"] for line in trained)
    correlation = min(line[f"{prefix}_actor_probs_pearson_corr"] for line in trained)
    return Verdict(
        "rollout and trainer agree on probabilities",
        expected,
        f"at worst {difference:.2g} and {correlation:.4f}, {len(trained)} rounds",
        difference <= MOST_PROBABILITY_DIFFERENCE and correlation >= LEAST_CORRELATION,
    )


def _changed(item: str, before: Path, after: Path) -> Verdict:
    old, new = weights(before), weights(after)
    shared = [name for name in new if name in old and old[name].shape == new[name].shape]
    moved = math.sqrt(sum((new[name].double() - old[name].double()).square().sum().item() for name in shared))
    size = math.sqrt(sum(old[name].double().square().sum().item() for name in shared))
    share = moved / size if size else math.nan
    return Verdict(
        item, "weights differ, all finite", f"{len(shared)} tensors moved by {share:.1e}", 0 < share < math.inf
    )


def _head(critic: Path) -> Verdict:
    missing = missing_value_head(critic)
    return Verdict("the value head is saved", "score.weight", ", ".join(missing) or "there", not missing)


def _values(tempo: Run, actor: Path, critic: Path) -> Verdict:
    """The values in the predictions against those of the saved critic, in transformers alone."""
    item, expected = "the trainer's values are the saved critic's", f"mean difference up to {MOST_VALUE_DIFFERENCE}"
    shown = list(_rationales(tempo, actor))
    if not shown:
        return Verdict(item, expected, "no question was answered", False)
    from tempo_verl.evaluation.critic import Critic

    prompts, responses, logged = zip(*shown, strict=True)
    found = Critic(str(critic)).final_values(prompts, responses)
    differences = [abs(one - other) for one, other in zip(found, logged, strict=True)]
    mean = sum(differences) / len(differences)
    return Verdict(
        item,
        expected,
        f"mean {mean:.2g}, at worst {max(differences):.2g}, of {len(differences)}",
        mean <= MOST_VALUE_DIFFERENCE,
    )


def _rationales(tempo: Run, actor: Path) -> Iterator[tuple[tuple[int, ...], list[int], float]]:
    """Prompt, response and value of the sample that each prediction shows."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(actor)
    for line in map(json.loads, tempo.predictions.read_text().splitlines()):
        if line["rationale"] is not None:
            chat = [{"role": "user", "content": line["question"]}]
            prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            response = tokenizer.encode(line["rationale"]["response"], add_special_tokens=False)
            ids = tokenizer.encode(prompt, add_special_tokens=False)
            yield tuple(ids), [*response, tokenizer.eos_token_id], line["rationale"]["value"]


def _memory(rounds: Sequence[dict[str, float]], card: tuple[str, float], *models: Path) -> Verdict:
    parameters = sum(tensor.numel() for model in models for tensor in weights(model).values())
    states = parameters * BYTES_PER_PARAMETER / GIB
    peak = max(value for line in rounds for name, value in line.items() if name.endswith("max_memory_allocated_gb"))
    return Verdict(
        "training fits beside the rollout",
        f"weights and optimisers take {states:.1f} GiB, activations come on top, the card has {card[1]:.0f} GiB",
        f"peak {peak:.1f} GiB",
        0 < peak < card[1],
    )


# ---------------------------------------------------------------------- facts


def accelerator() -> tuple[str, float] | None:
    """Name and GiB of the first CUDA device, None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return properties.name, properties.total_memory / GIB


def read_rounds(run: Run) -> list[dict[str, float]]:
    """The metrics of each round."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{name: float(value) for name, value in line["data"].items()} for line in lines if line["step"] > 0]


def exported(run: Run, role: str) -> Path:
    """Hugging Face directory of the run's last checkpoint."""
    from tempo_verl.config.start import start_path

    return Path(str(start_path(role, str(run.folder), "last")))


def weights(model: Path) -> dict[str, Any]:
    """All tensors of a Hugging Face directory."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(model.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def write_sums(path: Path, seed: int) -> None:
    """A question file of additions that a small model gets right now and then."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = random.Random(seed)
    pairs = rng.sample([(a, b) for a in range(10 * seed, 10 * seed + 10) for b in range(100, 1000)], QUESTIONS)
    rows = [
        {
            "data_source": f"sums/{path.stem}",
            "prompt": [{"role": "user", "content": f"What is {a} + {b}? Put the number in \\boxed{{}}."}],
            "ability": "arithmetic",
            "reward_model": {"style": "math", "ground_truth": str(a + b)},
            "extra_info": {"index": index},
        }
        for index, (a, b) in enumerate(pairs)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def _common(data: Path) -> list[str]:
    """Overrides of both runs."""
    return [
        f"tempo.rounds={ROUNDS}",
        f"trainer.save_freq={ROUNDS}",
        f"tempo.labeled.files='{(data / 'labeled.parquet').resolve()}'",
        f"tempo.labeled.batch_size={PROMPTS}",
        f"actor_rollout_ref.rollout.n={RESPONSES}",
        f"data.max_prompt_length={MAX_PROMPT_LENGTH}",
        f"data.max_response_length={MAX_RESPONSE_LENGTH}",
        f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={TOKEN_BUDGET}",
        f"actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu={TOKEN_BUDGET}",
        f"critic.ppo_max_token_len_per_gpu={TOKEN_BUDGET}",
        "actor_rollout_ref.rollout.calculate_log_probs=true",
        "actor_rollout_ref.rollout.gpu_memory_utilization=0.3",
        "actor_rollout_ref.rollout.agent.num_workers=1",
        "actor_rollout_ref.actor.optim.lr=1e-5",
        "tempo.calibration.lr=1e-5",
        "critic.allow_new_value_head=true",
        "reward.num_workers=1",
        "trainer.n_gpus_per_node=1",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
    ]
