# SPDX-License-Identifier: Apache-2.0
"""Finds the question and the answer in a record, under whatever names and in whatever form it was published."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tempo_verl.data.labels import Label, read_label
from tempo_verl.data.options import Options, find_options
from tempo_verl.data.printed import unprinted
from tempo_verl.data.values import RowError, as_text, clean, is_missing, lookup, names_of, values_of
from tempo_verl.rewards.extraction import final_answer

LONGEST_ANSWER = 10_000  # characters
SAYS_SEVERAL = "is_multiple_answer"  # OlympiadBench's column

_ROLES = {"human": "user", "gpt": "assistant"}
_CHOICE = re.compile(r"\(([A-Z])\)")
_MARKED = re.compile(r"####|\\boxed|<answer>")
_PRINTED = re.compile(r"""\s*(?:\[\s*['"]|(?:np\.|numpy\.)?array\()""")
_IN_MATH_MODE = re.compile(r"\$([^$]*)\$")
_SEVERAL_WHOLE = re.compile(r"-?\d{1,2}(?:,-?\d{1,2})+")  # "2,3": with three digits it may be one number
_EITHER = re.compile(r"\bor\b", re.IGNORECASE)
_BLANK_CELL = re.compile(r"[_\s]*")


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
        "question_stem",
        "problem_text",
        "ctx",
        "goal",
        "sentence",
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
        "answer_number",
        "cop",
        "correct_option",
        "solution",
    )
    options: tuple[str, ...] = ("options", "choices", "endings", "mc1_targets")
    distractors: tuple[str, ...] = ("incorrect_answer_1", "incorrect_answer_2", "incorrect_answer_3")
    passage: tuple[str, ...] = ("passage", "context", "body", "input", "article", "premise")
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
            present, value = lookup(fields, name)
            if not present and role in self.named:
                raise RowError(f"no column {name!r}", names_of(fields))
            if name != besides and not is_missing(value):
                return name, value
        return None, None

    def others(self, fields: dict[str, Any], role: str, taken: str) -> list[str]:
        """Columns of a role that hold something else than the one ``taken``; none where the user named the role.

        A worked solution beside an answer is no other answer.
        """
        if role in self.named:
            return []
        value = lookup(fields, taken)[1]
        found = {name: lookup(fields, name)[1] for name in getattr(self, role) if name not in (taken, "solution")}
        return [name for name, other in found.items() if not is_missing(other) and other != value]


@dataclass(frozen=True)
class RawQuestion:
    """A question as text.

    Attributes:
        column: it was found in.
        choices: its options, if it has any; ``options`` their texts by letter.
        header: of the grid that is asked for.
        messages: of the chat that it ends.
    """

    text: str
    column: str
    passage: str = ""
    choices: Options = field(default_factory=Options)
    header: tuple[str, ...] = ()
    messages: tuple[dict[str, str], ...] | None = None

    @property
    def options(self) -> dict[str, str]:
        return self.choices.texts

    def chosen(self, letters: Sequence[str]) -> str:
        """The ground truth where these letters are right: "(B) Paris", "A, C"."""
        return f"({letters[0]}) {self.options[letters[0]]}" if len(letters) == 1 else ", ".join(letters)


@dataclass(frozen=True)
class Answer:
    """The answer of a record.

    Attributes:
        column: it was found in.
        truth: the ground truth; "" where the whole column has to tell what its ``label`` means.
        style: the verifier that its form suggests; ``None`` where the text must tell.
        label: of a question with options.
        unit: that the question has to ask for; "" for none.
        told: what was guessed, in sentences.
    """

    column: str
    truth: str
    style: str | None = None
    label: Label | None = None
    unit: str = ""
    told: tuple[str, ...] = ()


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
        raise RowError("no question", f"name its column with --question; {names_of(fields)}")
    messages = None
    if isinstance(value, list):
        messages = _chat(value, column)
        value = messages[-1]["content"]
    text = clean(as_text(value, "question", column))
    for pattern in strip:
        text = pattern.sub("", text)
    text = text.strip()
    if not text:
        raise RowError("no question", f"{column} is empty")
    if messages is not None:
        messages = (*messages[:-1], {"role": "user", "content": text})
    _, passage = columns.find(fields, "passage", besides=column)
    passage = clean(as_text(passage, "passage", "passage")).strip() if passage is not None else ""
    choices = find_options(fields, columns, f"{seed}:{text}")
    grid = next((grid for value in values_of(fields, columns.answer) if (grid := _grid_of(value))), None)
    header = tuple(str(name) for name in grid["header"]) if grid else ()
    return RawQuestion(text, column, passage, choices, header, messages)


def read_answer(fields: dict[str, Any], columns: Columns, question: RawQuestion, *, join: bool = False) -> Answer:
    """The answer of a record.

    Args:
        fields: the record.
        columns: where to look.
        question: of the record.
        join: several answers in a list all belong to the answer.

    Raises:
        RowError: there is none, or it is not one answer.
    """
    column, value = columns.find(fields, "answer", besides=question.column)
    if question.choices.right:
        return Answer(column or question.choices.column, question.chosen(question.choices.right), "choice")
    if column is None:
        raise RowError("no answer", f"name its column with --answer; {names_of(fields)}")
    if question.options:
        label = read_label(value, question.choices, column)
        return Answer(column, "", "choice", label, told=label.told)
    value = _only(value)
    if isinstance(value, list):
        return _joined(fields, value, column, join)
    grid = _grid_of(value)
    if grid is not None:
        return Answer(column, _solution(grid), "grid")
    answer = clean(as_text(value, "answer", column)).strip()
    if answer.startswith("{'"):
        raise RowError("nested answer", f"{column} is a printed object, {answer[:40]!r}; give the file as JSON lines")
    if _MARKED.search(answer):
        answer = final_answer(answer) or ("" if column == "solution" else answer)
    elif column == "solution" and (len(answer) > 100 or not is_mathematical(answer)):
        answer = ""
    if not answer:
        raise RowError("no answer", f"no final answer in {column}")
    if len(answer) > LONGEST_ANSWER:
        raise RowError("answer too long", f"{len(answer):,} characters, the limit is {LONGEST_ANSWER:,}")
    told = (f"answers in {column} hold 'or': the whole of it is the answer",) if _EITHER.search(answer) else ()
    if _says_several(fields) and _SEVERAL_WHOLE.fullmatch(answer):
        answer = answer.replace(",", ", ")  # "2,3" could be a decimal comma
        told = (f"numbers in {column} are several, as {SAYS_SEVERAL} says",)
    return Answer(column, answer, "choice" if _CHOICE.fullmatch(answer) else None, told=told)


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


# ---------------------------------------------------------------------- values


def _only(value: Any) -> Any:
    """The one item of a list, or of one whose items are all the same; a list may come as printed text."""
    if isinstance(value, str) and _PRINTED.match(value):
        try:
            value = unprinted(value)
        except ValueError:
            return value
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        return _only(value[0])
    return value


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


# ---------------------------------------------------------------------- several answers


def _says_several(fields: dict[str, Any]) -> bool:
    return str(lookup(fields, SAYS_SEVERAL)[1]).strip().casefold() in ("true", "1")


def _joined(fields: dict[str, Any], values: list[Any], column: str, join: bool) -> Answer:
    """Several mathematical answers as one, "2, 3", where it is said that all of them belong to it."""
    if not join and not _says_several(fields):
        raise RowError(
            "several answers",
            f"{column} holds {len(values)}; name one, like --answer {column}.0, or say with --join-answers that all of "
            "them belong to the answer",
        )
    texts = [clean(as_text(value, "answer", column)).strip() for value in values]
    texts = [match[1].strip() if (match := _IN_MATH_MODE.fullmatch(text)) else text for text in texts]
    for text in texts:
        if not is_mathematical(text):
            raise RowError("several answers", f"{column} holds {text[:40]!r}; only mathematical ones make one answer")
    who = "--join-answers" if join else SAYS_SEVERAL
    return Answer(column, ", ".join(texts), "math", told=(f"several answers in {column} are one, as {who} says",))


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
    cells = [[clean(as_text(cell, "cell", "rows")) for cell in row] for row in (grid["header"], *grid["rows"])]
    return json.dumps({"header": cells[0], "rows": cells[1:]}, ensure_ascii=False)
