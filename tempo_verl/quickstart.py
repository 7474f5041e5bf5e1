# SPDX-License-Identifier: Apache-2.0
"""The whole method on a laptop CPU: tiny task, tiny pretrained policy, stage 0, TEMPO, evaluation, report.

Deviations from a real run: a task of 16 tokens and a policy of 125k parameters made on the spot (see
``tempo_verl.tasks.running_sums``), learning rates to match, and a few dozen rounds.
"""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tempo_verl.errors import UserError
from tempo_verl.launch import Run, run_training, write_run_info
from tempo_verl.tasks.running_sums import MAX_PROMPT_LENGTH, MAX_RESPONSE_LENGTH, RunningSums, write_parquet

SETS = ("labeled", "unlabeled", "heldout")


@dataclass(frozen=True)
class Size:
    """How much a quickstart trains."""

    pretrain_steps: int
    stage0_rounds: int
    tempo_rounds: int
    prompts: int
    responses: int
    validation_samples: int
    prediction_samples: int
    calibration_questions: int


FULL = Size(
    pretrain_steps=1200,
    stage0_rounds=25,
    tempo_rounds=20,
    prompts=32,
    responses=8,
    validation_samples=8,
    prediction_samples=8,
    calibration_questions=64,
)
FAST = Size(
    pretrain_steps=300,
    stage0_rounds=2,
    tempo_rounds=2,
    prompts=8,
    responses=4,
    validation_samples=2,
    prediction_samples=2,
    calibration_questions=32,
)


def quickstart(run_dir: Path, *, seed: int, fast: bool, console: Console, verbose: bool = False) -> None:
    """Run everything into ``run_dir`` and print what was measured.

    Raises:
        UserError: the folder already holds a run, or a stage failed.
    """
    from tempo_verl.report import build_report, print_table, write_cards

    if run_dir.exists() and any(run_dir.iterdir()):
        raise UserError(f"--run-dir={run_dir} is not empty; name another folder, or remove it")
    run_dir.mkdir(parents=True, exist_ok=True)
    size = FAST if fast else FULL
    task = RunningSums(seed=seed)
    seconds: dict[str, float] = {}
    started = time.monotonic()

    console.print(f"[bold]TEMPO quickstart[/] in {run_dir}, seed {seed}")
    write_questions(run_dir, task)

    stage0 = Run(run_dir / "stage0")
    seconds["pretraining and stage 0"] = run_training(
        stage0,
        _stage0_overrides(run_dir, size, seed),
        console,
        title="stage 0: PPO on D_L",
        verbose=verbose,
        meanwhile=partial(write_policy, run_dir, task, size.pretrain_steps, console),
    )
    tempo = Run(run_dir / "tempo")
    seconds["TEMPO"] = run_training(
        tempo, _tempo_overrides(run_dir, stage0, size, seed), console, title="TEMPO on D_U", verbose=verbose
    )
    (run_dir / "config.yaml").write_text((tempo.folder / "config.yaml").read_text())
    command = shlex.join(
        ["tempo-verl", "quickstart", "--run-dir", str(run_dir), "--seed", str(seed), *["--fast"] * fast]
    )
    write_run_info(run_dir, command, seconds | {"total": time.monotonic() - started}, seed)
    with console.status("report"):
        results = build_report(run_dir)
    print_table(results, console)
    console.print(f"predictions: {tempo.predictions}")
    for folder in write_cards(run_dir, results):
        console.print(f"model, with a card: {folder}", soft_wrap=True)
    console.print(f"took {time.monotonic() - started:.0f} s; report: {run_dir / 'report.html'}")


def prepare(run_dir: Path, task: RunningSums, pretrain_steps: int, console: Console) -> None:
    """Write the question sets and the pretrained policy."""
    write_questions(run_dir, task)
    write_policy(run_dir, task, pretrain_steps, console)


def write_questions(run_dir: Path, task: RunningSums) -> None:
    """Write the three question sets (``data/``)."""
    sets = task.make_sets()
    for name in SETS:
        write_parquet(run_dir / "data" / f"{name}.parquet", sets[name], split=name)
    prompts = {name: [prompt for prompt, _ in sets[name]] for name in ("unlabeled", "heldout")}
    (run_dir / "sets.json").write_text(json.dumps(prompts))


def write_policy(run_dir: Path, task: RunningSums, pretrain_steps: int, console: Console) -> None:
    """Write the pretrained policy (``policy/``)."""
    from transformers.utils.logging import disable_progress_bar

    from tempo_verl.tasks.pretrain import pretrain

    disable_progress_bar()  # transformers' own, for writing a model of half a megabyte
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("pretraining a tiny policy", total=pretrain_steps)
        pretrain(
            run_dir / "policy",
            task,
            steps=pretrain_steps,
            seed=task.seed,
            progress=lambda step, total, loss: progress.update(bar, completed=step),
        )


def _common_overrides(run_dir: Path, size: Size, seed: int) -> list[str]:
    data = run_dir.resolve() / "data"
    return [
        f"tempo.labeled.files='{data / 'labeled.parquet'}'",
        f"tempo.labeled.batch_size={size.prompts}",
        f"tempo.labeled.seed={seed}",
        f"tempo.calibration.mini_batch_size={size.prompts // 4}",
        "tempo.calibration.lr=1e-3",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={size.prompts // 4}",
        "actor_rollout_ref.actor.optim.lr=1e-4",
        f"actor_rollout_ref.rollout.n={size.responses}",
        f"actor_rollout_ref.rollout.seed={seed}",
        f"actor_rollout_ref.rollout.val_kwargs.n={size.validation_samples}",
        # the CPU backend's log-probabilities are the policy's own: a second pass would only repeat them
        "algorithm.rollout_correction.bypass_mode=true",
        "actor_rollout_ref.actor.calculate_entropy=true",
        f"data.val_files=['{data / 'unlabeled.parquet'}','{data / 'heldout.parquet'}']",
        f"data.max_prompt_length={MAX_PROMPT_LENGTH}",
        f"data.max_response_length={MAX_RESPONSE_LENGTH}",
        "trainer.val_before_train=true",
        "hardware=cpu",
    ]


def _stage0_overrides(run_dir: Path, size: Size, seed: int) -> list[str]:
    policy = run_dir.resolve() / "policy"
    return [
        "method=ppo",
        *_common_overrides(run_dir, size, seed),
        f"tempo.rounds={size.stage0_rounds}",
        f"tempo.calibration.warmup_rounds={min(5, size.stage0_rounds - 1)}",
        f"actor_rollout_ref.model.path='{policy}'",
        f"critic.model.path='{policy}'",
        f"trainer.save_freq={size.stage0_rounds}",
    ]


def _tempo_overrides(run_dir: Path, stage0: Run, size: Size, seed: int) -> list[str]:
    return [
        "method=tempo",
        *_common_overrides(run_dir, size, seed),
        f"tempo.rounds={size.tempo_rounds}",
        f"tempo.unlabeled.files='{run_dir.resolve() / 'data' / 'unlabeled.parquet'}'",
        f"tempo.unlabeled.batch_size={size.prompts}",
        f"tempo.unlabeled.seed={seed + 1}",
        f"tempo.predictions.n={size.prediction_samples}",
        f"tempo.predictions.labeled={size.calibration_questions}",
        "tempo.predictions.before=equal",  # a tiny policy's samples cost little
        f"tempo.start_from='{stage0.folder.resolve()}'",
        f"trainer.save_freq={size.tempo_rounds}",
        f"trainer.test_freq={max(size.tempo_rounds // 2, 1)}",
    ]
