# SPDX-License-Identifier: Apache-2.0
"""Reads question files (parquet or JSON lines in verl's columns) for the checks before a run."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tempo_verl.errors import UserError


@dataclass(frozen=True)
class Questions:
    """Prompt texts of a file set, in order, and the verifier styles its rows ask for; ``source`` names the files."""

    source: str
    prompts: list[str]
    styles: frozenset[str]

    def __len__(self) -> int:
        return len(self.prompts)


def read_questions(field: str, files: Any, *, needs_answers: bool) -> Questions:
    """Read and check a file set.

    Args:
        field: the configuration field that names the files, for messages.
        files: one path or a list of paths.
        needs_answers: every row must have a ``reward_model.ground_truth``.

    Raises:
        UserError: nothing named, a missing or unreadable file, a missing column, an empty set, a row without a prompt
            or (if needed) without an answer.
    """
    paths = [files] if isinstance(files, str) else list(files or [])
    if not paths:
        raise UserError(
            f"{field} is not set; give a parquet file in verl's columns (prompt, data_source, reward_model)"
        )
    prompts: list[str] = []
    styles: set[str] = set()
    for path in paths:
        rows = _read_rows(field, os.path.expanduser(path), needs_answers)
        for number, row in enumerate(rows):
            prompts.append(_prompt_text(field, path, number, row.get("prompt")))
            styles.add(_reward_model(row).get("style") or "math")
            if needs_answers and _reward_model(row).get("ground_truth") in (None, ""):
                raise UserError(
                    f"{field}={path}: row {number} has no answer in reward_model.ground_truth; "
                    "add it, or move the row to tempo.unlabeled.files"
                )
    if not prompts:
        raise UserError(f"{field}={', '.join(paths)}: no questions in it; give a file with at least one row")
    return Questions(", ".join(paths), prompts, frozenset(styles))


def check_disjoint(labeled: Questions, unlabeled: Questions) -> None:
    """No question may be in both sets, however it is spaced, cased or encoded (Unicode NFKC).

    Raises:
        UserError: names the number of shared questions and the first.
    """
    known = {_normalised(prompt) for prompt in labeled.prompts}
    shared = [row for row, prompt in enumerate(unlabeled.prompts) if _normalised(prompt) in known]
    if shared:
        raise UserError(
            f"{len(shared)} question(s) of {unlabeled.source} are also in {labeled.source} "
            f"(first: row {shared[0]}, {unlabeled.prompts[shared[0]][:60]!r}); remove them from one of the two sets"
        )


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _read_rows(field: str, path: str, needs_answers: bool) -> Iterable[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.json
    import pyarrow.parquet

    if not os.path.isfile(path):
        raise UserError(f"{field}={path}: no such file; check the path")
    if not path.endswith((".parquet", ".json", ".jsonl")):
        raise UserError(f"{field}={path}: not a .parquet, .json or .jsonl file")
    try:
        table = pyarrow.parquet.read_table(path) if path.endswith(".parquet") else pyarrow.json.read_json(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{field}={path}: cannot be read ({str(error).splitlines()[0]}); write it again") from error
    for column in ("prompt", "data_source", *(["reward_model"] if needs_answers else [])):
        if column not in table.column_names:
            raise UserError(
                f"{field}={path}: no column {column!r} (found {', '.join(table.column_names) or 'none'}); "
                "verl reads prompt, data_source, reward_model.ground_truth and extra_info"
            )
    return table.select([name for name in ("prompt", "reward_model") if name in table.column_names]).to_pylist()


def _reward_model(row: dict[str, Any]) -> dict[str, Any]:
    reward_model = row.get("reward_model")
    return reward_model if isinstance(reward_model, dict) else {}


def _prompt_text(field: str, path: str, number: int, prompt: Any) -> str:
    messages = prompt if isinstance(prompt, list) else []
    text = "\n".join(str(message.get("content") or "") for message in messages if isinstance(message, dict))
    if not text.strip():
        raise UserError(
            f"{field}={path}: row {number} has no prompt; it must be a list of {{role, content}} messages with text"
        )
    return text
