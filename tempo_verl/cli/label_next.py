# SPDX-License-Identifier: Apache-2.0
"""``tempo-verl label-next``."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tempo_verl.cli.paths import output_file
from tempo_verl.errors import UserError


def label_next(
    run: Annotated[Path, typer.Argument(help="Run folder with predictions.jsonl, or such a file.")],
    count: Annotated[int, typer.Option(help="So many questions, or all that there are.")] = 20,
    out: Annotated[Path | None, typer.Option(help="File to write; default: label_next.jsonl in the folder.")] = None,
) -> None:
    """Name the unlabelled questions whose label would tell most: those on which critic and vote disagree most.

    tempo-verl label-next runs/tempo --count 50 --out label_next.jsonl

    One JSON line a question, the most telling first. Write the right answer into "answer" of each; then tempo-verl
    prepare makes a labelled set of it. Without a critic the questions are ranked by the entropy of the votes.
    """
    if count < 1:
        raise UserError(f"--count={count}: give how many questions to name, at least 1")
    from tempo_verl.evaluation.label_next import NAME, find_predictions, rank

    predictions = find_predictions(run)
    out = out or predictions.with_name(NAME)
    output_file("--out", out)
    if os.path.lexists(out):
        raise UserError(f"--out={out} exists already, and answers may be in it; name another file, or remove it")
    ranking = rank(predictions)
    lines = ranking.lines[:count]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    said = [f"note: {ranking.unseen} questions have no sample, and no rank."] if ranking.unseen else []
    if ranking.upper_bound:
        said.append("note: this run was trained on the answers of these very questions.")
    labeled = shlex.join(["tempo-verl", "prepare", str(out), "--out", "MORE.parquet", "--as", "labeled"])
    for line in (
        *said,
        f"label next: {out}, {len(lines)} of {ranking.questions} questions, ranked by {ranking.by}",
        f'next: write the right answers into "answer", then: {labeled} --bad-rows skip',
    ):
        Console().print(Text(line), soft_wrap=True)
