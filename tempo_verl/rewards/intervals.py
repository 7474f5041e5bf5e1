# SPDX-License-Identifier: Apache-2.0
"""Sets of real numbers: intervals, inequalities, unions, and what is left when points are taken away."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from tempo_verl.rewards import numeric
from tempo_verl.rewards.arithmetic import Number
from tempo_verl.rewards.expression import value

NAME = r"(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([a-z]\))?)"
# relations, and whether the end belongs to what they bound
LESS = {"<": False, "\\lt": False, "\\le": True, "\\leq": True, "\\leqslant": True, "≤": True, "<=": True}
MORE = {">": False, "\\gt": False, "\\ge": True, "\\geq": True, "\\geqslant": True, "≥": True, ">=": True}
RELATIONS = re.compile(r"(<=|>=|≤|≥|<|>|\\(?:leqslant|geqslant|leq|geq|le|ge|lt|gt)(?![a-zA-Z]))")
_UNEQUAL = re.compile(r"\\neq?(?![a-zA-Z])|≠")
_MEMBER = re.compile(rf"\s*{NAME}\s*(?:\\in(?![a-zA-Z])|∈)\s*(.+)", re.DOTALL)
_UNION = re.compile(r"\\cup(?![a-zA-Z])|∪")
_EITHER = re.compile(r"\\(?:text|mathrm)\s*\{\s*or\s*\}|\bor\b")
_BRACKETS = re.compile(r"\s*([(\[])(.+)([)\]])\s*", re.DOTALL)
_INFINITE = re.compile(r"\s*([-+]?)\s*(?:\\infty|∞|\\infinity|infinity)\s*")
_VARIABLE = re.compile(rf"\s*{NAME}\s*")
_MEET = re.compile(r"\\cap(?![a-zA-Z])|∩|\\(?:text|mathrm)\s*\{\s*and\s*\}|\band\b|\\(?:land|wedge)(?![a-zA-Z])|∧")
_BUILT = re.compile(
    rf"\s*\\?\{{\s*{NAME}\s*(?:\\in\s*\\(?:mathbb|mathbf|bf)\s*\{{?\s*R\s*\}}?\s*)?(?:\\mid|\\vert|\||:|\\colon)\s*(.+?)\\?\}}\s*",
    re.DOTALL,
)
_REALS = re.compile(
    r"\s*(?:\\(?:mathbb|mathbf|bf)\s*\{?\s*R\s*\}?|\\R|ℝ|(?:\\text\s*\{\s*)?all\s+reals?(?:\s+numbers?)?(?:\s*\})?)\s*(\^\s*\{?\s*[+-]\s*\}?)?\s*",
    re.IGNORECASE,
)
_WITHOUT = re.compile(r"\\(?:setminus|backslash)(?![a-zA-Z])|∖|\bexcept\b")
_POINTS = re.compile(r"\s*\\?\{(.+)\\?\}\s*", re.DOTALL)


@dataclass(frozen=True)
class Part:
    """From ``low`` to ``high``, None for no end; closed where the end belongs to it."""

    low: Number | None
    high: Number | None
    low_closed: bool
    high_closed: bool


@dataclass(frozen=True)
class Set:
    """``parts`` in order, none of which touches another; ``sure`` if it cannot be a pair of numbers."""

    parts: tuple[Part, ...]
    sure: bool


def read_set(text: str) -> Set | None:
    """The set that ``text`` describes, or ``None``."""
    built = _BUILT.fullmatch(text)
    if built:
        text = built[1]
    member = _MEMBER.fullmatch(text)
    if member:
        text = member[1]
    certain = bool(member or built)
    halves = [half.strip() for half in _WITHOUT.split(text)]
    if len(halves) == 2:
        whole, holes = _united(halves[0]), _points(halves[1]) or _points(f"{{{halves[1]}}}")
        if whole is None or holes is None:
            return None
        return Set(without(whole.parts, holes), True)
    found = _united(text)
    if found is not None and all(part.low is not None and part.low == part.high for part in found.parts):
        return None  # numbers
    return None if found is None else Set(found.parts, found.sure or certain)


def _united(text: str) -> Set | None:
    pieces = _UNION.split(text) if _UNION.search(text) else _EITHER.split(text)
    parts: list[Part] = []
    sure = len(pieces) > 1
    for piece in pieces:
        if inside := _MEMBER.fullmatch(piece):
            piece, sure = inside[1], True
        found = _met(piece, in_union=len(pieces) > 1)
        if found is None:
            return None
        sure = sure or found[1]
        parts += found[0]
    return Set(_merged(parts), sure)


def _met(text: str, in_union: bool) -> tuple[Sequence[Part], bool] | None:
    """One piece of a union: itself a meeting of pieces, mostly of one."""
    pieces = _MEET.split(text)
    parts: Sequence[Part] = [Part(None, None, False, False)]
    sure = len(pieces) > 1
    for piece in pieces:
        found = _bracketed(piece) or _inequality(piece) or _all_reals(piece) or (_one_of(piece) if in_union else None)
        if found is None:
            return None
        sure = sure or found[1]
        parts = [both for one in parts for other in found[0] if (both := _common(one, other)) is not None]
    return (parts, sure) if parts else None


def _all_reals(text: str) -> tuple[list[Part], bool] | None:
    match = _REALS.fullmatch(text)
    if not match:
        return None
    sign, zero = match[1] or "", Fraction(0)
    return [Part(zero if "+" in sign else None, zero if "-" in sign else None, False, False)], True


def _one_of(text: str) -> tuple[list[Part], bool] | None:
    """Single numbers: ``{0, 1}``, ``x = 0``."""
    equation = re.fullmatch(rf"\s*{NAME}\s*=\s*(.+)", text, re.DOTALL)
    points = _points(text) if equation is None else [value(equation[1])]
    if not points or any(point is None for point in points):
        return None
    return [Part(point, point, True, True) for point in points], True


def _points(text: str) -> list[Number] | None:
    match = _POINTS.fullmatch(text)
    if not match:
        return None
    found = [value(piece) for piece in match[1].rstrip("\\").split(",")]
    return None if None in found else found  # type: ignore[return-value]


def _common(one: Part, other: Part) -> Part | None:
    """What two parts share."""
    low, low_closed = max(
        ((part.low, part.low_closed) for part in (one, other)),
        key=lambda end: (end[0] is not None, end[0] or Fraction(0), not end[1]),
    )
    high, high_closed = min(
        ((part.high, part.high_closed) for part in (one, other)),
        key=lambda end: (end[0] is None, end[0] or Fraction(0), end[1]),
    )
    if low is not None and high is not None and (low > high or (low == high and not (low_closed and high_closed))):
        return None
    return Part(low, high, low_closed, high_closed)


def without(parts: Sequence[Part], holes: Sequence[Number]) -> tuple[Part, ...]:
    """Parts with points taken away."""
    found = list(parts)
    for hole in holes:
        around = (Part(None, hole, False, False), Part(hole, None, False, False))
        found = [piece for part in found for side in around if (piece := _common(part, side)) is not None]
    return tuple(found)


def _end(text: str) -> tuple[Number | None, bool] | None:
    """(end, whether it is finite)."""
    if _INFINITE.fullmatch(text):
        return None, False
    found = value(text)
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
        holes = [value(side) for side in re.split(r",|\band\b", sides[1])] if len(sides) == 2 else [None]
        if not _VARIABLE.fullmatch(sides[0]) or None in holes:
            return None
        return list(without([Part(None, None, False, False)], holes)), True  # type: ignore[arg-type]
    pieces = RELATIONS.split(text)
    if len(pieces) == 5 and _VARIABLE.fullmatch(pieces[2]):
        ends, signs = [_end(pieces[0]), _end(pieces[4])], [pieces[1], pieces[3]]
        if None in ends:
            return None
        if all(sign in LESS for sign in signs):
            return [Part(ends[0][0], ends[1][0], LESS[signs[0]] and ends[0][1], LESS[signs[1]] and ends[1][1])], True  # type: ignore[index]
        if all(sign in MORE for sign in signs):
            return [Part(ends[1][0], ends[0][0], MORE[signs[1]] and ends[1][1], MORE[signs[0]] and ends[0][1])], True  # type: ignore[index]
        return None
    if len(pieces) != 3:
        return None
    left, sign, right = pieces
    size = re.fullmatch(rf"\s*\|\s*{NAME}\s*([-+].+)?\|\s*", left)
    if size and (bound := value(right)) is not None and bound > 0:
        edges = [value(f"{end}-({size[1] or 0})") for end in (f"-({right})", f"({right})")]
        if None in edges:
            return None
        if sign in LESS:
            return [Part(edges[0], edges[1], LESS[sign], LESS[sign])], True
        return [Part(None, edges[0], False, MORE[sign]), Part(edges[1], None, MORE[sign], False)], True
    if _VARIABLE.fullmatch(right) and not _VARIABLE.fullmatch(left):
        left, right = right, left
        sign = {"<": ">", "\\lt": ">", ">": "<", "\\gt": "<"}.get(sign) or ("≥" if sign in LESS else "≤")
    end = value(right)
    if not _VARIABLE.fullmatch(left) or end is None or value(left) is not None:
        return None
    if sign in LESS:
        return [Part(None, end, False, LESS[sign])], True
    return [Part(end, None, MORE[sign], False)], True


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


def same_parts(one: Sequence[Part], other: Sequence[Part]) -> bool:
    """Whether two sets are the same."""
    return len(one) == len(other) and all(_same_part(a, b) for a, b in zip(one, other, strict=True))


def _same_part(one: Part, other: Part) -> bool:
    def ends(a: Number | None, b: Number | None) -> bool:
        return a is b is None or (a is not None and b is not None and numeric.close(a, b))

    closed = (one.low_closed, one.high_closed) == (other.low_closed, other.high_closed)
    return closed and ends(one.low, other.low) and ends(one.high, other.high)
