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
from typing import Literal

from tempo_verl.rewards import expression, numeric
from tempo_verl.rewards.arithmetic import NUMBER, Number
from tempo_verl.rewards.extraction import ascii_signs, plain_text
from tempo_verl.rewards.quantity import CURRENCY

Kind = Literal["number", "words", "letters", "several", "interval", "time", "dots"]

_MACROS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|operatorname)\s*\{([^{}]*)\}")
_LOOKS = re.compile(
    r"\\(?:left|right|displaystyle|large|Large|huge|small|bf|rm|it)(?![a-zA-Z])"
    r"|\\(?:color|textcolor)\s*\{[^{}]*\}|(?<!\\)\\[!,;: ]|~"
)
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*")
_NO_WORDS = {"pi", "inf", "infinity", "infty"}
_LETTERS = re.compile(r"[A-Z]{2,}|(?=[A-Z\d]*[A-Z])(?=[A-Z\d]*\d)[A-Z][A-Z\d]+")
_TIME = re.compile(r"(\d{1,2}):(\d{2})\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE)
_DOTS = re.compile(r"\\[lcd]?dots(?:[bcmo])?(?![a-zA-Z])|\.{3}|…")
_PERCENT = re.compile(r"(?:\\?%|\\text\s*\{\s*\\?%\s*\}|(?:\\text\s*\{)?\s*per\s?cent\s*\}?)\s*$", re.IGNORECASE)

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
    rf"{_UNIT_POWER}\s*\.?|{_SPACE}*[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]{{1,6}}"
)
_REASON = re.compile(r",?\s+(?:since|because|as|where)\b")
_ONE_LETTER = re.compile(rf"{_SPACE}*[A-Za-z]\s*")
_NAME = r"(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([a-z]\))?)"
_NAMED = re.compile(rf"\s*({_NAME})\s*(?:=|\\approx(?![a-z])|≈)\s*(.+)", re.DOTALL)

_LESS = {"<": False, "\\lt": False, "\\le": True, "\\leq": True, "\\leqslant": True, "≤": True, "<=": True}
_MORE = {">": False, "\\gt": False, "\\ge": True, "\\geq": True, "\\geqslant": True, "≥": True, ">=": True}
_RELATION = re.compile(r"(<=|>=|≤|≥|<|>|\\(?:leqslant|geqslant|leq|geq|le|ge|lt|gt)(?![a-zA-Z]))")
_UNEQUAL = re.compile(r"\\neq?(?![a-zA-Z])|≠")
_MEMBER = re.compile(rf"\s*{_NAME}\s*(?:\\in(?![a-zA-Z])|∈)\s*(.+)", re.DOTALL)
_UNION = re.compile(r"\\cup(?![a-zA-Z])|∪")
_EITHER = re.compile(r"\\(?:text|mathrm)\s*\{\s*or\s*\}|\bor\b")
_BRACKETS = re.compile(r"\s*([(\[])(.+)([)\]])\s*", re.DOTALL)
_INFINITE = re.compile(r"\s*([-+]?)\s*(?:\\infty|∞|\\infinity|infinity)\s*")
_VARIABLE = re.compile(rf"\s*{_NAME}\s*")
_SEPARATOR = re.compile(
    r",(?!\d{3}(?!\d))|(?<!\d),|;|\\(?:text|mathrm)\s*\{\s*,?\s*(?:and|or)\s*\}|\b(?:and|or)\b|\\\\"
)
_MOST = 200  # characters of an answer that is read


@dataclass(frozen=True)
class Reading:
    """What an answer is.

    Attributes:
        kind: of what sort.
        value: a number; a text; for ``several`` the numbers; for ``interval`` its parts.
        detail: of a number ``%`` if it is one in per cent; of several how they are bracketed; of an interval ``sure``
            if it cannot be a pair.
        names: of several numbers, if each has one.
    """

    kind: Kind
    value: object
    detail: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """From ``low`` to ``high``, None for no end; closed where the end belongs to it."""

    low: Number | None
    high: Number | None
    low_closed: bool
    high_closed: bool


def read(answer: str) -> Reading | None:
    """What an answer is, or ``None``."""
    if len(answer) > _MOST:
        return None
    text = _LOOKS.sub(" ", _REASON.split(ascii_signs(answer).replace("$", " "))[0]).strip().rstrip(".").strip()
    for reader in (_dots, _time, _number, _words, _interval, _several):
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
    if kinds in ({"words"}, {"letters"}, {"dots"}):
        return first.value == second.value
    if kinds == {"words", "letters"}:
        return str(first.value).casefold() == str(second.value).casefold()
    if kinds == {"time"}:
        return _same_time(first, second)
    if kinds == {"interval"}:
        return _same_parts(first, second)
    if kinds == {"several"}:
        return _same_several(first, second)
    if kinds == {"interval", "several"}:
        interval, several = (first, second) if first.kind == "interval" else (second, first)
        pair = _pair(several)
        return False if pair is None else _same_parts(interval, pair)
    if kinds == {"number", "several"}:
        several = first if first.kind == "several" else second
        return False if len(set(map(str, several.value))) > 1 else None  # type: ignore[call-overload]
    return False if "dots" in kinds and kinds & {"several", "number"} else None


def key(found: Reading) -> tuple:
    """What readings that are the same have in common. A number in per cent is its share: 50 % is 1/2."""
    if found.kind == "number":
        number = found.value
        assert isinstance(number, NUMBER)
        return ("number", numeric.as_key(numeric.hundredth(number) if found.detail else number))
    if found.kind == "several":
        assert isinstance(found.value, tuple)
        keys = [numeric.as_key(number) for number in found.value]
        if found.names and len(set(found.names)) == len(found.names):
            return ("several", "named", *sorted(zip(found.names, keys, strict=True)))
        return ("several", found.detail, *(keys if found.detail in ("(", "[") else sorted(keys)))
    if found.kind == "interval":
        assert isinstance(found.value, tuple)
        ends = [[None if end is None else numeric.as_key(end) for end in (part.low, part.high)] for part in found.value]
        closed = [(part.low_closed, part.high_closed) for part in found.value]
        return ("interval", *((*pair, *marks) for pair, marks in zip(ends, closed, strict=True)))
    return (found.kind, found.value)


# ---------------------------------------------------------------------- numbers


def _number(text: str) -> Reading | None:
    named = _NAMED.fullmatch(text)
    if named and "=" not in named[2]:
        text = named[2].strip()
    elif "=" in text and (parts := text.split("=")) and all(expression.value(part) is not None for part in parts):
        text = parts[-1]
    text = re.sub(r"^(?:\\approx(?![a-z])|≈|\\sim)\s*", "", text)
    text = CURRENCY.sub(" ", text).strip()
    percent = _PERCENT.search(text)
    if percent:
        text = text[: percent.start()].strip()
    if around := re.fullmatch(r"\\(?:mathbf|mathrm|text|textbf|boldsymbol|underline)\s*\{([^{}]*)\}", text):
        text = around[1]
    found = expression.value(text)
    if found is None and not percent:
        found = _with_unit(text)
    return None if found is None else Reading("number", found, "%" if percent else "")


def _with_unit(text: str) -> Number | None:
    """The number before a unit. A bare letter is a variable."""
    for at in range(1, len(text)):
        rest = text[at:]
        if not text[at - 1].isspace() and _UNIT.fullmatch(rest) and not _ONE_LETTER.fullmatch(rest):
            found = expression.value(text[:at])
            if found is not None:
                return found
    return None


def _same_number(first: Reading, second: Reading) -> bool:
    one, other = first.value, second.value
    assert isinstance(one, NUMBER) and isinstance(other, NUMBER)
    if first.detail == second.detail:
        return numeric.close(one, other)
    percent, plain = (one, other) if first.detail else (other, one)
    return numeric.close(percent, plain) or numeric.close(numeric.hundredth(percent), plain)


# ---------------------------------------------------------------------- words


def _words(text: str) -> Reading | None:
    words = plain_text(_MACROS.sub(r"\1", text)).strip().rstrip(".").strip()
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
    match = _TIME.fullmatch(plain_text(text))
    if not match or int(match[2]) > 59 or int(match[1]) > 24:
        return None
    return Reading("time", (int(match[1]), int(match[2])), (match[3] or "").lower())


def _same_time(first: Reading, second: Reading) -> bool:
    return first.value == second.value and (first.detail == second.detail or "" in (first.detail, second.detail))


# ---------------------------------------------------------------------- intervals


def _interval(text: str) -> Reading | None:
    member = _MEMBER.fullmatch(text)
    if member:
        text = member[1]
    pieces = _UNION.split(text) if _UNION.search(text) else _EITHER.split(text)
    parts: list[Part] = []
    sure = bool(member) or len(pieces) > 1
    for piece in pieces:
        found = _bracketed(piece) or _inequality(piece)
        if found is None:
            return None
        sure = sure or found[1]
        parts += found[0]
    return Reading("interval", _merged(parts), "sure") if sure else None


def _pair(several: Reading) -> Reading | None:
    """(a, b) or [a, b] as an interval."""
    values = several.value
    assert isinstance(values, tuple)
    if len(values) != 2 or several.detail not in ("(", "[") or several.names:
        return None
    closed = several.detail == "["
    return Reading("interval", (Part(*values, closed, closed),))


def _end(text: str) -> tuple[Number | None, bool] | None:
    """(end, whether it is finite)."""
    if _INFINITE.fullmatch(text):
        return None, False
    found = expression.value(text)
    return None if found is None else (found, True)


def _bracketed(text: str) -> tuple[list[Part], bool] | None:
    match = _BRACKETS.fullmatch(text)
    if not match:
        return None
    ends = match[2].split(",")
    if len(ends) != 2:
        return None
    low, high = _end(ends[0]), _end(ends[1])
    if low is None or high is None:
        return None
    part = Part(low[0], high[0], match[1] == "[" and low[1], match[3] == "]" and high[1])
    return [part], (match[1] == "(") != (match[3] == ")") or not (low[1] and high[1])


def _inequality(text: str) -> tuple[list[Part], bool] | None:
    if _UNEQUAL.search(text):
        sides = _UNEQUAL.split(text)
        if len(sides) == 2 and _VARIABLE.fullmatch(sides[0]) and (hole := expression.value(sides[1])) is not None:
            return [Part(None, hole, False, False), Part(hole, None, False, False)], True
        return None
    pieces = _RELATION.split(text)
    if len(pieces) == 5 and _VARIABLE.fullmatch(pieces[2]):
        ends, signs = [_end(pieces[0]), _end(pieces[4])], [pieces[1], pieces[3]]
        if None in ends:
            return None
        if all(sign in _LESS for sign in signs):
            return [Part(ends[0][0], ends[1][0], _LESS[signs[0]] and ends[0][1], _LESS[signs[1]] and ends[1][1])], True  # type: ignore[index]
        if all(sign in _MORE for sign in signs):
            return [Part(ends[1][0], ends[0][0], _MORE[signs[1]] and ends[1][1], _MORE[signs[0]] and ends[0][1])], True  # type: ignore[index]
        return None
    if len(pieces) != 3:
        return None
    left, sign, right = pieces
    size = re.fullmatch(rf"\s*\|\s*{_NAME}\s*\|\s*", left)
    if size and sign in _LESS and (bound := expression.value(right)) is not None and bound > 0:
        return [Part(-bound, bound, _LESS[sign], _LESS[sign])], True
    if _VARIABLE.fullmatch(right) and not _VARIABLE.fullmatch(left):
        left, right = right, left
        sign = {"<": ">", "\\lt": ">", ">": "<", "\\gt": "<"}.get(sign) or ("≥" if sign in _LESS else "≤")
    end = expression.value(right)
    if not _VARIABLE.fullmatch(left) or end is None or expression.value(left) is not None:
        return None
    if sign in _LESS:
        return [Part(None, end, False, _LESS[sign])], True
    return [Part(end, None, _MORE[sign], False)], True


def _merged(parts: Sequence[Part]) -> tuple[Part, ...]:
    """In order, those that touch as one."""
    ordered = sorted(parts, key=lambda part: (part.low is not None, part.low if part.low is not None else Fraction(0)))
    found: list[Part] = []
    for part in ordered:
        last = found[-1] if found else None
        if last and (
            last.high is None
            or part.low is None
            or part.low < last.high
            or (part.low == last.high and (part.low_closed or last.high_closed))
        ):
            later = last.high is None or (part.high is not None and part.high < last.high)
            high, closed = (last.high, last.high_closed) if later else (part.high, part.high_closed)
            if not later and part.high == last.high:
                closed = part.high_closed or last.high_closed
            found[-1] = Part(last.low, high, last.low_closed, closed)
        else:
            found.append(part)
    return tuple(found)


def _same_parts(first: Reading, second: Reading) -> bool:
    one, other = first.value, second.value
    assert isinstance(one, tuple) and isinstance(other, tuple)
    return len(one) == len(other) and all(_same_part(a, b) for a, b in zip(one, other, strict=True))


def _same_part(one: Part, other: Part) -> bool:
    def ends(a: Number | None, b: Number | None) -> bool:
        return a is b is None or (a is not None and b is not None and numeric.close(a, b))

    closed = (one.low_closed, one.high_closed) == (other.low_closed, other.high_closed)
    return closed and ends(one.low, other.low) and ends(one.high, other.high)


# ---------------------------------------------------------------------- several numbers


def _several(text: str) -> Reading | None:
    brackets = ""
    inner = text.replace("\\langle", "(").replace("\\rangle", ")")
    if match := re.fullmatch(r"\s*(\(|\[|\\\{)(.*)(\)|\]|\\\})\s*", inner, re.DOTALL):
        if _balanced(match[2]):
            brackets, inner = match[1][-1] + match[3][-1], match[2]
    elif match := re.fullmatch(r"\\begin\{(cases|[pb]?matrix)\}(.*)\\end\{\1\}", inner, re.DOTALL):
        if "&" in match[2]:
            return None
        brackets, inner = "" if match[1] == "cases" else "()", match[2]
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
    distinct = len(set(first.names)) == len(first.names) > 0 and set(first.names) == set(second.names)
    if distinct:
        named = dict(zip(second.names, other, strict=True))
        return all(numeric.close(value, named[name]) for name, value in zip(first.names, one, strict=True))
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
