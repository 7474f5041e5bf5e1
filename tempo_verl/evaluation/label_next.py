# SPDX-License-Identifier: Apache-2.0
"""``tempo-verl label-next``: the questions of D_U whose label would tell most, as a file to fill in.

It reads predictions alone: no model, no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempo_verl.errors import UserError
from tempo_verl.evaluation.disagreement import Candidate, candidates, reason, score

NAME = "label_next.jsonl"
FIELDS = ("index", "id", "data_source", "question", "samples", "votes")
PREDICTIONS = ("predictions.jsonl", "tempo/predictions.jsonl")  # of tempo-verl train, and of the quickstart


@dataclass(frozen=True)
class Ranking:
    """Questions of D_U, those first whose label tells most.

    Attributes:
        lines: one JSON object a question, ready for ``tempo-verl prepare`` once ``answer`` is filled in.
        by: what they are ranked by, in words.
        questions: in the predictions.
        unseen: of them without a sample, which have no rank.
        upper_bound: the run was trained on the answers of these questions.
    """

    lines: list[dict[str, Any]]
    by: str
    questions: int
    unseen: int
    upper_bound: bool


def find_predictions(run: Path) -> Path:
    """The predictions in a run folder, or the file itself.

    Raises:
        UserError: there are none.
    """
    if run.is_file():
        return run
    if not run.is_dir():
        raise UserError(f"RUN={run}: no such folder; give that of a run of tempo-verl train, or a predictions.jsonl")
    for name in PREDICTIONS:
        if (run / name).is_file():
            return run / name
    raise UserError(
        f"RUN={run}: no predictions.jsonl in it; a run that uses D_U writes it after its last round, tempo-verl answer "
        "writes one of any model"
    )


def rank(predictions: Path) -> Ranking:
    """Rank the questions of a file of predictions by :func:`~tempo_verl.evaluation.disagreement.score`.

    Ties keep the order of the file.

    Raises:
        UserError: the file cannot be read, a line is no prediction, or no question has a sample.
    """
    rows = list(_read(predictions))
    ranked = [(row, _candidates(row)) for row in rows if row["samples"]]
    if not ranked:
        raise UserError(f"{predictions}: no question in it has a sample; draw some with tempo-verl answer")
    critic = any(one.critic is not None for _, found in ranked for one in found)
    ranked.sort(key=lambda pair: -score(pair[1]))
    return Ranking(
        lines=[_line(row, found) for row, found in ranked],
        by="where critic and vote disagree most" if critic else "the entropy of the votes, for there is no critic",
        questions=len(rows),
        unseen=len(rows) - len(ranked),
        upper_bound=any(row.get("upper_bound") for row in rows),
    )


def _line(row: dict[str, Any], found: list[Candidate]) -> dict[str, Any]:
    """In the columns that ``tempo-verl prepare`` keeps as they are: the chat, and the verifier."""
    style = row.get("style")
    return {
        "answer": None,
        "prompt": row.get("prompt") or [{"role": "user", "content": row["question"]}],
        "score": round(score(found), 4),
        "reason": reason(found, row["samples"]),
        "candidates": [
            {"answer": one.answer, "votes": one.votes, "share": round(one.share, 4)}
            | ({} if one.critic is None else {"critic": round(one.critic, 4)})
            for one in found
        ],
        "index": row["index"],
        "id": row["id"],
        "data_source": row["data_source"],
        **({"reward_model": {"style": style}} if style else {}),
    }


def _candidates(row: dict[str, Any]) -> list[Candidate]:
    votes = ((answer, of["count"], of.get("weight")) for answer, of in row["votes"].items())
    return candidates(votes, row["samples"])


def _read(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if missing := [name for name in FIELDS if name not in row]:
                raise ValueError(f"without {', '.join(missing)}")
            if sum(of["count"] for of in row["votes"].values()) > row["samples"]:
                raise ValueError("more votes than samples")
            if not all(one.critic is None or 0 <= one.critic <= 1 for one in _candidates(row)):
                raise ValueError("a critic value outside 0 to 1")
        except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
            raise UserError(
                f"{path}, line {number}: no prediction ({' '.join(str(error).split())}); give a file that tempo-verl "
                "train or tempo-verl answer wrote"
            ) from error
        yield row
