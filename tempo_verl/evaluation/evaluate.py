# SPDX-License-Identifier: Apache-2.0
"""``tempo-verl evaluate``: samples, measures, and their table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tempo_verl.doctor import surroundings
from tempo_verl.errors import UserError
from tempo_verl.evaluation.draw import Sampler
from tempo_verl.evaluation.engines import Sampling
from tempo_verl.evaluation.questions import load_questions
from tempo_verl.evaluation.samples import Sample, read_samples, read_settings, write_whole
from tempo_verl.evaluation.summary import notes, paired_results, summarise, table_rows
from tempo_verl.markdown import cell

USUAL_KS = (1, 8, 16)
INTERVALS = "Intervals are bootstrap 95 % intervals over questions; differences are paired by question."


def evaluate(
    sampling: Sampling,
    files: Sequence[Path],
    out: Path,
    console: Console,
    *,
    ks: Sequence[int] | None = None,
    limit: int | None = None,
    other: Path | None = None,
) -> dict[str, Any]:
    """Sample, measure, and write ``samples.jsonl``, ``questions.jsonl``, ``settings.json``,
    ``results.json`` and ``table.md`` to ``out``.

    Args:
        files: question files in verl's columns; a row without a ground truth only counts in measures that need none.
        ks: the k of pass@k and maj@k; by default 1, 8 and 16, as far as n goes, and n.
        limit: only so many questions, the first.
        other: folder of another evaluation with the same n, to compare with.

    Returns:
        What ``results.json`` holds: see ``summary.summarise``, and ``difference`` from ``other``, ``settings``,
        ``versions``, ``machine``, ``notes``.

    Raises:
        UserError: as ``load_questions`` and ``Sampler.draw``; a k out of range; an ``other`` that cannot be compared.
    """
    ks = check_ks(ks, sampling.n)
    theirs = None if other is None else _comparable(other, sampling.n)
    questions = load_questions("--data", files, with_answers=True, limit=limit, allowed=sampling.allowed)
    if theirs is not None and {sample.hash for sample in theirs}.isdisjoint(question.hash for question in questions):
        raise UserError(f"--compare={other}: no question in both; compare evaluations of the same data")
    samples = Sampler(sampling, console).draw(questions, files, out)
    lines = ({"index": one.index, "question": one.text, "ground_truth": one.ground_truth} for one in questions)
    write_whole(out / "questions.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    results = summarise(samples, ks)
    results["notes"] = notes(results)
    if theirs is not None:
        difference = results["difference"] = {"from": str(other), **paired_results(samples, theirs, ks)}
        results["notes"].append(f"differences are over the {difference['overall']['questions']} questions in both.")
    results |= {
        "settings": read_settings(out),
        **surroundings(),
    }
    write_whole(out / "results.json", json.dumps(results, indent=2))
    _write_tables(results, out, console)
    return results


def check_ks(ks: Sequence[int] | None, n: int) -> list[int]:
    """The k to measure, ascending.

    Raises:
        UserError: one is not between 1 and n.
    """
    if ks is None:
        return sorted({k for k in USUAL_KS if k <= n} | {n})
    for k in ks:
        if not 1 <= k <= n:
            raise UserError(f"--k={k}: pass@k and maj@k need 1 <= k <= n; use a k of at most {n}, or raise --n={n}")
    return sorted(set(ks))


def _comparable(other: Path, n: int) -> list[Sample]:
    settings, samples = read_samples(other)
    if settings["n"] != n:
        raise UserError(f"--compare={other}: it has n={settings['n']}, this evaluation {n}; use the same --n")
    return samples


def _write_tables(results: dict[str, Any], out: Path, console: Console) -> None:
    difference = results.get("difference")
    rows = table_rows(results, difference)
    heads = ["set", "measure", "value", "95 % interval", *([] if difference is None else ["difference"])]
    model = results["settings"]["model"]
    lines = [f"# {cell(model)}", "", "| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    lines += ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
    lines += ["", INTERVALS, *(["", f"Difference from {cell(difference['from'])}."] if difference else [])]
    lines += ["", *(f"- {cell(note)}" for note in results["notes"])] if results["notes"] else []
    write_whole(out / "table.md", "\n".join(lines) + "\n")

    table = Table(title=Text(model), title_justify="left", title_style="bold")
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < 2 else "right")
    for before, row in zip([("",), *rows], rows, strict=False):
        if before[0] not in ("", row[0]):
            table.add_section()
        table.add_row(*map(Text, ("" if before[0] == row[0] else row[0], *row[1:])))
    console.print(table)
    for note in results["notes"]:
        console.print(Text(f"note: {note}"), soft_wrap=True)
    console.print(Text(f"samples, results and table: {out}"), soft_wrap=True)
