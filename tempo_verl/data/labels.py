# SPDX-License-Identifier: Apache-2.0
"""Which option an answer names: by its letter, label or text, by a number counted from 0 or 1, or by a 1 among 0s.

One row often does not tell: 2 is the third option, the second, or the one whose text is 2. All rows of a column
together mostly do; where they do not, nothing is guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from tempo_verl.data.options import Options
from tempo_verl.data.printed import unprinted
from tempo_verl.data.values import RowError, as_text, clean
from tempo_verl.rewards import choice
from tempo_verl.rewards.extraction import final_answer

BASES = ("0", "1", "text", "letter")  # what a user may say that labels are

_NUMBER = re.compile(r"\d{1,2}(?:\.0+)?")
_NUMBERS = re.compile(r"\d{1,2}(?:\s*[,;]\s*\d{1,2})+")  # no thousands: "1,000" has three digits
_LETTER = re.compile(r"\(?([A-Za-z])[).:]*\s*(.*)", re.DOTALL)
_MARKED = re.compile(r"####|\\boxed|<answer>")
_PRINTED = re.compile(r"\s*(?:\[|(?:np\.|numpy\.)?array\()")

Reading = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Label:
    """An answer to a question with options.

    Attributes:
        readings: what it may be (``0`` or ``1``: a number counted from there; ``one-hot``, ``text``, ``letter``; ""
            where there is no doubt), and the letters that it then names, sorted.
        shown: it, for messages.
        count: the number of options.
        is_number: its column has to tell what its numbers are.
        published: it is a label that the options were published with.
        told: what was guessed, in sentences.
    """

    readings: Reading
    shown: str
    count: int
    is_number: bool = False
    published: bool = False
    told: tuple[str, ...] = ()


def read_label(value: Any, options: Options, column: str) -> Label:
    """What an answer to a question with options may mean.

    Args:
        value: a letter, a label, a text, a number, or a list of these; a list may come as text.
        options: what there is to choose from.
        column: where it was found, for messages.

    Raises:
        RowError: it names no option, or two with the same text.
    """
    told: tuple[str, ...] = ()
    texts = list(options.texts.values())
    if isinstance(value, str):
        value = clean(value).strip()
        if _MARKED.search(value):
            value = final_answer(value) or value
        if _PRINTED.match(value) and value not in texts and isinstance(listed := _unprinted(value), list):
            value, told = listed, (f"lists in {column} are read from printed text",)
    items = value if isinstance(value, list) else [value]
    shown = clean(str(value if isinstance(value, list) else _shown(value, column)))[:60]
    numbers = [_number(item) for item in items]
    if len(items) == len(texts) > 1 and set(numbers) <= {0, 1}:
        # [0, 1] beside two options: the second is right, rather than both
        marked = tuple(letter for letter, mark in zip(options.texts, numbers, strict=True) if mark)
        readings: Reading = {"one-hot": marked} if marked else {}
        told += (f"lists in {column} are one-hot: a 1 stands for a right option",)
    else:
        readings = _together([_item(item, options, column) for item in items])
        several = _together([_item(item, options, column) for item in _split(value)])
        if readings.keys() == {"text"} and (lettered := several.get("", several.get("letter"))):
            readings = {"letter": lettered, **readings}
        readings = readings or several
    if not readings:
        if len(items) == 1 and texts.count(_shown(items[0], column).strip()) > 1:
            raise RowError("two equal options", f"{column} is {shown!r}, the text of more than one option")
        raise RowError("answer is no option", f"{column} is {shown!r}, there are {len(texts)} options")
    if any(len(letters) > 1 for letters in readings.values()):
        told += (f"several options are right where {column} names several",)
    digits = None not in numbers and not any(isinstance(item, bool) for item in items)
    is_number = bool({"0", "1", "one-hot"} & readings.keys()) or (digits and readings.keys() == {"text"})
    published = all(str(item) in options.labels for item in items)
    return Label(readings, shown, len(texts), is_number, published, told)


def _shown(value: Any, column: str) -> str:
    return clean(as_text(value, "answer", column))


def _unprinted(text: str) -> Any:
    try:
        return unprinted(text)
    except ValueError:
        return None


def _number(value: Any) -> int | None:
    """A number that may count options: 2, 2.0, "2"."""
    if isinstance(value, float | Decimal):
        return int(value) if math.isfinite(value) and value == int(value) else None
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return int(Decimal(value.strip()))
    return int(value) if isinstance(value, int) else None


def _split(value: Any) -> list[Any]:
    """Several letters or numbers in one text: "A, C", "AC", "0, 2"."""
    if not isinstance(value, str):
        return []
    if _NUMBERS.fullmatch(value):
        return [part.strip() for part in re.split(r"[,;]", value)]
    letters = choice.letters(value)
    if not letters or len(letters) < 2 or (value.isalpha() and not value.isupper()):  # "ac" may be a word
        return []
    return list(letters)


def _item(value: Any, options: Options, column: str) -> Reading:
    """What one item may be; {} for no option."""
    text = _shown(value, column).strip()
    letters = list(options.texts)
    number = None if isinstance(value, bool) else _number(value)
    spellings = {text, str(number)} - {"None"}
    by_text = [letter for letter, option in options.texts.items() if option in spellings]
    named = _named(text, options) or (_named(str(number), options) if number is not None else None)
    found: dict[str, tuple[str, ...]] = {}
    if named:
        found["letter"] = (named,)
    elif number is not None:
        found |= {base: (letters[number - int(base)],) for base in "01" if 0 <= number - int(base) < len(letters)}
    if len(by_text) == 1:
        found["text"] = (by_text[0],)
    if "letter" in found and found.get("text", found["letter"]) == found["letter"]:
        return {"": found["letter"]}
    return found


def _named(text: str, options: Options) -> str | None:
    """The letter of the option with that label, or of that letter: "B", "b", "(B)", "B.", "(B) Paris"."""
    letters = list(options.texts)
    if text in options.labels:
        return letters[options.labels.index(text)]
    match = _LETTER.fullmatch(text)
    if match is None:
        return None
    named: str | None = match[1].upper()
    if options.labels and all(len(label) == 1 and label.isalpha() for label in options.labels):
        upper = [label.upper() for label in options.labels]
        named = letters[upper.index(match[1].upper())] if match[1].upper() in upper else None
    return named if named in options.texts and match[2].strip() in ("", options.texts[named]) else None


def _together(each: Sequence[Reading]) -> Reading:
    """What all items of a list may be; an item without doubt goes with any. Numbers that repeat count no options."""
    if not each:
        return {}
    modes = [mode for mode in ("letter", "text", "0", "1") if all(mode in item or "" in item for item in each)]
    if all("" in item for item in each):
        modes = [""]
    found = {}
    for mode in modes:
        letters = [letter for item in each for letter in item.get(mode, item.get("", ()))]
        if len(set(letters)) == len(letters):
            found[mode] = tuple(sorted(letters))
    return found


# ---------------------------------------------------------------------- a whole column


class UndecidedLabel(RowError):
    """A label that could name several options, whatever the rest of its column."""


@dataclass
class _Column:
    """What the labels of one column can be, with the first row for each finding.

    Attributes:
        first: number.
        possible: meanings that fit all numbers; ``against`` has the row that a meaning does not fit.
        differing: meanings between which it matters.
        by_text: answer that is the text of an option and nothing else.
        by_letter: answer that is the letter or label of an option and nothing else.
        doubtful: answer that is the letter of one option and the text of another; ``published`` if all of those are
            labels that the options were published with.
    """

    first: str = ""
    possible: list[str] = field(default_factory=lambda: ["one-hot", "text", "0", "1"])
    against: dict[str, str] = field(default_factory=dict)
    differing: set[tuple[str, str]] = field(default_factory=set)
    by_text: str = ""
    by_letter: str = ""
    doubtful: str = ""
    published: bool = True


class Labels:
    """All labels of a data set: first :meth:`add` them, then ask for the :meth:`letters` of each.

    Args:
        base: what numbers are, one of ``BASES``; None to decide that by all labels of a column.
        said_by: who says so, for messages.
    """

    def __init__(self, base: str | None = None, said_by: str = "--label-base"):
        self._base, self._said_by = base, said_by
        self._columns: dict[str, _Column] = {}

    def add(self, column: str, location: str, label: Label) -> None:
        """Take note of a label in ``column`` of the row at ``location``."""
        known = self._columns.setdefault(column, _Column())
        where = f"{location} has {label.shown}"
        if not label.is_number:
            if label.readings.keys() == {"text"}:
                known.by_text = known.by_text or where
            elif len(label.readings) == 1:
                known.by_letter = known.by_letter or where
            else:
                known.doubtful = known.doubtful or where
                known.published &= label.published
            return
        known.first = known.first or where
        for mode in [mode for mode in known.possible if mode not in label.readings]:
            known.possible.remove(mode)
            known.against[mode] = f"{where}, of {label.count} options"
        modes = sorted(label.readings)
        known.differing |= {
            (one, other) for one in modes for other in modes if label.readings[one] != label.readings[other]
        }

    def letters(self, column: str, label: Label) -> tuple[str, ...]:
        """The letters of the right options.

        Raises:
            UndecidedLabel: its column does not tell what it is.
            RowError: it is no option, given what its column is.
        """
        readings = label.readings
        if len(set(readings.values())) == 1 and (not label.is_number or "one-hot" in readings):
            return next(iter(readings.values()))
        mode = self._number(column) if label.is_number else self._letter(column)
        if mode not in readings:
            counted = f", counted from {mode}" if mode in ("0", "1") else ""
            raise RowError(
                "answer is no option", f"{column} is {label.shown!r}, there are {label.count} options{counted}"
            )
        return readings[mode]

    def told(self) -> list[str]:
        """What was decided about columns, in sentences."""
        sentences = []
        for column, known in self._columns.items():
            with suppress(UndecidedLabel):
                if known.first and (mode := self._number(column)) != "one-hot":
                    sentences.append(f"numbers in {column} are {_MEANING[mode]}: {self._why(known, mode)}")
            with suppress(UndecidedLabel):
                if known.doubtful:
                    sentences.append(f"answers in {column} that may be letters or texts are {self._letter(column)}s")
        return sentences

    def _number(self, column: str) -> str:
        """What the numbers of a column are."""
        known = self._columns[column]
        if self._base in ("0", "1", "text"):
            return self._base
        possible = known.possible
        if "one-hot" in possible:
            return "one-hot"
        if not possible:
            rows = "; ".join(f"{_NOT[mode]}: {row}" for mode, row in known.against.items() if mode in _NOT)
            raise UndecidedLabel("labels contradict each other", f"{column}: {rows}; {_REMEDY}")
        if known.by_text and possible != ["text"]:
            if "text" in possible:
                return "text"
            raise UndecidedLabel(
                "labels contradict each other",
                f"{column}: numbers ({known.first}) beside the texts of options ({known.by_text}); "
                f"{_REMEDY} or --label-base text",
            )
        if any((one, other) in known.differing for one in possible for other in possible):
            meanings = " or ".join(_MEANING[mode] for mode in possible)
            remedy = _REMEDY + (" or --label-base text" if "text" in possible else "")
            raise UndecidedLabel(
                "labels undecided", f"{column}: its numbers may be {meanings}, {known.first}; {remedy}"
            )
        return possible[0]

    def _letter(self, column: str) -> str:
        """What answers are that are the letter of one option and the text of another."""
        known = self._columns[column]
        if self._base in ("text", "letter"):
            return self._base
        if known.by_text and not known.by_letter:
            return "text"
        if not known.by_text and (known.by_letter or known.published):
            return "letter"
        raise UndecidedLabel(
            "labels undecided",
            f"{column}: {known.doubtful}, the letter of one option and the text of another; say which with "
            "--label-base letter or --label-base text",
        )

    def _why(self, known: _Column, mode: str) -> str:
        if self._base == mode:
            return f"{self._said_by} says so"
        if mode == "text" and known.by_text:
            return known.by_text
        others = [row for other, row in known.against.items() if other in _NOT and other != mode]
        if mode in ("0", "1") and (row := known.against.get("1" if mode == "0" else "0")):
            return row
        return others[0] if others else "each names the same option, whatever it is"


_REMEDY = "say which with --label-base 0 or --label-base 1"
_MEANING = {"0": "options counted from 0", "1": "options counted from 1", "text": "the texts of options"}
_NOT = {"0": "not counted from 0", "1": "not counted from 1"}
