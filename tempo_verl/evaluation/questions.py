# SPDX-License-Identifier: Apache-2.0
"""The questions of an evaluation, and their prompts as the rollouts of a training run make them."""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tempo_verl.data.overlap import question_hash
from tempo_verl.data.validation import prompt_text, read_rows, struct
from tempo_verl.errors import UserError
from tempo_verl.evaluation.engines import first_line
from tempo_verl.rewards import check_allowed, check_style, options_of, style_of, useless


@dataclass(frozen=True)
class Question:
    """One row of a question file.

    Attributes:
        index: its place in the files, from 0.
        id: ``extra_info.id``, or ``index`` where there is none.
        data_source: the set it belongs to.
        messages: the chat, as the file holds it.
        text: the text of all messages.
        hash: of the text without its looks, the same in every file.
        style: its verifier.
        ground_truth: None where there is none, or where it must not be known.
        options: of a choice, in the order of their letters; None where the row does not tell.
    """

    index: int
    id: str
    data_source: str
    messages: list[dict[str, Any]]
    text: str
    hash: str
    style: str
    ground_truth: str | None
    options: list[str] | None = None


def load_questions(
    field: str,
    files: Sequence[Path],
    *,
    with_answers: bool,
    limit: int | None = None,
    allowed: Collection[str] = (),
    setting: str = "--allow-verifier NAME",
) -> list[Question]:
    """Read question files in verl's columns.

    Args:
        field: the option that names the files, for messages.
        files: .parquet, .json or .jsonl.
        with_answers: False takes the ground truths away as the rows are read, for D_U.
        limit: only so many questions, the first.
        allowed, setting: functions that the files may name as verifiers, see ``rewards.check_allowed``.

    Raises:
        UserError: a file or row that cannot be used, no rows at all, or a ground truth that nothing can equal.
    """
    rows = ((file, *row) for file in files for row in enumerate(read_rows(field, str(file), False)))
    questions = [
        question_of(index, row, prompt_text(field, str(file), number, row["prompt"]), with_answers=with_answers)
        for index, (file, number, row) in enumerate(islice(rows, limit))
    ]
    if not questions:
        raise UserError(f"{field}={', '.join(map(str, files))}: no questions in it; give a file with at least one row")
    check_allowed((question.style for question in questions), allowed, f"{field}={', '.join(map(str, files))}", setting)
    for style in {question.style for question in questions}:
        check_style(style)
    found = useless([q.ground_truth for q in questions], [q.style for q in questions], [q.options for q in questions])
    if found:
        row, why = min(found.items())
        raise UserError(
            f"{field}: row {row} has a ground truth of no use to style={questions[row].style} ({why}); mend it, or "
            "leave it empty"
        )
    return questions


def aligned(questions: Sequence[Question], texts: Sequence[str]) -> list[Question] | None:
    """The question of each row of a dataset that was read from the same files, some rows of which may be left out.

    Args:
        questions: of the files.
        texts: the rows' prompts, as ``data.validation.prompt_text`` makes them.

    Returns:
        None where a row is none of the questions: the dataset changes its prompts and leaves rows out.
    """
    if len(texts) == len(questions):
        return list(questions)
    by_text: dict[str, deque[Question]] = defaultdict(deque)
    for question in questions:
        by_text[question.text].append(question)
    found = [by_text[text].popleft() for text in texts if by_text[text]]
    return found if len(found) == len(texts) else None


def question_of(index: int, row: dict[str, Any], text: str, *, with_answers: bool) -> Question:
    """A row in verl's columns as a question.

    Args:
        index: its place among the questions.
        text: of its prompt.
        with_answers: False leaves its ground truth out.
    """
    reward, extra = struct(row, "reward_model"), struct(row, "extra_info")
    truth = reward.get("ground_truth") if with_answers else None
    return Question(
        index=index,
        id=str(index if extra.get("id") is None else extra["id"]),
        data_source=row["data_source"] or "unknown",
        messages=row["prompt"],
        text=text,
        hash=question_hash(text),
        style=style_of(reward.get("style"), row["data_source"]),
        ground_truth=None if truth in (None, "") else str(truth),
        options=options_of(extra),
    )


def digest(files: Sequence[Path]) -> str:
    """SHA-256 of the files' content, one after the other."""
    content = hashlib.sha256()
    for file in files:
        content.update(file.read_bytes())
    return content.hexdigest()


def prompt_ids(
    questions: Sequence[Question],
    tokenizer: Any,
    model_type: str,
    *,
    name: str,
    chat_template_kwargs: dict[str, Any],
    max_prompt_tokens: int,
) -> list[tuple[int, ...]]:
    """Token ids of each question's prompt, by verl's own chat builder: what a rollout of this model is given.

    Args:
        model_type: of the model's configuration; chooses the builder.
        name: the model, for messages.
        chat_template_kwargs: verl's ``data.apply_chat_template_kwargs``.

    Raises:
        UserError: no chat template, a model verl has no text builder for, or a longer prompt.
    """
    from jinja2 import TemplateError
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    if tokenizer.chat_template is None:
        raise UserError(
            f"{name}: its tokenizer has no chat template; use an instruction-tuned model, or put a chat_template.jinja "
            "in its directory"
        )
    try:
        chat = create_continuous_token_builder(
            tokenizer, hf_model_type=model_type, chat_template_kwargs=chat_template_kwargs
        )
        prompts = [tuple(chat.build_initial_tokens(question.messages)) for question in questions]
    except (ValueError, TemplateError) as error:
        raise UserError(f"{name}: its chat template cannot make the prompts ({first_line(error)})") from error
    longest = max(range(len(prompts)), key=lambda row: len(prompts[row]))
    if len(prompts[longest]) > max_prompt_tokens:
        raise UserError(
            f"the prompt of row {questions[longest].index} has {len(prompts[longest])} tokens, more than "
            f"--max-prompt-tokens={max_prompt_tokens}; raise it, or leave the row out"
        )
    return prompts
