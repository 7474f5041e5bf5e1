# SPDX-License-Identifier: Apache-2.0
"""What stands behind a number: a unit, a word that scales it, or words that say which way.

A unit is not compared: it may be left out, and most are just words ("5 apples").
"""

from __future__ import annotations

import re
import unicodedata

SCALES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
# Behind a number these go on with the expression: it is not the number that is meant.
_GOES_ON = re.compile(
    r"(?:squared|cubed|factorial|plus|minus|mod|over|choose|if|when|and a half"
    r"|or (?:more|less|fewer|greater|higher|lower|above|below))\b"
)
# Words of which one in either answer makes them different
_OPPOSITE = (
    ("north", "south"), ("east", "west"), ("left", "right"), ("up", "down"), ("upward", "downward"),
    ("upwards", "downwards"), ("positive", "negative"), ("above", "below"), ("gain", "loss"), ("profit", "loss"),
    ("increase", "decrease"), ("northeast", "southwest"), ("northwest", "southeast"),
    ("ad", "bc"), ("ce", "bce"), ("clockwise", "counterclockwise"),
)  # fmt: skip

DIRECTIONS = frozenset(word for pair in _OPPOSITE for word in pair)

# Units that are known where no space is before them, "12in": symbols with their prefixes, and short words.
_SYMBOL = (
    r"(?:[nµμmcdkMG]?(?:m|g|s|L|l|N|J|W|V|A|Hz|Pa|K|C|F|M|mol|eV|cal|Ω|bar)"
    r"|h|hr|hrs|min|mins|sec|in|ft|yd|mi|lb|lbs|oz|mph|kph|°[CF]?)"
)
_KNOWN = re.compile(rf"{_SYMBOL}(?:\^-?\d)?(?:\s*(?:\s|/|·|⋅|\*|\\cdot|\\times)\s*{_SYMBOL}(?:\^-?\d)?)*")
_MACRO = re.compile(
    r"\\(?:text|mathrm|textrm|textbf|mathbf|mbox|operatorname|unit|si|rm)(?![a-zA-Z])\s*\{?|[{}$~]|\\[,;:! ]|\\q?quad\b"
)


def plain(text: str) -> str:
    r"""A unit as it would be typed: ``\text{ cm}^2`` and ``cm²`` are ``cm^2``."""
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])", "°", text)
    text = text.replace("\\mu", "µ").replace("\\Omega", "Ω").replace("℃", "°C").replace("℉", "°F")
    text = re.sub(r"\^\s*\{\s*(-?\d)\s*\}", r"^\1", text)
    text = re.sub("⁻?[¹²³]", lambda match: f"^{'-' * (len(match[0]) - 1)}{unicodedata.digit(match[0][-1])}", text)
    text = re.sub(r"\s*\^\s*", "^", _MACRO.sub(" ", text))
    return " ".join(text.split()).rstrip(".").strip()


def is_known(text: str) -> bool:
    """Whether it is a unit even without a space before it."""
    return _KNOWN.fullmatch(plain(text)) is not None


def words_of(text: str) -> frozenset[str]:
    """The words of a unit, in small letters."""
    return frozenset(re.findall(r"[^\W\d_]+", plain(text).casefold()))


def opposite(first: frozenset[str], second: frozenset[str]) -> bool:
    """Whether one says left and the other right."""
    return any(
        (one in first and other in second) or (other in first and one in second)
        for one, other in _OPPOSITE
        if not {one, other} <= first and not {one, other} <= second
    )


def scale(text: str) -> int:
    """The factor of the words behind a number: 10**6 for "million people"."""
    factor = 1
    for word in plain(text).casefold().split():
        if word not in SCALES:
            break
        factor *= SCALES[word]
    return factor


def goes_on(text: str) -> bool:
    """Whether the words behind a number go on with the expression: "squared", "or more"."""
    return _GOES_ON.match(plain(text).casefold()) is not None
