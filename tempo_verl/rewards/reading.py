# SPDX-License-Identifier: Apache-2.0
"""What an answer is: a number, words, an interval, several numbers. Two answers that can be read are compared exactly.

This stands before Math-Verify, which compares after rounding, takes letters for products of variables, and knows an
inequality for an interval in one direction only. What cannot be read here is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from tempo_verl.rewards import expression, numeric
from tempo_verl.rewards.arithmetic import NUMBER, Number, scaled
from tempo_verl.rewards.extraction import ascii_signs, plain_text
from tempo_verl.rewards.intervals import LESS, MORE, NAME, RELATIONS, Part, read_set, same_parts
from tempo_verl.rewards.number_words import NUMBER_WORDS
from tempo_verl.rewards.quantity import CURRENCY
from tempo_verl.rewards.spelling import canonical
from tempo_verl.rewards.units import DIRECTIONS, goes_on, is_known, opposite, plain, scale, words_of

Kind = Literal[
    "number", "quantities", "based", "residue", "words", "letters", "several", "interval", "chain", "time", "dots"
]

_MACROS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|operatorname)\s*\{([^{}]*)\}")
_LOOKS = re.compile(
    r"\\(?:hspace|vspace|phantom)\s*\{[^{}]*\}|"
    r"\\(?:left|right|displaystyle|large|Large|huge|small|bf|rm|it)(?![a-zA-Z])"
    r"|\\(?:color|textcolor)\s*\{[^{}]*\}|(?<!\\)\\[!,;: ]|~"
)
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*")
_NO_WORDS = {"pi", "inf", "infinity", "infty"}
_LETTERS = re.compile(r"[A-Z]{2,}|(?=[A-Z\d]*[A-Z])(?=[A-Z\d]*\d)[A-Z][A-Z\d]+")
_TIME = re.compile(r"(\d{1,2})(?::(\d{2}))?\s*(?:([ap])\.?\s?m\.?|(?=n|m)(?P<half>noon|midnight))?", re.IGNORECASE)
_BASED = re.compile(
    r"\s*(?:\(\s*([\dA-F]+(?:\.[\dA-F]+)?)\s*\)|([\dA-F,]*\d[\dA-F]*(?:\.[\dA-F]+)?))\s*(?:_|base)\s*"
    r"(?:\{\s*\(?(\d{1,2}|[a-z]+)\)?\s*\}|(\d{1,2}|[a-z]+))\s*"
)
_RESIDUE = re.compile(
    r"\s*(?:[a-zA-Z]\s*(?:\\equiv(?![a-zA-Z])|≡)\s*)?([-\d, ]+?)\s*"
    r"(?:\\[pb]?mod(?![a-zA-Z])|\(\s*(?:\\(?:text|mathrm)\s*\{\s*mod\s*\}|\\bmod|mod\b))\s*\{?\s*(\d+)\s*\}?\s*\)?\s*"
)
_QUANTITY = re.compile(r"([-+]?\d[\d,]*(?:\.\d+|/\d+)?)\s*((?!and\b)[A-Za-z°]+(?:\^\d)?(?: (?!and\b)[A-Za-z]+)*)")
_JOINS = re.compile(r"\band\b|[,;&×]|\\times(?![a-zA-Z])")
# Words that say the same, and a set that says that there is none
NOTHING, NOWHERE = "no solution", "does not exist"
_SYNONYMS = {
    "dne": NOWHERE, "does not exist": NOWHERE, "no solution": NOTHING, "no solutions": NOTHING,
    "no real solution": NOTHING, "no real solutions": NOTHING, "empty set": NOTHING, "the empty set": NOTHING,
}  # fmt: skip
_EMPTY = re.compile(r"\s*(?:\\(?:emptyset|varnothing|O)|∅|\\\{\s*\\\})\s*")
_DOTS = re.compile(r"\\[lcd]?dots(?:[bcmo])?(?![a-zA-Z])|\.{3}|…")
_PERCENT = re.compile(
    r"(?:\\?%|\\text\s*\{\s*\\?%\s*\}|(?:\\text\s*\{)?\s*per\s?cent\s*\}?)"
    r"(?P<words>\s*(?:\\text\s*\{[a-zA-Z ]+\}|[a-zA-Z]+))?\s*$",
    re.IGNORECASE,
)

# A unit: a word or a few after white space, or letters in \text and the like, with exponents and quotients of those.
_UNIT_TEXT = (
    r"\\(?:text|mathrm|textrm|textbf|mathbf|mbox|operatorname|unit|si)\s*"
    r"\{(?:[^\d{}=+^]|\^\s*-?\d|\^\s*\{\s*-?\d\s*\})*\}"
)
_UNIT_PART = rf"(?:{_UNIT_TEXT}|\\(?:mu|Omega|degree)|\^\s*\\circ|\^\s*\{{\s*\\circ\s*\}}|°)"
_UNIT_POWER = r"(?:\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d))?"
_SPACE = r"(?:\s|~|\\[,;:! ]|\\q?quad)"
_UNIT = re.compile(
    rf"{_SPACE}*(?:{_UNIT_PART}{_UNIT_POWER}(?:{_SPACE}|[/·*A-Z]|\\cdot|\\times|{_UNIT_PART}{_UNIT_POWER})*"
    rf"|\\[dt]?frac\s*\{{\s*{_UNIT_TEXT}{_UNIT_POWER}\s*\}}\s*\{{\s*{_UNIT_TEXT}{_UNIT_POWER}\s*\}})\s*"
    rf"|{_SPACE}+(?!(?:and|or|to|mod|pi|sqrt|sin|cos|tan|log|ln)\b)[A-Za-z]+(?:\s*/\s*[A-Za-z]+|\s+[A-Za-z]+|-[A-Za-z]+){{,4}}"
    rf"{_UNIT_POWER}\s*\.?|{_SPACE}*[\u0400-\u04ff\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]{{1,6}}"
)
_REASON = re.compile(r",?\s+(?:since|because|as|where)\b")
_SPACED_LETTER = re.compile(rf"{_SPACE}+[^\W\d_]\s*")
_ONE_LETTER = re.compile(r"[A-Za-z]\s*")
_NAMED = re.compile(rf"\s*({NAME})\s*(?:=|\\approx(?![a-z])|≈)\s*(.+)", re.DOTALL)

_OR = re.compile(r"\bor\b")
_SEPARATOR = re.compile(
    r",(?!\d{3}(?!\d))|(?<!\d),|;|\\(?:text|mathrm)\s*\{\s*,?\s*(?:and|or)\s*\}|\b(?:and|or)\b|\\\\"
)
_MOST = 200  # characters of an answer that is read


@dataclass(frozen=True)
class Reading:
    """What an answer is.

    Attributes:
        kind: of what sort.
        value: a number; a text; for ``several`` the numbers; for ``interval`` its parts; for ``quantities``, such as 5
            feet 3 inches, the numbers; for ``based`` digits and base; for ``residue`` the residues and the modulus.
        detail: of a number ``%`` if it is one in per cent; of several how they are bracketed; of an interval ``sure``
            if it cannot be a pair.
        names: of several numbers, if each has one.
        units: the words behind a number; behind each of quantities.
    """

    kind: Kind
    value: Any
    detail: str = ""
    names: tuple[str, ...] = ()
    units: tuple[frozenset[str], ...] = ()


def read(answer: str) -> Reading | None:
    """What an answer is, or ``None``."""
    if len(answer) > _MOST:
        return None
    answer = answer.replace(",\\!", ",")
    text = _LOOKS.sub(" ", _REASON.split(ascii_signs(answer).replace("$", " "))[0]).strip().rstrip(".").strip()
    for reader in (_dots, _time, _based, _residue, _number, _quantities, _interval, _words, _several, _chain):
        found = reader(text)
        if found is not None:
            return found
    return None


def same(first: Reading | None, second: Reading | None) -> bool | None:
    """Whether two answers say the same; ``None`` where that takes algebra. Symmetric."""
    if first is None or second is None:
        return None
    kinds = {first.kind, second.kind}
    if kinds == {"number"}:
        return _same_number(first, second)
    if kinds in ({"words"}, {"letters"}, {"dots"}, {"residue"}):
        return first.value == second.value
    if kinds == {"chain"}:
        return True if first.value == second.value else None
    if "quantities" in kinds:
        return _same_quantities(first, second)
    if "based" in kinds:
        return _same_based(first, second)
    if kinds == {"residue", "number"}:
        residue, number = (first, second) if first.kind == "residue" else (second, first)
        return residue.value[0] == (number.value,)
    if kinds == {"time", "number"}:
        time, number = (first, second) if first.kind == "time" else (second, first)
        return time.value == (number.value, 0)
    if kinds == {"words", "number"}:
        return False
    if kinds == {"words", "letters"}:
        return str(first.value).casefold() == str(second.value).casefold()
    if kinds == {"time"}:
        return _same_time(first, second)
    if kinds == {"interval"}:
        return same_parts(first.value, second.value)
    if kinds == {"several"}:
        return _same_several(first, second)
    if kinds == {"interval", "several"}:
        interval, several = (first, second) if first.kind == "interval" else (second, first)
        pair = _pair(several)
        return False if pair is None else same_parts(interval.value, pair.value)
    if kinds == {"number", "several"}:
        several = first if first.kind == "several" else second
        return False if len(set(several.value)) > 1 else None
    return False if "dots" in kinds and kinds & {"several", "number"} else None


def key(found: Reading) -> tuple:
    """What readings that are the same have in common. A number in per cent is its share: 50 % is 1/2."""
    if found.kind == "number":
        number = found.value
        return ("number", numeric.as_key(numeric.hundredth(number) if found.detail else number))
    if found.kind == "several":
        return ("several", *sorted(numeric.as_key(number) for number in found.value))
    if found.kind == "interval":
        return ("interval", *(_part_key(part) for part in found.value))
    if found.kind == "quantities":
        return ("quantities", *sorted(numeric.as_key(number) for number in found.value))
    return (found.kind, found.value)


def detail_key(found: Reading) -> tuple | None:
    """What can tell readings with the same :func:`key` apart; ``None`` where it is left open."""
    if found.kind == "time":
        return (found.detail,) if found.detail else None
    if found.kind == "number":
        ways = found.units[0] & DIRECTIONS if found.units else frozenset()
        return tuple(sorted(ways)) or None
    if found.kind == "quantities":
        return tuple(tuple(sorted(words)) for words in found.units)
    if found.kind == "several":
        keys = [numeric.as_key(number) for number in found.value]
        if len(set(found.names)) == len(found.names) > 0:
            return ("named", *sorted(zip(found.names, keys, strict=True)))
        return (found.detail, *(keys if found.detail in ("(", "[") else ())) if found.detail else None
    return None


def _part_key(part: Part) -> tuple:
    ends = (None if end is None else numeric.as_key(end) for end in (part.low, part.high))
    return (*ends, part.low_closed, part.high_closed)


# ---------------------------------------------------------------------- numbers


def _number(text: str) -> Reading | None:
    named = _NAMED.fullmatch(text)
    if named and "=" not in named[2]:
        text = named[2].strip()
    elif "=" in text and (parts := text.split("=")) and all(expression.value(part) is not None for part in parts):
        text = parts[-1]
    text = re.sub(r"^(?:\\approx(?![a-z])|≈|\\sim)\s*", "", text)
    text = CURRENCY.sub(" ", text).strip()
    percent, words = _PERCENT.search(text), frozenset[str]()
    if percent:
        words, text = words_of(percent["words"] or ""), text[: percent.start()].strip()
    if around := re.fullmatch(r"\\(?:mathbf|mathrm|text|textbf|underline)\s*\{([^{}]*)\}", text):
        text = around[1]
    found = expression.value(text)
    if found is not None:
        return Reading("number", found, "%" if percent else "", units=(words,) if words else ())
    if percent:
        return None
    if _goes_on(text):
        return Reading("words", canonical(text))
    with_unit = _with_unit(text)
    return None if with_unit is None else Reading("number", with_unit[0], units=(with_unit[1],))


def _goes_on(text: str) -> bool:
    """Whether an answer is more than the number it begins with: "5 squared", "3 or more"."""
    return any(goes_on(text[at:]) and expression.value(text[:at]) is not None for at in range(1, len(text)))


def _with_unit(text: str) -> tuple[Number, frozenset[str]] | None:
    """The number before a unit, and that. A bare letter is a variable; a word of scale is part of the number."""
    for at in range(1, len(text)):
        rest = text[at:]
        if text[at - 1].isspace() or _ONE_LETTER.fullmatch(rest) or not _is_unit(rest):
            continue
        found = expression.value(text[:at])
        if found is not None:
            return scaled(found, Fraction(scale(rest))), words_of(rest)
    return None


def _is_unit(text: str) -> bool:
    if goes_on(text):
        return False
    if _SPACED_LETTER.fullmatch(text):
        return is_known(text)
    return bool(_UNIT.fullmatch(text)) or (
        not any(map(str.isdigit, text[:1])) and is_known(text) and len(plain(text)) > 1
    )


def _same_number(first: Reading, second: Reading) -> bool:
    one, other = first.value, second.value
    assert isinstance(one, NUMBER) and isinstance(other, NUMBER)
    if first.units and second.units and opposite(first.units[0], second.units[0]):
        return False
    if first.detail == second.detail:
        return numeric.close(one, other)
    percent, share = (one, other) if first.detail else (other, one)
    return numeric.close(percent, share) or numeric.close(numeric.hundredth(percent), share)


def _quantities(text: str) -> Reading | None:
    """Several numbers with a unit each: ``5 hours and 20 minutes``, ``12 boys, 15 girls``."""
    typed = plain(text)
    pieces = list(_QUANTITY.finditer(typed))
    if len(pieces) < 2 or _JOINS.sub("", _QUANTITY.sub("", typed)).strip():
        return None
    if any(goes_on(piece[2]) for piece in pieces):
        return None
    values = [expression.value(piece[1]) for piece in pieces]
    if None in values:
        return None
    return Reading("quantities", tuple(values), units=tuple(words_of(piece[2]) for piece in pieces))


def _same_quantities(first: Reading, second: Reading) -> bool | None:
    """All numbers, with their units where both have them; never one for all."""
    if not {first.kind, second.kind} <= {"quantities", "number", "several"}:
        return None
    if first.kind == second.kind:
        mine, others = (list(zip(found.value, found.units, strict=True)) for found in (first, second))
        return _same_members(mine, others, lambda one, other: one[1] == other[1] and numeric.close(one[0], other[0]))
    if "several" in (first.kind, second.kind):
        return len(first.value) == len(second.value) and all(map(numeric.close, first.value, second.value))
    return False


def _based(text: str) -> Reading | None:
    """A number in another base: ``1011_2``, ``(2F)_{16}``, ``43_{\\text{seven}}``."""
    match = _BASED.fullmatch(re.sub(r"\\(?:text|mathrm)\s*\{\s*([a-z]+)\s*\}", r"\1", text.replace("{,}", "")))
    if not match:
        return None
    base = match[3] or match[4]
    return Reading("based", (match[1] or match[2], NUMBER_WORDS.get(base, base)))


def _same_based(first: Reading, second: Reading) -> bool | None:
    """The same digits in the same base; the base may be left out on one side."""
    if first.kind == second.kind:
        return tuple(map(str, first.value)) == tuple(map(str, second.value))
    based, other = (first, second) if first.kind == "based" else (second, first)
    return expression.value(based.value[0]) == other.value if other.kind == "number" else None


def _residue(text: str) -> Reading | None:
    """``x \\equiv 3 \\pmod 7``, ``3 \\bmod 7``, ``1, 3 (mod 7)``."""
    match = _RESIDUE.fullmatch(text)
    modulus = None if match is None else expression.value(match[2])
    if match is None or not isinstance(modulus, Fraction) or modulus <= 0:
        return None
    residues = [expression.value(piece) for piece in match[1].split(",")]
    if not all(isinstance(residue, Fraction) for residue in residues):
        return None
    return Reading("residue", (tuple(sorted({residue % modulus for residue in residues})), modulus))  # type: ignore[operator]


# ---------------------------------------------------------------------- words


def _words(text: str) -> Reading | None:
    words = plain_text(_MACROS.sub(r"\1", text)).strip().rstrip(".").strip()
    same_words = _SYNONYMS.get(" ".join(words.casefold().split()))
    if same_words is not None or _EMPTY.fullmatch(text):
        return Reading("words", same_words or NOTHING)
    number = NUMBER_WORDS.get(words.casefold())
    if number is not None:
        return Reading("number", number)
    if _LETTERS.fullmatch(words) and words not in ("NO", "YES", "OR", "AND"):
        return Reading("letters", words)
    overlined = re.fullmatch(r"\\(?:overline|overrightarrow|angle|triangle)\s*\{?\s*([A-Z]{2,})\s*\}?", words)
    if overlined:
        return None
    if _WORDS.fullmatch(words) and words.casefold() not in _NO_WORDS:
        return Reading("words", " ".join(words.casefold().split()))
    return None


def _dots(text: str) -> Reading | None:
    if not _DOTS.search(text):
        return None
    plain = re.sub(r"\s+", "", _DOTS.sub("...", text)).replace("\\{", "{").replace("\\}", "}")
    return Reading("dots", re.sub(r"[{}]", "", plain))


def _time(text: str) -> Reading | None:
    match = _TIME.fullmatch(plain_text(plain(text)))
    if not match or int(match[2] or 0) > 59 or int(match[1]) > 24 or not (match[2] or match[3] or match["half"]):
        return None
    half = (match[3] or {"noon": "p", "midnight": "a"}.get((match["half"] or "").lower(), "")).lower()
    return Reading("time", (int(match[1]), int(match[2] or 0)), half)


def _same_time(first: Reading, second: Reading) -> bool:
    return first.value == second.value and (first.detail == second.detail or "" in (first.detail, second.detail))


# ---------------------------------------------------------------------- sets and orders


def _interval(text: str) -> Reading | None:
    found = read_set(text)
    return Reading("interval", found.parts, "sure") if found is not None and found.sure else None


def _pair(several: Reading) -> Reading | None:
    """(a, b) or [a, b] as an interval."""
    values = several.value
    assert isinstance(values, tuple)
    if len(values) != 2 or several.detail not in ("(", "[") or several.names:
        return None
    closed = several.detail == "["
    return Reading("interval", (Part(*values, closed, closed),))


def _chain(text: str) -> Reading | None:
    """``a < b < c``, from the smallest."""
    pieces = RELATIONS.split(text)
    if len(pieces) < 5:
        return None
    members, signs = [canonical(piece) for piece in pieces[::2]], pieces[1::2]
    kinds = LESS if signs[0] in LESS else MORE
    if not all(members) or not all(sign in kinds for sign in signs):
        return None
    if kinds is MORE:
        members.reverse()
        signs.reverse()
    return Reading("chain", (*members, *(kinds[sign] for sign in signs)))


# ---------------------------------------------------------------------- several numbers


def _several(text: str) -> Reading | None:
    brackets = ""
    plus_minus = text.split("\\pm")
    if len(plus_minus) == 2:
        text = ", ".join(sign.join(plus_minus) for sign in "+-")
    inner = text.replace("\\langle", "(").replace("\\rangle", ")")
    if match := re.fullmatch(r"\s*(\(|\[|\\\{)(.*)(\)|\]|\\\})\s*", inner, re.DOTALL):
        if _balanced(match[2]):
            brackets, inner = match[1][-1] + match[3][-1], match[2]
    elif match := re.fullmatch(r"\\begin\{(cases|aligned|[pb]?matrix)\}(.*)\\end\{\1\}", inner, re.DOTALL):
        rows = match[2].replace("&=", "=") if match[1] == "aligned" else match[2]
        if "&" in rows:
            return None
        brackets, inner = "" if match[1] in ("cases", "aligned") else "()", rows
    if re.fullmatch(r"-?\d+,\d+", text):
        return None  # two numbers, or one with a decimal comma
    pieces = [piece.strip() for piece in _SEPARATOR.split(inner)]
    pieces = [piece for piece in pieces if piece]
    if len(pieces) < 2 and brackets != "{}":
        return None
    names, values = [], []
    for piece in pieces:
        named = _NAMED.fullmatch(piece)
        found = _number(named[2] if named else piece)
        if found is None:
            return None
        names.append(named[1] if named else "")
        values.append(found.value)
    if not values:
        return None
    if _OR.search(inner) and all(numeric.close(values[0], other) for other in values[1:]):
        return Reading("number", values[0])  # one number in two spellings
    return Reading("several", tuple(values), brackets[:1], tuple(names) if all(names) else ())


def _balanced(text: str) -> bool:
    depth = 0
    for sign in text:
        depth += (sign in "([{") - (sign in ")]}")
        if depth < 0:
            return False
    return depth == 0


def _same_several(first: Reading, second: Reading) -> bool | None:
    one, other = first.value, second.value
    assert isinstance(one, tuple) and isinstance(other, tuple)
    if {first.detail, second.detail} in ({"(", "{"}, {"[", "{"}):
        return False
    if {first.detail, second.detail} == {"(", "["}:
        return False
    if first.names and second.names and len(set(first.names)) > 1:
        pairs, others = (list(zip(found.names, found.value, strict=True)) for found in (first, second))
        return _same_members(pairs, others, lambda a, b: a[0] == b[0] and numeric.close(a[1], b[1]))
    ordered = "(" in (first.detail, second.detail) or "[" in (first.detail, second.detail)
    if ordered:
        return len(one) == len(other) and all(numeric.close(a, b) for a, b in zip(one, other, strict=True))
    return _same_members(one, other, numeric.close)


def _same_members(one: Sequence, other: Sequence, equal: Callable) -> bool:
    rest = list(other)
    for value in one:
        found = next((place for place, candidate in enumerate(rest) if equal(value, candidate)), None)
        if found is None:
            return False
        rest.pop(found)
    return not rest
