# SPDX-License-Identifier: Apache-2.0
"""Numbers among other things: beside a unit, behind an equals sign, at the end of a text."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from tempo_verl.rewards.arithmetic import Number, scaled
from tempo_verl.rewards.expression import LONGEST, VULGAR, value
from tempo_verl.rewards.units import goes_on, is_known, plain, scale

LONGEST_QUANTITY = 120  # characters of a number and what is beside it

CURRENCY = re.compile(r"(?:\\?\$|[€£¥₹₩]|\\(?:pounds|euro)\b|\b(?:USD|EUR|GBP)\b)")
_EQUALS = re.compile(r"=|\\approx(?![a-zA-Z])|\\simeq(?![a-zA-Z])|≈|≃")
_HEDGE = re.compile(
    r"^(?:(?:approximately|approx\.?|about|around|roughly|exactly|equal to|\\sim|~)\s*)+", re.IGNORECASE
)
# Behind a number stands nothing, punctuation, or a unit; not the rest of an expression, and not a second number.
_ENDS = re.compile(
    r"\s*(?:$|\\?%|[.,;:!?)\]]+(?:\s|$)(?!\s*[-+]?\d)|\\[,;: ]|~|°|\^\s*\{?\s*\\circ"
    r"|\\(?:text|mathrm|mathbf|textrm|mbox|unit|si|mu|Omega|circ|degree)(?![a-zA-Z])|[^\W\d_]|\()"
)
_LEADING_TEXT = re.compile(r"^\\(?:text|mathrm|textrm)\s*\{([^{}\d]*)\}\s*")
_TWO_NAMED = re.compile(r"=[^=]*(?:[,;]|\b(?:and|or)\b)[^=]*=")
_SECOND = re.compile(
    r"\s*(?:,|;|and\b|or\b|to\b|through\b|\\(?:text|mathrm)\s*\{\s*(?:and|or|to)\s*\})\s*\$?\s*[-+]?\d"
)
# Characters of numbers and of what joins them; a run of them is one expression.
_RUN = re.compile(
    r"(?:\\(?:[dtc]?frac|sqrt|cdot|times|div|pi|left|right|mathrm\s*\{e\}|[,;!: %])|(?<=[\d.])\s?[eE](?=[-+{]?\d)"
    r"|(?<=\d)\s?[xX](?=\s?10\s?\^)|[-+*/^{}().,%!×·⋅√π÷\s\d½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])+"
)
_MOST_RUNS = 20


def quantity(text: str) -> Number | None:
    r"""The number of an answer that names it or its unit: ``x_2 = 7``, ``\$5``, ``9.8~\text{m/s}^2``, ``10 apples``.

    What stands behind a number must not be a second one, nor the rest of an expression.
    """
    text = _LEADING_TEXT.sub(r"\1 ", CURRENCY.sub("", text.strip()).strip())
    text = _HEDGE.sub("", text)
    if _TWO_NAMED.search(text):
        return None
    for part in dict.fromkeys([*reversed(_EQUALS.split(text)[-2:]), text]):
        found = _leading(_HEDGE.sub("", part.strip()))
        if found is not None:
            return found
    return None


def _may_follow(rest: str) -> bool:
    """Whether what stands behind a number is a unit or an aside: no variable, and no other number."""
    clause = re.split(r"(?<!\\)[.,;:!?()](?:\s|$)|\(", rest)[0]
    typed = plain(clause.replace("%", " "))
    if not typed or is_known(clause):
        return True
    if goes_on(clause) or re.search(r"\d", re.sub(r"\^-?\d|(?<=[a-z]) out of \d+", "", typed)):
        return False
    if re.search(r"[_\\]", typed):
        return False
    word = re.match(r"[^\W\d_]*", typed)[0]  # type: ignore[index]
    if not word or is_known(word):
        return True
    if not word.isascii():
        return not unicodedata.name(word[0], "").startswith("GREEK")
    return len(word) > 1 and (clause[:1].isspace() or clause.startswith(("\\", "~")))


def last_number(text: str) -> Number | None:
    """The last number of a text, read with all that belongs to it."""
    runs = [run for run in _RUN.findall(CURRENCY.sub("", text[-20 * LONGEST :])) if any(map(_is_digit, run))]
    for run in reversed(runs[-_MOST_RUNS:]):
        found = _leading(run.strip().strip(",;:").strip())
        if found is not None:
            return found
    return None


def _is_digit(sign: str) -> bool:
    return sign.isdecimal() or sign in VULGAR


def _leading(text: str) -> Number | None:
    """The number that is the whole text, or its beginning as :func:`quantity` allows."""
    found = value(text)
    if found is not None or not text:
        return found
    text = text[:LONGEST_QUANTITY]
    for at in range(len(text) - 1, 0, -1):
        rest = text[at:]
        if _ENDS.match(rest) and not text[at - 1].isspace() and not (text[at - 1].isalpha() and rest[0].isalpha()):
            found = value(text[:at])
            if found is not None:
                return None if _SECOND.match(rest) or not _may_follow(rest) else scaled(found, Fraction(scale(rest)))
    return None
