# SPDX-License-Identifier: Apache-2.0
"""How far a run's probabilities are to be trusted on D_U itself, where its file has answers to watch the run by."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tempo_verl.errors import UserError
from tempo_verl.evaluation.samples import write_whole


@dataclass(frozen=True)
class Judged:
    """Probabilities of a run's answers, and whether these are right.

    Attributes:
        calibrated: whether they are fitted on labelled questions; else they are the critic's values, or vote shares.
        probability: (N,) of the answered questions whose right answer is known here.
        right: (N,) of the same.
    """

    calibrated: bool
    probability: list[float]
    right: list[bool]


def judged_file(predictions: Path) -> Path:
    """Where a run that ends with ``predictions`` keeps them."""
    return predictions.with_name(f"{predictions.stem}_judged.json")


def judge(
    predictions: Iterable[Mapping[str, Any]], verdicts: Callable[[Sequence[int], Sequence[str]], list[bool | None]]
) -> Judged | None:
    """Judge each answer by the response that is shown for it. None where no right answer is known.

    Args:
        predictions: the lines of the file.
        verdicts: of responses to questions, by the questions' ``index``; None where the right answer is not known.
    """
    answered = [one for one in predictions if one["answer"] is not None]
    found = verdicts([one["index"] for one in answered], [one["rationale"]["response"] for one in answered])
    known = [(one, right) for one, right in zip(answered, found, strict=True) if right is not None]
    if not known:
        return None
    calibrated = all(one["calibrated"] for one, _ in known)
    return Judged(calibrated, [one["probability"] for one, _ in known], [right for _, right in known])


def write_judged(path: Path, judged: Judged) -> None:
    """Write it whole."""
    write_whole(path, json.dumps(asdict(judged)) + "\n")


def read_judged(path: Path) -> Judged:
    """What :func:`write_judged` wrote.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        judged = Judged(**json.loads(path.read_text(encoding="utf-8")))
        if not all(0 <= probability <= 1 for probability in judged.probability):
            raise ValueError("a probability outside [0, 1]")
        if len(judged.probability) != len(judged.right) or not judged.right:
            raise ValueError("no probability for each answer")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: no judged answers of a run ({type(error).__name__}: {error})") from error
    return judged
