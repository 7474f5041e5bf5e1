# SPDX-License-Identifier: Apache-2.0
"""Tolerances and units that stand in columns of their own beside a number."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from tempo_verl.data.columns import Answer
from tempo_verl.data.values import RowError, as_text, clean, is_missing, lookup
from tempo_verl.rewards import answers, expression
from tempo_verl.rewards.extraction import ascii_signs

TOLERANCES = ("error", "tolerance")
UNITS = ("unit", "units", "answer_unit")
LONGEST_UNIT = 80  # characters

_TOLERANCE = re.compile(r"\+?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*\\?%?")
_POWER = re.compile(
    r"(?:\\times\b|\\cdot\b|[×x*·]|\s)*10\s*(?:\^|\*\*)\s*(?:\{\s*([-+]?\s*\d+)\s*\}|([-+]?\d+))\s*(?:\\times\b|\\cdot\b|[×*·])?"
)
_WORDS = re.compile(r"[^\W\d_]+")
_NO_UNIT = {"", "none", "null", "nan", "-", "1", "dimensionless", "unitless"}


def with_measures(answer: Answer, fields: dict[str, Any], verifier: str | None, tolerance: str | None) -> Answer:
    """An answer with the tolerance and the unit that its record has for it, or with the user's tolerance.

    The ground truth is the number alone, times the power of ten of the unit, for the verifier number: a response is
    right with the unit and without it. The question has to ask for the unit.

    Args:
        answer: of the record.
        fields: the record.
        verifier: that the user or the preset chose; ``None`` where the answer may tell.
        tolerance: that the user chose.

    Raises:
        RowError: there is a tolerance, but no number that may have one, or a number in the unit.
    """
    if answer.style not in (None, "math") or verifier not in (None, "math", "number"):
        return answer
    truth, told, factor, unit, style = answer.truth, list(answer.told), "", "", answer.style
    column, text = _first(fields, UNITS)
    number = expression.value(truth.replace("$", ""))
    if column and number is not None and len(_WORDS.findall(re.sub(r"\\[a-zA-Z]+", "", text))) <= 6:
        exponent, unit = _unit(text)
        style = verifier or "number"  # to math, the J of 5 J is a variable
        if exponent:
            factor = f" \\times 10^{{{exponent}}}"
            truth = truth.replace("$", "").strip() + factor
            told.append(f"powers of ten in {column} are multiplied into the answer")
        if unit:
            told.append(f"units in {column} are left out of the answer, which is right with or without them")
    elif column:
        told.append(f"units in {column} are left out beside answers that are no plain numbers")
    column, text = _first(fields, TOLERANCES)
    if tolerance:
        return replace(answer, truth=f"{truth} ± {tolerance}", style=style, unit=unit, told=tuple(told))
    is_one = column is not None and _TOLERANCE.fullmatch(text) and expression.value(text)
    if is_one and verifier == "math":
        told.append(f"tolerances in {column} are not used by the verifier math")
    if not is_one or verifier == "math":
        return replace(answer, truth=truth, style=style, unit=unit, told=tuple(told))
    relative = text.endswith("%")
    truth = f"{truth.replace('$', '').strip()} ± {text}" + ("" if relative else factor)
    try:
        answers.tolerated(truth)
    except ValueError as error:
        raise RowError(
            "tolerance without a number",
            f"{column} is {text}, {answer.column} is {answer.truth[:60]!r}, not one number; --verifier math judges "
            "without tolerances",
        ) from error
    kind = "relative" if relative else "absolute"
    told.append(f"tolerances in {column} are {kind} ones, for the verifier number")
    return replace(answer, truth=truth, style="number", unit=unit, told=tuple(told))


def _first(fields: dict[str, Any], names: tuple[str, ...]) -> tuple[str | None, str]:
    """(name, text) of the first of these columns with a scalar in it."""
    for name in names:
        value = lookup(fields, name)[1]
        if not is_missing(value) and not isinstance(value, list | dict | bool):
            text = clean(as_text(value, "value", name)).strip()
            if len(text) <= LONGEST_UNIT:
                return name, text
    return None, ""


def _unit(text: str) -> tuple[int, str]:
    """(power of ten, the rest) of a unit such as ``10^3 J`` or ``$ 10^{-7} \\mathrm{~m}$``."""
    text = expression.SUPERSCRIPT.sub(lambda match: f"^{match[0].translate(expression.SUPERSCRIPTS)}", text)
    text = ascii_signs(text).strip()
    if text.strip("\\") == "$":
        return 0, "dollars"
    inner = text.replace("$", " ").strip().removeprefix("~").strip()
    match = _POWER.match(inner)
    exponent = int((match[1] or match[2]).replace(" ", "")) if match else 0
    rest = inner[match.end() :].strip() if match else inner
    if rest.strip("~ {}").casefold() in _NO_UNIT:
        return exponent, ""
    if rest[:1].isdigit():
        raise RowError("unit with a number", f"{rest[:40]!r} is no power of ten; multiply it into the answer")
    return exponent, f"${rest}$" if "\\" in rest or "^" in rest else rest
