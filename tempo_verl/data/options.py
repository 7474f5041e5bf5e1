# SPDX-License-Identifier: Apache-2.0
"""The options of a question with several: in one column, in a column each, or told as right and wrong ones."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tempo_verl.data.printed import unprinted
from tempo_verl.data.values import RowError, as_text, clean, is_missing, key, lookup, names_of, values_of
from tempo_verl.rewards import expression

if TYPE_CHECKING:
    from tempo_verl.data.columns import Columns

MOST = 26

_OWN_LABEL = re.compile(r"\s*\(?([A-Z])[).:、．]\s*")
_IN_A_LINE = re.compile(r"(?:^|,)\s*([a-z])\s*\)\s*")  # "a ) 38 , b ) 27.5"
# A column for each option: A, B, ...; option_a, optionA, opa, choice1, ending0, ...
_EACH = re.compile(r"(option|opt|op|choice|ending|alternative|candidate|answer|ans|sol)?_?([a-z]|\d{1,2})")
# Columns that are named like these may as well hold several right answers, unless a label tells one of them.
_ANSWERS = ("answer", "ans", "sol")
_LABEL = ("label", "labels", "gold", "correct", "target")


@dataclass(frozen=True)
class Options:
    """The options of a question.

    Attributes:
        texts: by letter, A, B, ...
        labels: those they were published with, in their order; empty if there were none.
        right: letters of the right ones, where the options themselves tell; else empty.
        column: where they were found; "" if there are none.
        told: what was guessed, in sentences.
    """

    texts: dict[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    right: tuple[str, ...] = ()
    column: str = ""
    told: tuple[str, ...] = ()


def find_options(fields: dict[str, Any], columns: Columns, shuffled_by: str) -> Options:
    """The options of a record.

    Args:
        fields: the record.
        columns: where to look.
        shuffled_by: seed of the order of options that are published as right and wrong ones.

    Raises:
        RowError: one of them is missing, or their form is not known.
    """
    if wrong := values_of(fields, columns.distractors):
        return _shuffled(fields, columns, wrong, shuffled_by)
    each: Sequence[str] = ()
    column, value = None, None
    if "options" in columns.named and len(columns.options) > 1:
        each = columns.options
        if absent := [name for name in each if not lookup(fields, name)[0]]:
            raise RowError(f"no column {absent[0]!r}", names_of(fields))
    else:
        column, value = columns.find(fields, "options")
        each = () if column is not None else _one_each(tuple(fields))
        if 0 < len(each) < 4 and each[0] == "a" and all(map(_is_number, values_of(fields, each))):
            each = ()  # coefficients
    told = []
    if each:
        value = _until_empty(fields, each)
        column = f"{each[0]} to {each[-1]}"
        told.append(f"options are taken from the columns {', '.join(each)}")
    elif column is not None:
        told.append(f"options are taken from {column}")
    if not value or column is None:
        return Options()
    if isinstance(value, str):
        value = _unprinted(value, column)
        told.append(f"options in {column} are read from printed text")
    labels, values, right = _parts(value)
    texts = option_texts(values)
    if len(texts) > MOST:
        raise RowError("too many options", f"{len(texts)}, the limit is {MOST}")
    if labels and len(labels) != len(texts):
        raise RowError("options unreadable", f"{len(texts)} texts, but {len(labels)} labels")
    if right:
        told.append(f"right options are those with a 1 in {column}")
    own = [_OWN_LABEL.match(text) for text in texts]
    if all(match and match[1] == _letter(number) for number, match in enumerate(own)):
        texts = [text[match.end() :] for text, match in zip(texts, own, strict=True) if match]
    told = told if "options" not in columns.named else told[1:]
    return Options(by_letter(texts), tuple(labels), tuple(map(_letter, right)), column, tuple(told))


def by_letter(texts: Iterable[str]) -> dict[str, str]:
    """Texts under A, B, ..."""
    return {_letter(number): text for number, text in enumerate(texts)}


def option_texts(values: Iterable[Any]) -> list[str]:
    """Options as text.

    Raises:
        RowError: one is no scalar.
    """
    return [clean(as_text(value, "option", "options")).strip() for value in values]


def one_hot(values: Sequence[Any]) -> list[int]:
    """Where the ones are in a list of noughts and ones; empty if it is no such list."""
    if not all(isinstance(value, int) and value in (0, 1) for value in values):
        return []
    return [number for number, value in enumerate(values) if value == 1]


def _is_number(value: Any) -> bool:
    return not isinstance(value, str) or expression.value(value) is not None


def _letter(number: int) -> str:
    return chr(ord("A") + number)


def _shuffled(fields: dict[str, Any], columns: Columns, wrong: list[Any], seed: str) -> Options:
    _, right = columns.find(fields, "answer")
    if right is None or len(wrong) < len(columns.distractors):
        raise RowError("options missing", f"{len(wrong)} wrong ones of {len(columns.distractors)}, and the right one")
    order = random.Random(seed).sample(range(len(wrong) + 1), len(wrong) + 1)
    texts = option_texts([right, *wrong])
    told = () if "distractors" in columns.named else (f"wrong options are taken from {', '.join(columns.distractors)}",)
    right_letter = _letter(order.index(0))
    return Options(by_letter(texts[number] for number in order), (), (right_letter,), columns.distractors[0], told)


# ---------------------------------------------------------------------- a column each


@lru_cache(maxsize=256)
def _one_each(names: tuple[str, ...]) -> tuple[str, ...]:
    """Columns that hold one option each, in their order: two or more in a row from a, 0 or 1 on."""
    families: dict[str, dict[str, str]] = {}
    for name in reversed(names):
        match = _EACH.fullmatch(key(name))
        if match and (match[2].isalpha() or match[1] not in (None, "op")):  # op1 and op2 are operands
            families.setdefault(match[1] or "", {})[match[2].lstrip("0") or match[2][:1]] = name
    labelled = {key(name) for name in names} & set(_LABEL)
    for prefix, members in families.items():
        if prefix in _ANSWERS and not labelled:
            continue
        for signs in ([chr(code) for code in range(ord("a"), ord("z") + 1)], [*map(str, range(1, MOST + 1))]):
            if signs[0] == "1" and "0" in members:
                signs = ["0", *signs]
            run = []
            for sign in signs:
                if sign not in members:
                    break
                run.append(members[sign])
            if len(run) > 1:  # a lone column "a" is an answer
                return tuple(run)
    return ()


def _until_empty(fields: dict[str, Any], names: Sequence[str]) -> list[Any]:
    """The values up to the last one that is not empty: a question may have fewer options than there are columns.

    Raises:
        RowError: an empty one before others, which would shift their letters.
    """
    values = [lookup(fields, name)[1] for name in names]
    while values and is_missing(values[-1]):
        values.pop()
    gap = next((name for name, value in zip(names, values, strict=False) if is_missing(value)), None)
    if gap is not None:
        raise RowError("options missing", f"{gap} is empty, {names[len(values) - 1]} is not")
    return values if len(values) > 1 else []


# ---------------------------------------------------------------------- one column


def _unprinted(text: str, column: str) -> Any:
    try:
        return unprinted(text)
    except ValueError as error:
        starts = list(_IN_A_LINE.finditer(text))
        if len(starts) > 1 and [match[1].upper() for match in starts] == [*map(_letter, range(len(starts)))]:
            ends = [*(match.start() for match in starts[1:]), len(text)]
            return [text[match.end() : end].strip() for match, end in zip(starts, ends, strict=True)]
        raise RowError(
            "options unreadable", f"{column} is {text[:60]!r}, neither a list nor an object: {error}"
        ) from error


def _parts(value: Any) -> tuple[list[str], list[Any], list[int]]:
    """(labels, texts, places of the right ones if it tells them).

    Of {label: [...], text: [...]}, {choices: [...], labels: [0, 1]}, {"A": ...}, [{"label": ..., "text": ...}], [...].
    """
    if isinstance(value, dict):
        lists = {key(str(name)): item for name, item in value.items() if isinstance(item, list)}
        texts = next((lists[name] for name in ("text", "texts", "choices") if name in lists), None)
        if texts is not None:
            marks = next((lists[name] for name in ("label", "labels") if name in lists), [])
            # two labels 0 and 1 may be names, as ARC has them; "labels" and what repeats itself are no names
            are_marks = len(marks) == len(texts) > 1 and ("labels" in lists or len(set(map(str, marks))) < len(marks))
            if are_marks and (right := one_hot(marks)):
                return [], texts, right
            names = [str(mark).strip() for mark in marks]
            if len(set(names)) < len(names):
                raise RowError("options unreadable", f"labels {', '.join(names)[:60]} name no single option")
            return names, texts, []
        known = {str(name): text for name, text in value.items() if not is_missing(text)}
        return list(known), list(known.values()), []
    if isinstance(value, list):
        if value and all(isinstance(item, dict) and "text" in item for item in value):
            names = [str(item.get("label", "")).strip() for item in value]
            return names if len(set(names)) == len(names) else [], [item["text"] for item in value], []
        return [], value, []
    raise RowError("options unreadable", f"a {type(value).__name__}")
