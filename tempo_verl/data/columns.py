# SPDX-License-Identifier: Apache-2.0
"""Finds the question and the answer in a record, under whatever names and in whatever form it was published."""

from __future__ import annotations

import ast
import json
import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import Any

from tempo_verl.rewards.extraction import final_answer

LONGEST_ANSWER = 10_000  # characters
ONE_OPTION_EACH = ("A", "B", "C", "D", "E")

_ROLES = {"human": "user", "gpt": "assistant"}
_OPTION_LABEL = re.compile(r"\s*\(?([A-Z])[).:、．]\s*")
_CHOICE = re.compile(r"\(([A-Z])\)")
_LETTER = re.compile(r"\(?([A-Za-z])[).:]*\s*(.*)", re.DOTALL)
_MARKED = re.compile(r"####|\\boxed|<answer>")
_BLANK_CELL = re.compile(r"[_\s]*")


class RowError(ValueError):
    """A row that cannot be used: the ``reason`` it is counted under, and the ``detail``."""

    def __init__(self, reason: str, detail: str):
        super().__init__(" ".join(f"{reason} ({detail})".split()))
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Columns:
    """Where to look, by role: names or dotted paths ("reward_model.ground_truth", "answers.0"), the first with a value
    counts. Names match without regard to case, spaces and hyphens.

    A role in ``named`` was chosen by the user: its column must be there.
    """

    question: tuple[str, ...] = (
        "problem",
        "question",
        "prompt",
        "query",
        "puzzle",
        "instruction",
        "input",
        "messages",
        "conversations",
    )
    answer: tuple[str, ...] = (
        "answer",
        "final_answer",
        "ground_truth",
        "target",
        "label",
        "gold",
        "expected_answer",
        "correct_answer",
        "answer_key",
        "answerkey",
        "correct",
        "reward_model.ground_truth",
        "solution",
    )
    options: tuple[str, ...] = ("options", "choices")
    distractors: tuple[str, ...] = ("incorrect_answer_1", "incorrect_answer_2", "incorrect_answer_3")
    passage: tuple[str, ...] = ("passage", "context", "body", "input")
    id: tuple[str, ...] = (
        "id",
        "unique_id",
        "problem_id",
        "question_id",
        "problem_idx",
        "record_id",
        "uid",
        "extra_info.id",
    )
    named: frozenset[str] = frozenset()

    def find(self, fields: dict[str, Any], role: str, besides: str | None = None) -> tuple[str | None, Any]:
        """(name, value) of the first column of a role with a value in it; (None, None) if there is none.

        Raises:
            RowError: the column that the user named is not there.
        """
        for name in getattr(self, role):
            present, value = _lookup(fields, name)
            if not present and role in self.named:
                raise RowError(f"no column {name!r}", _found(fields))
            if name != besides and not _is_missing(value):
                return name, value
        return None, None

    def others(self, fields: dict[str, Any], role: str, taken: str) -> list[str]:
        """Columns of a role that hold something else than the one ``taken``; none where the user named the role.

        A worked solution beside an answer is no other answer.
        """
        if role in self.named:
            return []
        value = _lookup(fields, taken)[1]
        found = {name: _lookup(fields, name)[1] for name in getattr(self, role) if name not in (taken, "solution")}
        return [name for name, other in found.items() if not _is_missing(other) and other != value]


@dataclass(frozen=True)
class RawQuestion:
    """A question as text; ``options`` by letter, ``messages`` of a chat that it ends, ``column`` it was found in,
    ``header`` of the grid that is asked for.

    ``correct`` is the letter of the right option where the record tells right and wrong options apart by column.
    """

    text: str
    column: str
    passage: str = ""
    options: dict[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    messages: tuple[dict[str, str], ...] | None = None
    correct: str | None = None


def read_question(
    fields: dict[str, Any], columns: Columns, *, strip: Sequence[re.Pattern] = (), seed: int = 0
) -> RawQuestion:
    """The question of a record.

    Args:
        fields: the record.
        columns: where to look.
        strip: what to take away from the question's text.
        seed: of the order of options that are published as right and wrong ones.

    Raises:
        RowError: there is none, or its form is not known.
    """
    column, value = columns.find(fields, "question")
    if column is None:
        raise RowError("no question", f"name its column with --question; {_found(fields)}")
    messages = None
    if isinstance(value, list):
        messages = _chat(value, column)
        value = messages[-1]["content"]
    text = clean(_text(value, "question", column))
    for pattern in strip:
        text = pattern.sub("", text)
    text = text.strip()
    if not text:
        raise RowError("no question", f"{column} is empty")
    if messages is not None:
        messages = (*messages[:-1], {"role": "user", "content": text})
    _, passage = columns.find(fields, "passage", besides=column)
    passage = clean(_text(passage, "passage", "passage")).strip() if passage is not None else ""
    options, labels, correct = _options(fields, columns, f"{seed}:{text}")
    grid = next((grid for value in _values(fields, columns.answer) if (grid := _grid_of(value))), None)
    header = tuple(str(name) for name in grid["header"]) if grid else ()
    return RawQuestion(text, column, passage, options, labels, header, messages, correct)


def read_answer(fields: dict[str, Any], columns: Columns, question: RawQuestion) -> tuple[str | None, str, str | None]:
    """(column, ground truth, style it suggests) of a record's answer; the style is ``None`` where the text must tell.

    Raises:
        RowError: there is none, or it is not one answer.
    """
    column, value = columns.find(fields, "answer", besides=question.column)
    if column is None:
        raise RowError("no answer", f"name its column with --answer; {_found(fields)}")
    if question.correct is not None:
        return column, _chosen(question, question.correct), "choice"
    value = _only(value)
    if question.options and isinstance(value, list):
        return column, ", ".join(sorted(_letter(item, question, column) for item in value)), "choice"
    if isinstance(value, list):
        raise RowError("several answers", f"{column} holds {len(value)}; name one, like {column}.0, or none")
    if question.options:
        return column, _chosen(question, _letter(value, question, column)), "choice"
    grid = _grid_of(value)
    if grid is not None:
        return column, _solution(grid), "grid"
    answer = clean(_text(value, "answer", column)).strip()
    if _MARKED.search(answer):
        answer = final_answer(answer) or ("" if column == "solution" else answer)
    elif column == "solution" and (len(answer) > 100 or not is_mathematical(answer)):
        answer = ""
    if not answer:
        raise RowError("no answer", f"no final answer in {column}")
    if len(answer) > LONGEST_ANSWER:
        raise RowError("answer too long", f"{len(answer):,} characters, the limit is {LONGEST_ANSWER:,}")
    return column, answer, "choice" if _CHOICE.fullmatch(answer) else None


def guess_style(answer: str) -> str:
    """``math``, ``text``, or ``exact`` for an answer of signs only."""
    if is_mathematical(answer):
        return "math"
    return "text" if any(sign.isalnum() for sign in answer) else "exact"


def is_mathematical(answer: str) -> bool:
    """LaTeX, numbers with at most a unit, or signs around single letters; not words."""
    if not any(sign.isalnum() for sign in answer):
        return False
    words = re.findall(r"[^\W\d_]{2,}", answer)
    return "\\" in answer or not words or (len(words) <= 2 and any(sign.isdecimal() for sign in answer))


def clean(text: str) -> str:
    """Text that every file format can hold: without NUL, pairs of surrogates joined, lone ones replaced."""
    return text.replace("\0", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# ---------------------------------------------------------------------- values


@lru_cache(maxsize=4096)
def _key(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().casefold())


@lru_cache(maxsize=256)
def _by_key(names: tuple[str, ...]) -> dict[str, str]:
    """The names of a record's columns; of two that look the same, the first."""
    return {_key(name): name for name in reversed(names)}


def _lookup(value: Any, path: str) -> tuple[bool, Any]:
    """(is it there, the value) at a dotted path."""
    if isinstance(value, dict):
        if path in value:
            return True, value[path]
        head, dot, rest = path.partition(".")
        for candidate in (path, head):
            name = _by_key(tuple(value)).get(_key(candidate))
            if name is not None:
                return _lookup(value[name], rest) if dot and candidate == head else (True, value[name])
    elif isinstance(value, list):
        head, dot, rest = path.partition(".")
        if head.isdecimal() and int(head) < len(value):
            return _lookup(value[int(head)], rest) if dot else (True, value[int(head)])
    return False, None


def _found(fields: dict[str, Any]) -> str:
    more = f" and {len(fields) - 20} more" if len(fields) > 20 else ""
    return f"found {', '.join(map(str, list(fields)[:20])) or 'none'}{more}"


def _is_missing(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (
        isinstance(value, str | list | dict) and not (value.strip() if isinstance(value, str) else value)
    )


def _only(value: Any) -> Any:
    """The one item of a list, which may come as JSON text; other values as they are."""
    if isinstance(value, str) and value.startswith('["'):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return value
    return _only(value[0]) if isinstance(value, list) and len(value) == 1 else value


def _text(value: Any, role: str, column: str) -> str:
    """A scalar as text, without loss: 204 for 204 and 204.0."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float | Decimal):
        number = Decimal(repr(value)) if isinstance(value, float) else value
        if number.is_finite() and abs(number.adjusted()) < 40:  # no thousand digits for 1e1000
            return f"{number:f}" if number != number.to_integral_value() else f"{number.to_integral_value():f}"
        return str(value)
    raise RowError(f"nested {role}", f"{column} is a {type(value).__name__}; name what is in it, like {column}.text")


def _chat(value: list[Any], column: str) -> tuple[dict[str, str], ...]:
    """Messages up to the user's last one."""
    messages = []
    for message in value:
        if not isinstance(message, dict):
            raise RowError("nested question", f"{column} is a list, but not of messages")
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        if isinstance(content, list):
            parts = [part.get("text") if isinstance(part, dict) else part for part in content]
            content = "".join(part for part in parts if isinstance(part, str))
            if len(parts) > sum(isinstance(part, str) for part in parts):
                raise RowError("nested question", f"{column} has a message that is not text")
        if not isinstance(role, str) or not isinstance(content, str | None):
            raise RowError("nested question", f"{column} is a list, but not of messages")
        messages.append({"role": _ROLES.get(role, role), "content": clean(content or "")})
    last = max((number for number, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None or not messages[last]["content"].strip():
        raise RowError("no question", f"{column} has no message of the user")
    return tuple(messages[: last + 1])


# ---------------------------------------------------------------------- options


def _letters(texts: Iterable[str]) -> dict[str, str]:
    options = {chr(ord("A") + number): text for number, text in enumerate(texts)}
    if len(options) > 26:
        raise RowError("too many options", f"{len(options)}, the limit is 26")
    return options


def _options(
    fields: dict[str, Any], columns: Columns, shuffled_by: str
) -> tuple[dict[str, str], tuple[str, ...], str | None]:
    """Options by letter, the labels they were published with, and the letter of the right one if columns tell it."""
    wrong = _values(fields, columns.distractors)
    if wrong:
        _, right = columns.find(fields, "answer")
        if right is None or len(wrong) < len(columns.distractors):
            raise RowError(
                "options missing", f"{len(wrong)} wrong ones of {len(columns.distractors)}, and the right one"
            )
        order = random.Random(shuffled_by).sample(range(len(wrong) + 1), len(wrong) + 1)
        texts = _option_texts([right, *wrong])
        return _letters(texts[number] for number in order), (), chr(ord("A") + order.index(0))
    one_each = columns.options if "options" in columns.named and len(columns.options) > 1 else ONE_OPTION_EACH
    value = _values(fields, one_each) if one_each == columns.options else columns.find(fields, "options")[1]
    if value is None:
        value = _values(fields, one_each)
        value = value if len(value) > 1 else None  # a lone column "a" is an answer
    if not value:
        return {}, (), None
    labels, values = _labelled(_unpacked(value))
    texts = _option_texts(values)
    own = [_OPTION_LABEL.match(text) for text in texts]
    if all(match and match[1] == chr(ord("A") + number) for number, match in enumerate(own)):
        texts = [text[match.end() :] for text, match in zip(texts, own, strict=True) if match]
    return _letters(texts), tuple(labels), None


def _option_texts(values: Iterable[Any]) -> list[str]:
    return [clean(_text(value, "option", "options")).strip() for value in values]


def _values(fields: dict[str, Any], names: Sequence[str]) -> list[Any]:
    return [value for name in names if not _is_missing(value := _lookup(fields, name)[1])]


def _unpacked(value: Any) -> Any:
    """Options in a CSV cell: a list or object as JSON or as Python writes it."""
    if not isinstance(value, str):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise RowError("options unreadable", f"{value[:60]!r} is neither a JSON list nor an object")


def _labelled(value: Any) -> tuple[list[str], list[Any]]:
    """(labels, texts) of {label: [...], text: [...]}, {"A": ...}, [{"label": ..., "text": ...}] or [...]."""
    if isinstance(value, dict):
        lists = {_key(str(name)): item for name, item in value.items() if isinstance(item, list)}
        if "text" in lists:
            return [str(label) for label in lists.get("label", [])], lists["text"]
        known = {str(name): text for name, text in value.items() if not _is_missing(text)}
        return list(known), list(known.values())
    if isinstance(value, list):
        if all(isinstance(item, dict) and "text" in item for item in value):
            return [str(item.get("label", "")) for item in value], [item["text"] for item in value]
        return [], value
    raise RowError("options unreadable", f"a {type(value).__name__}")


def _letter(value: Any, question: RawQuestion, column: str) -> str:
    """The letter of the right option: given as a letter, as the option's own label, as its text, or as its number."""
    options, letters = question.options, list(question.options)
    if isinstance(value, int) and not isinstance(value, bool):
        if str(value) in question.labels:
            return letters[question.labels.index(str(value))]
        if 0 <= value < len(letters):
            return letters[value]
        raise RowError("answer is no option", f"{column} is {value}, there are {len(letters)} options, counted from 0")
    text = clean(_text(value, "answer", column)).strip()
    if _MARKED.search(text):
        text = final_answer(text) or text
    if text in question.labels:
        return letters[question.labels.index(text)]
    by_text = [letter for letter, option in options.items() if option == text]
    by_number = letters[int(text)] if text.isdecimal() and int(text) < len(letters) else None
    if by_text and by_number and by_number not in by_text:
        raise RowError("answer is no option", f"{text!r} is the text of one option and the number of another")
    if by_text or by_number:
        return by_text[0] if by_text else str(by_number)
    named = _LETTER.fullmatch(text)
    if named and named[1].upper() in options and named[2] in ("", options[named[1].upper()]):
        return named[1].upper()
    raise RowError("answer is no option", f"{column} is {text[:60]!r}")


def _chosen(question: RawQuestion, letter: str) -> str:
    return f"({letter}) {question.options[letter]}"


# ---------------------------------------------------------------------- grids


def _grid_of(value: Any) -> dict[str, Any] | None:
    """A grid with ``header`` and ``rows``, which may come as JSON text; ``None`` if the value is none."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) and {"header", "rows"} <= value.keys() else None


def _solution(grid: dict[str, Any]) -> str:
    if any(_BLANK_CELL.fullmatch(str(cell)) for row in grid["rows"] for cell in row):
        raise RowError("masked answer", "the cells of the grid are blank; get the set with its solutions")
    cells = [[clean(_text(cell, "cell", "rows")) for cell in row] for row in (grid["header"], *grid["rows"])]
    return json.dumps({"header": cells[0], "rows": cells[1:]}, ensure_ascii=False)
