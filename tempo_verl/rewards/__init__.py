# SPDX-License-Identifier: Apache-2.0
"""Verifiers: is a response right, and what did it answer?

A dataset row chooses its verifier by ``reward_model.style``, or by ``data_source`` where the style is verl's ``rule``:

- ``math``: Math-Verify; ``choice``: letter or text of an option; ``text``: normalised; ``exact``: as it is;
  ``number``: with a tolerance; ``grid``: a table as JSON;
- ``module:function``: a user's own, called in a child process as ``function(response, ground_truth)`` for a pair
  ``(correct, answer)``, with ``ground_truth=None`` where only the answer is wanted. The import of its module is no part
  of its time limit, so what is slow to import stands at the top of the module. A file that names one has to be allowed
  to, see :func:`check_allowed`.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tempo_verl.errors import UserError
from tempo_verl.rewards import answers, choice, grid, grouping, mathematics
from tempo_verl.rewards.extraction import final_answer
from tempo_verl.rewards.process import VerifierFailure, most, workers
from tempo_verl.rewards.thinking import answer_part

logger = logging.getLogger(__name__)

SECONDS = 10.0  # a verifier that takes longer is stopped

# The verifier of rows with style "rule", as verl's own preprocessing writes it, by the start of their data_source
# (without case and owner); every other source is mathematics.
DATA_SOURCES = {
    "gpqa": "choice",
    "mmlu": "choice",
    "agieval": "choice",
    "zebralogic": "grid",
    "bbh": "text",
    "searchr1": "text",
}

_EXTRACT: dict[str, Callable[[str], str | None]] = {
    "exact": answers.extract_exact,
    "grid": grid.extract_grid,
    "number": answers.extract_number,
    "text": answers.extract_text,
}
_EQUAL: dict[str, Callable[[str, str], bool]] = {
    "exact": answers.equal_exact,
    "grid": grid.equal_grid,
    "number": answers.equal_number,
    "text": answers.equal_text,
}
STYLES = ("math", "choice", *_EXTRACT)
OURS = frozenset({"tempo_verl.tasks.running_sums:verify"})  # functions of this package that a file may name


@dataclass(frozen=True)
class Score:
    """A verdict on a response.

    Attributes:
        correct: the answer equals the ground truth; False without a verdict.
        answer: what was extracted, in one spelling for equal layouts; ``None`` if nothing was.
        formatted: the answer stands where it was asked for: in a box, an answer tag, a table, ...
        error: why there is no verdict, beginning with ``timeout``, ``crash`` or ``error``; ``None`` if there is one.
    """

    correct: bool
    answer: str | None
    formatted: bool = False
    error: str | None = None


def score(
    response: str,
    ground_truth: str | None,
    style: str = "math",
    *,
    options: Sequence[str] | None = None,
    timeout: float = SECONDS,
    read_unfinished: bool = False,
) -> Score:
    """Check a response. Whatever is in it, this neither raises nor hangs.

    Args:
        response: the policy's text, without special tokens.
        ground_truth: the right answer as the dataset gives it; ``None`` only reads out the answer.
        style: which verifier, see the module's text.
        options: of a choice, in the order of their letters: an answer with the text of one is read as its letter.
        timeout: seconds after which a verifier is stopped.
        read_unfinished: of a response that ends in its thinking read that, instead of no answer.

    Raises:
        UserError: the style is unknown, or the ground truth is of no use to a ``number`` or a ``grid``.
    """
    check_style(style)
    text = answer_part(response, read_unfinished)
    marked, correct = final_answer(text), False
    try:
        if style == "math":
            correct, answer = mathematics.check(text, ground_truth, timeout)
        elif ":" in style:
            correct, answer = _own(style, response, ground_truth, timeout)
        elif style == "choice":
            answer = choice.extract_choice(text, options or ())
            if answer is not None and ground_truth is not None:
                correct = choice.equal_choice(answer, ground_truth, options or ())
        else:
            answer = _EXTRACT[style](text)
            if answer is not None and ground_truth is not None:
                correct = _EQUAL[style](answer, ground_truth)
    except VerifierFailure as failure:
        logger.warning("no verdict on a response, which counts as wrong: %s", failure)
        return Score(False, marked, marked is not None, str(failure))
    except (ArithmeticError, RecursionError) as error:  # a defect of ours, counted and told; no response ends a run
        logger.warning("no verdict on a response, which counts as wrong: %s", error)
        return Score(False, marked, marked is not None, f"error: {type(error).__name__}: {error}")
    except ValueError as error:
        raise UserError(f"ground_truth={ground_truth!r:.60} is of no use to style={style}: {error}") from error
    in_place = answer is not None if ":" in style or style == "grid" else marked is not None
    return Score(correct, answer, in_place)


def extract(
    response: str, style: str = "math", *, options: Sequence[str] | None = None, timeout: float = SECONDS
) -> str | None:
    """The answer a response gives, by the same extraction that :func:`score` uses."""
    return score(response, None, style, options=options, timeout=timeout).answer


def groups(
    answers: Sequence[str | None],
    style: str = "math",
    *,
    options: Sequence[str] | None = None,
    timeout: float = SECONDS,
) -> list[int | None]:
    """Which of one prompt's answers say the same: the number of each one's group, ``None`` for no answer.

    An equivalence that does not depend on the order of the answers: see ``grouping``.

    Args:
        answers: as they were given or extracted.
        style: which verifier, see the module's text. Answers to a ``module:function`` are the same if they are equal.
        options: of a choice, in the order of their letters: the letter and the text of an option are one answer.
        timeout: seconds for one comparison; one that takes longer counts as different.
    """

    def equal(first: str, second: str) -> bool | None:
        return mathematics.equivalent(first, second, timeout)

    return grouping.group(answers, style, equal, options)


def one_spelling(
    answers: Sequence[str | None], prompts: Sequence[str], styles: Sequence[str], *, timeout: float = SECONDS
) -> list[str | None]:
    """Each answer in the spelling that is the most frequent of its group among its prompt's answers.

    Args:
        answers: (N,) as they were extracted.
        prompts: (N,) the prompt of each.
        styles: (N,) the verifier of each.
        timeout: seconds for one comparison.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        rows[prompt].append(row)

    def of_prompt(prompt: str) -> list[str | None]:
        given = [answers[row] for row in rows[prompt]]
        return grouping.representatives(given, groups(given, styles[rows[prompt][0]], timeout=timeout))

    found: list[str | None] = [None] * len(answers)
    with ThreadPoolExecutor(most()) as threads:  # a comparison waits for a child process
        for prompt, spelled in zip(rows, threads.map(of_prompt, rows), strict=True):
            for row, answer in zip(rows[prompt], spelled, strict=True):
                found[row] = answer
    return found


def check_ground_truth(
    ground_truth: str, style: str = "math", *, options: Sequence[str] | None = None, timeout: float = SECONDS
) -> str | None:
    """Why responses cannot be checked against this ground truth, in a few words; ``None`` if they can.

    Args:
        ground_truth, style, options: as in :func:`score`.
        timeout: seconds for it.
    """
    check_style(style)
    if not ground_truth.strip():
        return "empty"
    try:
        if style == "math":
            return mathematics.check_ground_truth(ground_truth, timeout)
        if style == "choice" and options:
            return choice.why_not(ground_truth, options)
        if style == "number":
            answers.tolerated(ground_truth)
        if style == "grid":
            grid.solution(ground_truth)
    except VerifierFailure as failure:
        return str(failure)
    except (ValueError, json.JSONDecodeError) as error:
        return str(error)
    return None


def useless(
    truths: Sequence[str | None],
    styles: Sequence[str],
    options: Sequence[Sequence[str] | None],
    *,
    timeout: float = SECONDS,
) -> dict[int, str]:
    """The rows whose ground truth is of no use to its verifier, and why; what is the same is looked at once.

    Args:
        truths: one a row; ``None`` where there is none.
        styles, options: one a row, as in :func:`check_ground_truth`.
        timeout: seconds for one ground truth.
    """
    rows = list(zip(truths, styles, map(tuple, (of or () for of in options)), strict=True))
    distinct = list(dict.fromkeys(row for row in rows if row[0] is not None))

    def why_not(row: tuple) -> str | None:
        truth, style, its = row
        return check_ground_truth(truth, style, options=its, timeout=timeout)

    with ThreadPoolExecutor(most()) as threads:  # a comparison waits for a child process
        found = dict(zip(distinct, threads.map(why_not, distinct), strict=True))
    return {number: why for number, row in enumerate(rows) if (why := found.get(row)) is not None}


def style_of(style: str | None, data_source: str | None) -> str:
    """The verifier of a dataset row: its own style, or for ``rule`` (verl's word) and none, that of its data source."""
    if style and not style.startswith("rule"):
        return style
    name = (data_source or "").rsplit("/", 1)[-1].casefold()
    return next((known for start, known in DATA_SOURCES.items() if name.startswith(start)), "math")


def options_of(extra_info: Mapping[str, Any]) -> list[str] | None:
    """The options of a dataset row, ``extra_info.options``: texts in the order of their letters; ``None``: not told."""
    options = extra_info.get("options")
    if options is None or isinstance(options, str | Mapping) or not len(options):
        return None
    return [str(option) for option in options]


def check_allowed(styles: Iterable[str], allowed: Collection[str], where: str, setting: str) -> None:
    """See that a data file names no function that was not allowed: data are data. Nothing is imported for it.

    Args:
        styles: of the rows.
        allowed: functions that may be called, as ``module:function``; those of this package always may.
        where: the rows come from, for the message.
        setting: what allows a function, for the message.

    Raises:
        UserError: a function that is not among them.
    """
    for style in styles:
        if ":" in style and style not in OURS and style not in allowed:
            raise UserError(
                f"{where}: reward_model.style={style!r:.100} names a function to call, and a data file may not by "
                f"itself; if you trust it, allow it with {setting}"
            )


@lru_cache
def check_style(style: str) -> None:
    """Check that a verifier can be used here.

    Raises:
        UserError: the style is unknown, its ``module:function`` cannot be imported, or Math-Verify is not installed.
    """
    if style == "math":
        mathematics.check_installed()
    if style in STYLES:
        return
    try:
        _function(style)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"reward_model.style={style!r}: neither one of {', '.join(STYLES)} nor an importable module:function "
            f"({error})"
        ) from error


def _function(style: str) -> Callable[[str, str | None], Any]:
    """What ``module:function`` names."""
    module, _, function = style.partition(":")
    return getattr(importlib.import_module(module), function)


def _own(style: str, response: str, ground_truth: str | None, timeout: float) -> tuple[bool, str | None]:
    if style in OURS:  # it neither hangs nor raises, and asking another process takes three times as long
        result = _function(style)(response, ground_truth)
    else:
        result = workers().call(style, response, ground_truth, timeout=timeout)
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], str | None)):
        raise VerifierFailure("error", f"{style} returned {result!r:.80}, not (correct, answer)")
    correct = result[0]
    if not isinstance(correct, bool | int | float | np.bool_ | np.number) or correct not in (0, 1):
        raise VerifierFailure("error", f"{style} returned correct={correct!r:.80}, neither true nor false")
    return bool(correct), result[1]
