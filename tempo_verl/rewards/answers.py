# SPDX-License-Identifier: Apache-2.0
"""Answers that need no algebra: text, a number with a tolerance.

Each kind has ``extract(response) -> answer`` and ``equal(answer, ground_truth)``, so that whether a response is right
depends on its extracted answer alone.
"""

from __future__ import annotations

import math
import re

from tempo_verl.rewards import expression, numeric, quantity
from tempo_verl.rewards.arithmetic import Number
from tempo_verl.rewards.extraction import ascii_signs, clean, cued_answer, final_answer, last_line
from tempo_verl.rewards.spelling import normalised

_ESCAPED = re.compile(r"\\([{}$%&#_])")
_LATEX_SPACE = re.compile(r"\\[,;:! ]|~")
_BRACED = re.compile(r"\{([^{}]*)\}")
_SIZE = re.compile(r"\\(?:bf|rm|it|tt|sf|large|Large|displaystyle)(?![a-zA-Z])\s*")
_OPTION = re.compile(r"(?:option |choice )?\(?([a-r])\)|\(([a-r])\) .+", re.DOTALL)
_OPTION_CUE = re.compile(r"\b(?:option|choice)\s+is:?\s+[*_]*(\([A-R]\))", re.IGNORECASE)
_WHOLE_NUMBER = re.compile(r"[-+]?\d[\d,]*")
_TOLERANCE = re.compile(r"(.*?)(?:±|\+/?-|\\pm)(.*)", re.DOTALL)
_PERCENT = re.compile(r"\\?%")  # a number in per cent is compared as it stands
DEFAULT_TOLERANCE = 1e-6  # relative


# ---------------------------------------------------------------------- text


def extract_exact(response: str) -> str | None:
    """The marked answer, else the whole response, stripped."""
    answer = final_answer(response)
    return _ESCAPED.sub(r"\1", answer) if answer else clean(response)


def equal_exact(answer: str, ground_truth: str) -> bool:
    """The same text."""
    return answer == extract_exact(ground_truth)


def extract_text(response: str) -> str | None:
    """The marked answer, else what follows "answer is" or "option is", else the last line; as :func:`as_text`."""
    answer = final_answer(response) or _optioned(response) or cued_answer(response) or last_line(response)
    return as_text(answer) or None if answer else None


def equal_text(answer: str, ground_truth: str) -> bool:
    """The same text but for case, spacing and mark-up; the same letter; or the same number."""
    return answer == extract_text(ground_truth)


def as_text(answer: str) -> str:
    """Normalised, without LaTeX's spaces and sizes; the letter alone of "(B) Paris"; a whole number in one spelling."""
    text = _SIZE.sub("", _LATEX_SPACE.sub(" ", answer))
    if text != answer and (around := _BRACED.fullmatch(text.strip())):
        text = around[1]
    text = normalised(_ESCAPED.sub(r"\1", text))
    option = _OPTION.fullmatch(text)
    if option:
        return option[1] or option[2]
    number = expression.value(text) if _WHOLE_NUMBER.fullmatch(text) else None
    return text if number is None else numeric.as_key(number)


def _optioned(response: str) -> str | None:
    found = _OPTION_CUE.findall(response)
    return found[-1] if found else None


# ---------------------------------------------------------------------- numbers


def extract_number(response: str) -> str | None:
    """The number that the marked answer is, else what follows "answer is", else the last one of the response."""
    answer = final_answer(response) or cued_answer(response)
    if answer:
        return _as_float(quantity.quantity(_PERCENT.sub("", answer)))
    return _as_float(quantity.last_number(_PERCENT.sub("", ascii_signs(response))))


def equal_number(answer: str, ground_truth: str) -> bool:
    """Within the tolerance of the ground truth: "3.14 ± 0.01" (absolute), "3.14 ± 1%"; without one, relative 1e-6."""
    value, tolerance, relative = tolerated(ground_truth)
    limits = {"rel_tol": tolerance} if relative else {"rel_tol": 0.0, "abs_tol": tolerance}
    return math.isclose(value, float(answer), **limits)


def tolerated(ground_truth: str) -> tuple[float, float, bool]:
    """(value, tolerance, is it relative) of a ground truth.

    Raises:
        ValueError: no number in it.
    """
    text = ascii_signs(final_answer(ground_truth) or ground_truth)
    match = _TOLERANCE.fullmatch(text)
    value = _as_float(quantity.quantity(_PERCENT.sub("", match[1] if match else text)))
    tolerance = _as_float(quantity.quantity(_PERCENT.sub("", match[2]))) if match else None
    if value is None or (match and tolerance is None):
        raise ValueError(f"no number in {ground_truth[:60]!r}")
    if tolerance is None:
        return float(value), DEFAULT_TOLERANCE, True
    percent = bool(match and "%" in match[2])
    return float(value), float(tolerance) / 100 if percent else float(tolerance), percent


def _as_float(number: Number | None) -> str | None:
    """A finite number as the shortest text that reads back; ``None`` for one too large."""
    if number is None:
        return None
    try:
        found = float(number)
    except OverflowError:
        return None
    return repr(found) if math.isfinite(found) else None
