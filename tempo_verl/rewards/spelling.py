# SPDX-License-Identifier: Apache-2.0
"""One spelling for answers that differ only in how they are set: words, and formulas."""

from __future__ import annotations

import re
import unicodedata

from tempo_verl.rewards.extraction import ascii_signs, plain_text

_BRACKETED_LETTER = re.compile(r"^\((\w)\)$")
DELIMITERS = re.compile(r"(?<!\\)(?:\$|\\[()\[\]])")

INTEGER = re.compile(r"[+-]?\d+")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}([, ]\d{3})+(\.\d+)?")
_CURRENCY = re.compile(r"\\?\$|[€£¥]")
_DROPPED = re.compile(r"(\\\\)|\\(?:left|right|displaystyle)(?![a-zA-Z])|\\[!,;: ]|~|\{,\}")
_FRACTIONS = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_LOOSE_SPACE = re.compile(r"\s*([^\w\s\\])\s*")
_TWO_NUMBERS = re.compile(r"(?<=\d)\s*,\s+\d{3}(?!\d)")
_SYMBOLS = str.maketrans(
    {
        "π": r"\pi ",
        "∞": r"\infty ",
        "°": r"^\circ ",
        "×": r"\times ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "±": r"\pm ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∈": r"\in ",
        "∅": r"\emptyset ",
        "½": r"\frac{1}{2}",
        "∛": r"\sqrt[3]",
    }
)
_SUPERSCRIPT = re.compile("[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ]+")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
# other names of the same sign, and marks that only change how a formula looks
_NAMES = (
    (re.compile(r"\\(?:varnothing|O)(?![a-zA-Z])"), r"\\emptyset"),
    (re.compile(r"\\colon(?![a-zA-Z])"), ":"),
    (re.compile(r"\\(le|ge)(?:q|qslant)(?![a-zA-Z])"), r"\\\1"),
    (re.compile(r"\\[lcd]?dots(?:[bcmo])?(?![a-zA-Z])"), r"\\dots"),
    (re.compile(r"\\pmod\s*(?:\{\s*(\w+)\s*\}|(\w))"), r"\\pmod{\1\2}"),
    (re.compile(r"\\(?:color|textcolor)\s*\{[^{}]*\}|\\(?:large|Large|huge|small|bf|rm|it)(?![a-zA-Z])"), ""),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\{:\}"), ":"),
    (re.compile(r"\\(?:hspace|vspace|phantom)\s*\{[^{}]*\}"), ""),
    (re.compile(r"\\(?:framebox|fbox|bm|boldsymbol|underline)\s*\{([^{}]*)\}"), r"\1"),
)
_ROOT = re.compile(r"√\s*(\d+|[a-zA-Z]|\([^()]*\))")


def normalised(text: str) -> str:
    """Unicode NFKC, no case, single spaces, no mark-up, no full stop, no brackets around a single letter."""
    text = unicodedata.normalize("NFKC", plain_text(ascii_signs(text))).casefold()
    return _BRACKETED_LETTER.sub(r"\1", " ".join(text.split()).rstrip("."))


def canonical(answer: str) -> str:
    r"""One spelling for answers that differ only in layout: ``\dfrac``, ``\left``, spaces, ``$``, ``1,000``."""
    answer = _FRACTIONS.sub(r"\\frac", _DROPPED.sub(r"\1", formula(answer)))
    answer = " ".join(answer.split()).rstrip(". ")
    if _THOUSANDS.fullmatch(answer):
        answer = answer.replace(",", "").replace(" ", "")
    # a space behind a comma stays where without it two numbers would be one: "1, 200"
    answer = _LOOSE_SPACE.sub(lambda match: ", " if _TWO_NUMBERS.match(answer, match.start()) else match[1], answer)
    if INTEGER.fullmatch(answer):
        sign, digits = ("-" if answer.startswith("-") else ""), answer.lstrip("+-").lstrip("0")
        answer = sign + digits if digits else "0"
    return answer


def formula(answer: str) -> str:
    """LaTeX without delimiters and currencies, and with its own names for the symbols that people type."""
    answer = _CURRENCY.sub(" ", DELIMITERS.sub(" ", ascii_signs(answer)))
    answer = _SUPERSCRIPT.sub(lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}", answer)
    answer = _ROOT.sub(r"\\sqrt{\1}", answer).translate(_SYMBOLS)
    for name, usual in _NAMES:
        answer = name.sub(usual, answer)
    return answer
