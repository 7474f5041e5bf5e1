# SPDX-License-Identifier: Apache-2.0
"""``tempo-verl prepare``: questions from files or the hub to the parquet files of a run."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tempo_verl.data.presets import presets

if TYPE_CHECKING:
    from tempo_verl.data.prepare import Summary


class Kind(str, Enum):
    """What a set is for."""

    labeled = "labeled"
    unlabeled = "unlabeled"
    heldout = "heldout"


class Dedup(str, Enum):
    """How duplicates are found."""

    off = "off"
    exact = "exact"
    normalized = "normalized"


class Overlap(str, Enum):
    """What is done about questions of another set."""

    drop = "drop"
    fail = "fail"


class BadRows(str, Enum):
    """What is done about rows that cannot be used."""

    fail = "fail"
    skip = "skip"


class LabelBase(str, Enum):
    """What numbers that name options are."""

    zero = "0"
    one = "1"
    text = "text"
    letter = "letter"


COLUMN = "Column, or dotted path, of the "


def prepare(
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    kind: Annotated[Kind, typer.Option("--as", help="What the set is for.")],
    source: Annotated[
        list[str] | None, typer.Argument(help="Files, folders or a Hugging Face dataset id; default: the preset's.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help=f"A known data set: {', '.join(presets())}.")] = None,
    template: Annotated[
        str | None,
        typer.Option(help="boxed, think_answer, choice, grid, plain, a Jinja file, or keep (messages as they are)."),
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="Another set whose questions must not be in this one; repeatable.")
    ] = None,
    overlap: Annotated[Overlap, typer.Option(help="Questions that are also in --against.")] = Overlap.drop,
    dedup: Annotated[Dedup, typer.Option(help="Keep the first of equal questions.")] = Dedup.normalized,
    bad_rows: Annotated[
        BadRows, typer.Option(help="Stop at the first unusable row, or leave them out.")
    ] = BadRows.fail,
    question: Annotated[str | None, typer.Option(help=COLUMN + "question.")] = None,
    answer: Annotated[str | None, typer.Option(help=COLUMN + "answer.")] = None,
    options: Annotated[
        list[str] | None, typer.Option(help=COLUMN + "options; repeatable, one column for each option.")
    ] = None,
    distractor: Annotated[list[str] | None, typer.Option(help="Column of a wrong option; repeatable.")] = None,
    passage: Annotated[str | None, typer.Option(help=COLUMN + "text that the question is about.")] = None,
    identity: Annotated[str | None, typer.Option("--id", help=COLUMN + "id.")] = None,
    verifier: Annotated[
        str, typer.Option(help="auto, math, choice, text, exact, number, grid or module:function.")
    ] = "auto",
    allow_verifier: Annotated[
        list[str] | None,
        typer.Option(help="module:function that the source itself may name as its verifier; repeatable."),
    ] = None,
    tolerance: Annotated[str | None, typer.Option(help="Of --verifier number: 0.01, or 1%.")] = None,
    label_base: Annotated[
        LabelBase | None,
        typer.Option(
            help="Numbers that name options count from 0 or from 1, or are their texts, as letters may be; "
            "default: what the whole column tells."
        ),
    ] = None,
    join_answers: Annotated[
        bool, typer.Option("--join-answers", help="Several answers in a list are one: all of them belong to it.")
    ] = False,
    drop_answers: Annotated[
        bool, typer.Option("--drop-answers", help="Leave the answers of an unlabeled set out.")
    ] = False,
    max_prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Leave longer prompts out.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Model directory whose tokens are counted.")] = None,
    sample: Annotated[float | None, typer.Option(help="Keep so many rows, or this share of them.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sample and of shuffled options.")] = 0,
    rest: Annotated[Path | None, typer.Option(help="Parquet file for the rows that are not in the sample.")] = None,
    rest_as: Annotated[Kind | None, typer.Option(help="What the rest is for.")] = None,
    name: Annotated[str | None, typer.Option(help="data_source of the rows; default: the preset or file.")] = None,
    ability: Annotated[str | None, typer.Option(help="ability of the rows; default: the verifier.")] = None,
    hub_config: Annotated[str | None, typer.Option(help="Configuration on the hub; * for all.")] = None,
    hub_split: Annotated[str | None, typer.Option(help="Split on the hub.")] = None,
    hub_revision: Annotated[str | None, typer.Option(help="Revision on the hub.")] = None,
    encoding: Annotated[str | None, typer.Option(help="Of text files; default: UTF-8, UTF-16 with its mark.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
) -> None:
    """Prepare a question file: JSON, JSON lines, CSV, parquet or a Hugging Face dataset to verl's columns.

    tempo-verl prepare train.jsonl --out data/labeled.parquet --as labeled

    tempo-verl prepare --preset math500 --out data/unlabeled.parquet --as unlabeled --against data/labeled.parquet
    """
    from tempo_verl.data.prepare import Settings
    from tempo_verl.data.prepare import prepare as run

    named = {
        "question": question,
        "answer": answer,
        "options": options,
        "distractors": distractor,
        "passage": passage,
        "id": identity,
    }
    settings = Settings(
        sources=tuple(source or ()),
        out=out,
        kind=kind.value,
        preset=preset,
        template=template,
        against=tuple(against or ()),
        columns={role: (value,) if isinstance(value, str) else tuple(value) for role, value in named.items() if value},
        verifier=verifier,
        tolerance=tolerance,
        label_base=label_base.value if label_base else None,
        join_answers=join_answers,
        ability=ability,
        name=name,
        dedup=dedup.value,
        overlap=overlap.value,
        bad_rows=bad_rows.value,
        drop_answers=drop_answers,
        max_prompt_tokens=max_prompt_tokens,
        tokenizer=tokenizer,
        sample=sample,
        seed=seed,
        rest=rest,
        rest_as=rest_as.value if rest_as else None,
        hub_config=hub_config,
        hub_split=hub_split,
        hub_revision=hub_revision,
        encoding=encoding,
        allow_verifier=tuple(allow_verifier or ()),
        overwrite=overwrite,
    )
    _print(run(settings), Console())


def _print(summary: Summary, console: Console) -> None:
    table = Table(title=f"{summary.read} rows read", title_justify="left")
    table.add_column("", overflow="fold")
    table.add_column("rows", justify="right")
    lines = [
        *summary.written.items(),
        *((f"left out: {reason}", count) for reason, count in summary.skipped.most_common()),
        *((f"verifier: {style}", count) for style, count in summary.verifiers.most_common()),
        *((f"{role}: {', '.join(names)}", sum(names.values())) for role, names in summary.columns.items()),
    ]
    for label, count in lines:
        table.add_row(Text(label), str(count))
    console.print(table)
    notes = [f"guess: {guess}" for guess in summary.guesses] + [f"note: {note}" for note in summary.notes]
    if summary.skipped:
        first = next(iter(summary.written))
        notes.append(f"left out, row by row: {first.removesuffix('.parquet')}.skipped.jsonl")
    for note in notes:
        console.print(Text(note), soft_wrap=True)
