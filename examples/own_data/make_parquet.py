# SPDX-License-Identifier: Apache-2.0
"""Turn JSON lines with ``question`` and ``answer`` into the parquet files that ``tempo-verl train`` reads.

    python make_parquet.py --labeled train.jsonl --unlabeled test.jsonl --heldout other.jsonl --out data

writes ``data/labeled.parquet``, ``data/unlabeled.parquet`` and ``data/heldout.parquet`` in verl's columns. Labelled and
held-out rows need an answer. An answer of an unlabelled row is for monitoring only: training never sees it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tempo_verl.data.validation import check_disjoint, read_questions
from tempo_verl.errors import UserError

# What Math-Verify looks for first.
INSTRUCTION = "Let's think step by step and put the final answer in \\boxed{}."


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file.

    Raises:
        UserError: no such file, nothing in it, or a line that is not an object with a ``question``.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {number} is not JSON ({error.msg})") from error
        if not isinstance(row, dict) or not str(row.get("question") or "").strip():
            raise UserError(f"{path}: line {number} has no question; each line is an object with question and answer")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: no questions in it; give a file with at least one line")
    return rows


def to_verl(rows: list[dict[str, Any]], *, split: str, name: str, style: str, instruction: str) -> pa.Table:
    """Rows in verl's columns.

    Args:
        rows: with ``question`` and, where known, ``answer``; of an answer with ``####`` only what follows it counts
            (the form of GSM8K).
        split: labeled, unlabeled or heldout.
        name: of the data set; verl reports metrics under ``name/split``.
        style: which verifier checks a response, see ``tempo_verl.rewards``.
        instruction: appended to every question.
    """
    return pa.Table.from_pylist(
        [
            {
                "data_source": f"{name}/{split}",
                "prompt": [{"role": "user", "content": f"{row['question']} {instruction}".strip()}],
                "ability": name,
                "reward_model": {"style": style, "ground_truth": _answer(row)},
                "extra_info": {"index": index, "split": split},
            }
            for index, row in enumerate(rows)
        ]
    )


def _answer(row: dict[str, Any]) -> str:
    """Text of the answer; empty where there is none, which keeps the column a string."""
    answer = row.get("answer")
    return "" if answer is None else str(answer).rpartition("####")[2].strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labeled", type=Path, required=True, help="JSON lines of D_L: question, answer")
    parser.add_argument("--unlabeled", type=Path, required=True, help="JSON lines of D_U: question (answer optional)")
    parser.add_argument("--heldout", type=Path, required=True, help="JSON lines for evaluation only: question, answer")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder to write (default: %(default)s)")
    parser.add_argument("--name", default="own_data", help="name of the data set (default: %(default)s)")
    parser.add_argument("--style", default="math", help="math, exact or module:function (default: %(default)s)")
    parser.add_argument("--instruction", default=INSTRUCTION, help="appended to every question (default: %(default)s)")
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    questions = {}
    try:
        for split in ("labeled", "unlabeled", "heldout"):
            target = options.out / f"{split}.parquet"
            table = to_verl(
                read_jsonl(getattr(options, split)),
                split=split,
                name=options.name,
                style=options.style,
                instruction=options.instruction,
            )
            pq.write_table(table, target)
            # The checks that training begins with, made now.
            questions[split] = read_questions(f"--{split}", str(target), needs_answers=split != "unlabeled")
            print(f"{target}: {len(questions[split])} questions")
        check_disjoint(questions["labeled"], questions["unlabeled"])
    except UserError as error:
        sys.exit(f"make_parquet: {error}")


if __name__ == "__main__":
    main()
