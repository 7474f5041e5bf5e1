# SPDX-License-Identifier: Apache-2.0
"""What a critic knows besides the marks: the AUROC of its final value where every step is marked ``y``.

    python recipes/miniature/probe.py runs/miniature/seed_11/stage0 runs/miniature/seed_11/tempo

The responses are those of the writer whom pretraining imitates, wrong on every second hard fact, to questions of D_L
and D_U: as it marks them, and with all marks set to ``y``. The critic is that of the run's last checkpoint.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import typer
from results import run_script
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score
from transformers.utils.logging import disable_progress_bar

from tempo_verl.errors import UserError
from tempo_verl.evaluation.critic import Critic
from tempo_verl.tasks.running_sums import END, RunningSums, build_tokenizer, verify
from tempo_verl.trainer.checkpoints import Checkpoints

RESPONSES = 1200  # to each set
ERROR = 0.5  # P(a hard fact takes its fixed wrong value)


def probe(run: Path) -> list[tuple[str, float, float]]:
    """(set, AUROC with marks as they come, AUROC with every mark ``y``) for D_L and D_U.

    Raises:
        UserError: no folder of one of the miniature's trainings, or of one without a critic.
    """
    of_seed = re.fullmatch(r"seed_(\d+)", run.resolve().parent.name)
    if of_seed is None:
        raise UserError(f"{run}: name the folder of one of the miniature's trainings, as OUT/seed_11/tempo")
    path, seed = Checkpoints.of_run(run).chosen("last") / "critic" / "huggingface", int(of_seed[1])
    if not path.is_dir():
        raise UserError(f"{path}: no critic; name the folder of a method that has one, as OUT/seed_11/tempo")
    critic, tokenizer = Critic(str(path)), build_tokenizer()
    task, rng = RunningSums(seed=seed, hard_fact_error=ERROR), random.Random(seed)
    found = []
    for name in ("labeled", "unlabeled"):
        rows = pq.read_table(run.parent / "data" / f"{name}.parquet").to_pylist()
        drawn = rng.choices(rows, k=RESPONSES)
        prompts = [row["prompt"][0]["content"] for row in drawn]
        responses = [task.write_response(prompt, rng) for prompt in prompts]
        right = [
            verify(response, row["reward_model"]["ground_truth"])[0]
            for row, response in zip(drawn, responses, strict=True)
        ]
        prompt_ids = [tuple(tokenizer.encode(prompt)) for prompt in prompts]
        aurocs = []
        for written in (responses, [response.replace("n", "y") for response in responses]):
            values = critic.final_values(prompt_ids, [tokenizer.encode(text + END) for text in written])
            aurocs.append(float(roc_auc_score(right, values)))
        found.append((name, *aurocs))
    return found


def main(runs: Annotated[list[Path], typer.Argument(help="Folders of trainings, as OUT/seed_11/tempo.")]) -> None:
    """What the critics of these trainings know besides the marks."""
    disable_progress_bar()
    table = Table("training", "responses to", "AUROC", "all marks y")
    for run in runs:
        for name, honest, blind in probe(run):
            table.add_row(f"{run.resolve().parent.name}/{run.name}", name, f"{honest:.2f}", f"{blind:.2f}")
    Console().print(table)


if __name__ == "__main__":
    run_script(main)
