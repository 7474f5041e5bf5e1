# SPDX-License-Identifier: Apache-2.0
"""Writes a report: ``results.json``, ``table.md``, ``plots/*.png`` and ``report.html``.

The page is one file: figures are data URIs, styles are inline, and its content security policy forbids the browser to
fetch anything.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tempo_verl.errors import UserError
from tempo_verl.report.compare import read_runs, summarise
from tempo_verl.report.data import RunData, command_of
from tempo_verl.report.methods import about
from tempo_verl.report.plots import FIGURES, Drawing, draw
from tempo_verl.report.results import Results
from tempo_verl.report.shown import FILTERS
from tempo_verl.report.tables import further_tables, main_tables, markdown
from tempo_verl.report.words import UNDECIDED, alarm_lines, oracle_note, verdict_sentence, verdicts

RUN_FILES = ("config.yaml", "metrics.jsonl", "run.json", "stage0", "tempo")


def check_out(out: Path) -> None:
    """Refuse to write among the files of a run, or of anything else that is no report.

    Raises:
        UserError: ``out`` is a file, a run folder, or holds files and no report.
    """
    if out.is_file():
        raise UserError(f"--out={out} is a file; name a folder")
    if any((out / name).exists() for name in RUN_FILES):
        raise UserError(f"--out={out} is a run folder; name another one for the report")
    if out.is_dir() and any(out.iterdir()) and not (out / "report.html").is_file():
        raise UserError(f"--out={out} holds files and no report; name a new or empty folder")


def build_report(run_dir: Path, out: Path | None = None) -> Results:
    """The report of one run, into its folder or into ``out``; raises as :func:`build_comparison`."""
    if out is not None:
        check_out(Path(out))
    return _build([Path(run_dir)], Path(out or run_dir))


def build_comparison(run_dirs: Sequence[Path], out: Path) -> Results:
    """Read run folders and write one report over them into ``out``.

    Raises:
        UserError: (a ``ValueError``) a run that cannot be read or compared, or ``out`` holds something else than an
            earlier report.
    """
    check_out(out)
    return _build(run_dirs, out)


def _build(run_dirs: Sequence[Path], out: Path) -> Results:
    runs = read_runs(run_dirs)
    results = summarise(runs)
    drawings = draw(results)
    plots = out / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    for name in FIGURES:  # of an earlier report
        (plots / f"{name}.png").unlink(missing_ok=True)
    for drawing in drawings:
        (plots / f"{drawing.name}.png").write_bytes(drawing.png)
        results.plots.append(f"plots/{drawing.name}.png")
    document = {"title": results.title, "verdict": verdict_sentence(results), **asdict(results)}
    text = json.dumps(_present(document), indent=2, ensure_ascii=False, allow_nan=False)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")
    (out / "table.md").write_text(markdown(results), encoding="utf-8")
    (out / "report.html").write_text(_page(runs, results, drawings), encoding="utf-8")
    return results


def _present(value: Any) -> Any:
    """Undefined numbers are absent from the JSON, not null; numpy scalars become Python's."""
    if isinstance(value, Mapping):
        return {str(key): _present(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_present(item) for item in value]
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def _page(runs: Sequence[RunData], results: Results, drawings: Sequence[Drawing]) -> str:
    environment = Environment(
        loader=PackageLoader("tempo_verl.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    environment.filters |= {"symbols": symbols, **FILTERS}
    one = runs[0] if results.single else None
    return environment.get_template("report.html.j2").render(
        results=results,
        verdicts=verdicts(results),
        verdict=verdict_sentence(results),
        undecided=UNDECIDED,
        methods=list(dict.fromkeys(about(group.method).text for group in results.groups)),
        oracle_note=oracle_note(results),
        facts=_facts(one) if one else {},
        notes=[*results.notes, *results.missing],
        tables=main_tables(results),
        alarms=alarm_lines(results),
        drawings=drawings,
        shown=one.shown if one else None,
        further=further_tables(results),
        commands=[(run.name, command) for run in runs if (command := command_of(run))],
        sections={name.capitalize(): one.section(name) for name in ("versions", "machine")} if one else {},
        config=one.config if one else None,
    )


def _facts(run: RunData) -> dict[str, str]:
    """Method, rounds and every other single value of ``run.json``."""
    facts = {"method": run.method} if run.method else {}
    if steps := run.metrics.get("tempo"):
        facts["rounds"] = str(max(steps))
    if steps := run.metrics.get("stage0"):
        facts["stage 0 steps"] = str(max(steps))
    for key, value in run.info.items():
        if key not in ("command", "method") and isinstance(value, (str, int, float)):
            facts.setdefault(key.replace("_", " "), str(value))
    return facts


def symbols(text: str) -> Markup:
    """Escape a text for HTML and set D_L and D_U as symbols."""
    return Markup(re.sub(r"\bD_([LU])\b", r"<i>D</i><sub>\1</sub>", str(escape(text))))
