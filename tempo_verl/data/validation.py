# SPDX-License-Identifier: Apache-2.0
"""Reads question files (parquet or JSON lines in verl's columns) for the checks before a run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from tempo_verl.data.overlap import normalised
from tempo_verl.errors import UserError
from tempo_verl.rewards import options_of, style_of

HDFS = "hdfs://"


@dataclass(frozen=True)
class Questions:
    """A file set, each list in the order of its rows; for checks before a run, never for a run itself.

    Attributes:
        source: names the files.
        chats, prompts: messages, and their text.
        hashes: of the questions without their template; None for rows that ``tempo-verl prepare`` did not write.
        data_sources: "" where a row names none.
        styles: the verifiers that rows ask for.
        truths: ground truths; None where there is none.
        options: of a choice, see ``rewards.options_of``.
    """

    source: str
    chats: list[list[dict[str, Any]]]
    prompts: list[str]
    hashes: list[str | None]
    data_sources: list[str]
    styles: list[str]
    truths: list[str | None]
    options: list[list[str] | None]

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
    found = Questions(", ".join(paths), [], [], [], [], [], [], [])
    for path in paths:
        rows = read_rows(field, os.path.expanduser(path), needs_answers)
        for number, row in enumerate(rows):
            reward_model, extra_info = struct(row, "reward_model"), struct(row, "extra_info")
            truth = reward_model.get("ground_truth")
            found.prompts.append(prompt_text(field, path, number, row.get("prompt")))
            found.chats.append(row["prompt"])
            found.hashes.append(extra_info.get("question_hash"))
            found.data_sources.append(str(row.get("data_source") or "").strip())
            found.styles.append(style_of(reward_model.get("style"), row.get("data_source")))
            found.truths.append(None if truth in (None, "") else str(truth))
            found.options.append(options_of(extra_info))
            if needs_answers and truth in (None, ""):
                raise UserError(
                    f"{field}={path}: row {number} has no answer in reward_model.ground_truth; "
                    "add it, or move the row to tempo.unlabeled.files"
                )
    if not found.prompts:
        raise UserError(f"{field}={found.source}: no questions in it; give a file with at least one row")
    return found


def check_disjoint(labeled: Questions, unlabeled: Questions) -> None:
    """No question may be in both sets.

    Raises:
        UserError: names the number of shared questions and the first.
    """
    shared = shared_rows(unlabeled, labeled)
    if shared:
        raise UserError(
            f"{len(shared)} question(s) of {unlabeled.source} are also in {labeled.source} "
            f"(first: row {shared[0]}, {unlabeled.prompts[shared[0]][:60]!r}); remove them from one of the two sets"
        )


def shared_rows(questions: Questions, others: Questions) -> list[int]:
    """Rows of ``questions`` that are in ``others`` too, whatever their looks (see ``overlap.normalised``) and, where
    both come from ``tempo-verl prepare``, whatever their template."""
    texts, hashes = {normalised(prompt) for prompt in others.prompts}, set(others.hashes) - {None}
    return [
        row
        for row, (prompt, question) in enumerate(zip(questions.prompts, questions.hashes, strict=True))
        if normalised(prompt) in texts or question in hashes
    ]


def read_judging_sources(val_files: Any, unlabeled_files: Any, named: Any) -> list[str]:
    """:func:`judging_sources` of question files, as the configuration names them."""
    unlabeled = None
    if unlabeled_files:
        unlabeled = read_questions("tempo.unlabeled.files", unlabeled_files, needs_answers=False)
    return judging_sources(read_questions("data.val_files", val_files, needs_answers=True), unlabeled, named)


def judging_sources(validation: Questions, unlabeled: Questions | None, named: Any) -> list[str]:
    """The data sources of the validation set by which checkpoints may be compared: never one with a question of D_U.

    Args:
        validation: the validation set.
        unlabeled: D_U, None if the run knows none: stage 0 does not, though its validation set may hold it.
        named: ``tempo.checkpoint.validation``: a data source, a list of them, or None for all that may.

    Raises:
        UserError: a data source that is not there or holds a question of D_U, or none left to choose by.
    """
    field, known = "tempo.checkpoint.validation", list(dict.fromkeys(validation.data_sources))
    if unlabeled is None and not named:
        raise UserError(
            f"{field} is not set: without tempo.unlabeled.files nothing tells which of {', '.join(known)} hold "
            "questions of D_U, whose answers must not choose a checkpoint; name those to choose by"
        )
    shared = shared_rows(validation, unlabeled) if unlabeled is not None else []
    first = {validation.data_sources[row]: row for row in reversed(shared)}
    named = named or [source for source in known if source not in first]
    chosen = list(dict.fromkeys(named if isinstance(named, list) else [named]))
    if not chosen:
        raise UserError(
            f"{field}: no data source of data.val_files is left to choose the best checkpoint by, each of "
            f"{', '.join(known)} has a question of tempo.unlabeled.files; add labelled questions of their own data "
            "source to data.val_files"
        )
    for source in chosen:
        if source not in known:
            raise UserError(
                f"{field}={source} is no data source of {validation.source}; choose from {', '.join(known)}"
            )
        if source in first:
            raise UserError(
                f"{field}={source} has a question of tempo.unlabeled.files (first: row {first[source]} of "
                f"data.val_files, {validation.prompts[first[source]][:60]!r}): the answers of D_U must not choose a "
                "checkpoint; name another data source"
            )
    return chosen


def read_rows(field: str, path: str, needs_answers: bool) -> list[dict[str, Any]]:
    """The rows of one file: ``prompt``, ``data_source`` and, where it has them, ``reward_model`` and ``extra_info``.

    Args:
        field: what names the file, for messages.
        path: a .parquet, .json or .jsonl file.
        needs_answers: the column ``reward_model`` must be there.

    Raises:
        UserError: a missing or unreadable file, or a missing column.
    """
    import pyarrow as pa
    import pyarrow.json
    import pyarrow.parquet

    if path.startswith(HDFS):
        raise UserError(
            f"{field}={path}: questions are compared before a run begins, so they have to be local; copy the file to "
            "where every node finds it"
        )
    if not os.path.isfile(path):
        raise UserError(f"{field}={path}: no such file; check the path")
    if not path.endswith((".parquet", ".json", ".jsonl")):
        raise UserError(
            f"{field}={path}: not a .parquet, .json or .jsonl file; tempo-verl prepare makes one of CSV and others"
        )
    try:
        table = pyarrow.parquet.read_table(path) if path.endswith(".parquet") else pyarrow.json.read_json(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{field}={path}: cannot be read ({str(error).splitlines()[0]}); write it again") from error
    for column in ("prompt", "data_source", *(["reward_model"] if needs_answers else [])):
        if column not in table.column_names:
            raise UserError(
                f"{field}={path}: no column {column!r} (found {', '.join(table.column_names) or 'none'}); "
                "verl reads prompt, data_source, reward_model.ground_truth and extra_info; "
                f"tempo-verl prepare {path} --out NEW.parquet --as KIND makes them of a question and an answer"
            )
    wanted = ("prompt", "data_source", "reward_model", "extra_info")
    return table.select([name for name in wanted if name in table.column_names]).to_pylist()


def struct(row: dict[str, Any], column: str) -> dict[str, Any]:
    """A column that holds fields; empty where the row has none."""
    value = row.get(column)
    return value if isinstance(value, dict) else {}


def prompt_text(field: str, path: str, number: int, prompt: Any) -> str:
    """The text of all messages of row ``number``.

    Raises:
        UserError: there is none.
    """
    messages = prompt if isinstance(prompt, list) else []
    text = "\n".join(str(message.get("content") or "") for message in messages if isinstance(message, dict))
    if not text.strip():
        raise UserError(
            f"{field}={path}: row {number} has no prompt; it must be a list of {{role, content}} messages with text"
        )
    return text
