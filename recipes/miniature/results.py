# SPDX-License-Identifier: Apache-2.0
"""What a miniature measured: ``metrics.csv`` from the run folders; the table, the claims and the figures from that.

    python recipes/miniature/results.py runs/miniature                        # from its metrics.csv, once more
    python recipes/miniature/results.py runs/a runs/b --out runs/together     # seeds that were trained apart
    python recipes/miniature/results.py runs/rehearsal --against runs/a       # do both order the methods alike?

All shares are fractions in [0, 1]. Accuracies on D_U are for monitoring; no method but ``oracle`` sees them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from claims import agreement, claims, claims_table

from tempo_verl.errors import UserError

SET_MEASURES = {
    "accuracy": ("unlabeled", "avg@"),
    "pass@8": ("unlabeled", "pass@8"),
    "distinct": ("unlabeled", "distinct answers"),
    "heldout": ("heldout", "avg@"),
}
# Logged where defined; a validation has their mean over the rounds since the one before, stage 0 over its last few.
ROUND_MEASURES = {
    "auroc_unlabeled": "tempo/oracle/auroc",
    "auroc_labeled": "tempo/labeled/auroc",
    "gap_labeled": "tempo/labeled/gap",
}
# of each training, where its starting policy was asked as often as the whole run asked (tempo.predictions.before=equal)
EQUAL_COST = ["seed", "method", "samples_before", "samples_after", "equal", "majority_before", "weighted_before",
              "majority_after", "weighted_after"]  # fmt: skip
COLUMNS = ["seed", "method", "round", *SET_MEASURES, "wrong_marked_y", *ROUND_MEASURES]
DIGITS = 4
LAST_OF_STAGE0 = 5


# ------------------------------------------------------------------------------------------------ from the run folders


def collect(out: Path, seeds: Sequence[int], methods: Sequence[str]) -> pd.DataFrame:
    """One row for each seed, method and validation; round 0 is the end of stage 0, where every method starts."""
    rows: list[dict] = []
    for seed in seeds:
        start = list(_rows(out / f"seed_{seed}" / "stage0", LAST_OF_STAGE0))[-1] | {"round": 0}
        for method in methods:
            found = [start, *_rows(out / f"seed_{seed}" / method)]
            rows += [{"seed": seed, "method": method} | row for row in found]
    return pd.DataFrame(rows, columns=COLUMNS).round(DIGITS)


def collect_equal_cost(out: Path, seeds: Sequence[int], methods: Sequence[str]) -> pd.DataFrame:
    """One row for each training that compared votes before and after; shares of D_U's questions answered right."""
    from tempo_verl.evaluation.equal_cost import PREDICTIONS, comparison_file, read_comparison

    rows: list[dict] = []
    for seed, method in product(seeds, methods):
        path = comparison_file(out / f"seed_{seed}" / method / PREDICTIONS)
        if not path.is_file():  # a method on D_L alone, or a run without
            continue
        compared = read_comparison(path)
        row: dict = {"seed": seed, "method": method, "equal": compared["equal"]}
        for when in ("before", "after"):
            n, measures = compared[when]["samples"], compared[when]["measures"]
            row[f"samples_{when}"] = n
            for vote, measure in (("majority", f"maj@{n}"), ("weighted", f"weighted_maj@{n}")):
                row[f"{vote}_{when}"] = measures[measure]["value"] if measure in measures else None
        rows.append(row)
    return pd.DataFrame(rows, columns=EQUAL_COST).round(DIGITS)


def equal_cost_table(found: pd.DataFrame) -> str:
    """Votes before training and after it, mean and sample standard deviation over the seeds, as a Markdown table."""
    votes = EQUAL_COST[5:]
    lines = [
        "| votes on D_U | samples before | after | majority before | weighted before | majority after | weighted |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, rows in found.groupby("method", sort=False):
        numbers = (" / ".join(map(str, rows[f"samples_{when}"].unique())) for when in ("before", "after"))
        cells = [*numbers, *(_cell(rows[column].astype(float), percent=True) for column in votes)]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rows(folder: Path, most: int | None = None) -> Iterator[dict]:
    from tempo_verl.report.data import read_run
    from tempo_verl.report.measures import logged

    run = read_run(folder)
    scores = logged(run)
    before = 0
    for step in scores["unlabeled"]:
        row: dict = {"round": step}
        for column, (name, measure) in SET_MEASURES.items():
            row[column] = next(value for key, value in scores[name][step].items() if key.startswith(measure))
        row["wrong_marked_y"] = _wrong_marked_y(folder / "validation" / f"{step}.jsonl")
        for column, metric in ROUND_MEASURES.items():
            since = before if most is None else max(before, step - most)
            values = [value for at, value in zip(*run.series("tempo", metric), strict=True) if since < at <= step]
            row[column] = float(np.mean(values)) if values else None
        before = step
        yield row


def _wrong_marked_y(validation: Path) -> float | None:
    """The share of D_U's wrong steps that their writer calls right; None if no step is wrong."""
    from tempo_verl.tasks.running_sums import judged_steps

    rows = map(json.loads, validation.read_text(encoding="utf-8").splitlines())
    mine = [row for row in rows if row["data_source"].endswith("/unlabeled")]
    steps = [step for row in mine for step in judged_steps(row["input"].strip(), row["output"].strip())]
    marks = [marked_y for right, marked_y in steps if not right]
    return float(np.mean(marks)) if marks else None


# ------------------------------------------------------------------------------------------------------ from the table


def table(metrics: pd.DataFrame) -> str:
    """Mean and sample standard deviation over the seeds at the last round, as a Markdown table."""
    last = metrics[metrics["round"] == metrics["round"].max()]
    start = metrics[(metrics["round"] == 0) & (metrics["method"] == metrics["method"].iloc[0])]
    lines = [
        "| | D_U avg@8 | D_U pass@8 | distinct in 8 | held-out avg@8 | wrong steps marked y | reward's AUROC on D_U "
        "| critic's on D_L |",
        "|---|---|---|---|---|---|---|---|",
        _line("start (stage 0)", start),
    ]
    lines += [_line(f"`{method}`", last[last["method"] == method]) for method in metrics["method"].unique()]
    seeds = ", ".join(map(str, metrics["seed"].unique()))
    notes = [f"Round {metrics['round'].max()}; mean ± standard deviation over the seeds {seeds}."]
    for method, rows in last.groupby("method", sort=False):
        if len(rows) < metrics["seed"].nunique():
            notes.append(f"`{method}`: seeds {', '.join(map(str, rows['seed']))} only.")
    return "\n".join([*lines, "", " ".join(notes)])


def _line(name: str, rows: pd.DataFrame) -> str:
    cells = [
        *(_cell(rows[column], percent=True) for column in ("accuracy", "pass@8")),
        _cell(rows["distinct"], percent=False),
        _cell(rows["heldout"], percent=True),
        *(_cell(rows[column], percent=False) for column in ("wrong_marked_y", "auroc_unlabeled", "auroc_labeled")),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def _cell(values: pd.Series, *, percent: bool) -> str:
    values = values.dropna()
    if values.empty:
        return "–"
    scale, digits, unit = (100, 1, " %") if percent else (1, 2, "")
    spread = f" ± {scale * values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{scale * values.mean():.{digits}f}{spread}{unit}"


def figures(metrics: pd.DataFrame, out: Path) -> list[Path]:
    """The three figures: accuracy; pass@8 and diversity; AUROC with and without recalibration (and the marks)."""
    from matplotlib.figure import Figure

    from tempo_verl.report.style import COLOURS

    panels = {
        "accuracy": [("accuracy", "accuracy on D_U (avg@8)"), ("heldout", "accuracy on held-out questions (avg@8)")],
        "diversity": [("pass@8", "pass@8 on D_U"), ("distinct", "distinct answers in 8")],
        "auroc": [
            ("auroc_unlabeled", "AUROC of the reward on D_U"),
            ("auroc_labeled", "AUROC on fresh D_L rollouts"),
            ("wrong_marked_y", "wrong steps on D_U marked y"),
        ],
    }
    methods = list(metrics["method"].unique())
    paths = []
    for name, parts in panels.items():
        figure = Figure(figsize=(1.4 + 3.8 * len(parts), 3.6), layout="constrained")
        for axis, (column, title) in zip(figure.subplots(1, len(parts)), parts, strict=True):
            for number, method in enumerate(methods):
                rows = metrics[metrics["method"] == method].dropna(subset=[column])
                if rows.empty:
                    continue
                over = rows.groupby("round")[column]
                mean, deviation = over.mean(), over.std().fillna(0)
                colour, line = COLOURS[number % len(COLOURS)], "--" if number >= len(COLOURS) else "-"
                axis.plot(mean.index, mean, line, color=colour, marker="o", markersize=3, label=method)
                axis.fill_between(mean.index, mean - deviation, mean + deviation, color=colour, alpha=0.12, linewidth=0)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("round")
            axis.spines[["top", "right"]].set_visible(False)
            if column != "distinct":  # a share: its band need not leave room above 1
                axis.set_ylim(top=min(axis.get_ylim()[1], 1.02))
        lines = {line.get_label(): line for axis in figure.axes for line in axis.get_lines()}
        handles = [lines[method] for method in methods if method in lines]
        figure.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False)
        paths.append(out / f"{name}.png")
        figure.savefig(paths[-1], dpi=144)
    return paths


def write(metrics: pd.DataFrame, about: list[dict], out: Path, equal_cost: pd.DataFrame | None = None) -> list[str]:
    """Write ``metrics.csv``, ``about.json``, ``table.md`` (from two seeds on with the claims) and the PNGs.

    Args:
        metrics: as :func:`collect` makes them.
        about: of every call of ``run.py`` that they come from, as :func:`describe` tells.
        out: the folder to write.
        equal_cost: as :func:`collect_equal_cost` makes it; None or empty: nothing is said of it.

    Returns:
        What to print: the text of ``table.md``, and where the figures are.
    """
    out.mkdir(parents=True, exist_ok=True)
    metrics.to_csv(out / "metrics.csv", index=False)
    (out / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    text = table(metrics)
    if found := claims(metrics):
        text += "\n\n" + claims_table(found)
    if equal_cost is not None and len(equal_cost):
        equal_cost.to_csv(out / "equal_cost.csv", index=False)
        text += "\n\n" + equal_cost_table(equal_cost)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    return [text, f"figures: {', '.join(str(path) for path in figures(metrics, out))}"]


def describe(command: str, out: Path, seeds: Sequence[int], methods: Sequence[str]) -> dict:
    """What a reader needs to judge the numbers: command, versions, machine, and seconds of every training by seed."""
    runs = {
        name: [json.loads((out / f"seed_{seed}" / name / "run.json").read_text()) for seed in seeds]
        for name in ("stage0", *methods)
    }
    some = runs["stage0"][0]
    seconds = {name: [run["seconds"]["training"] for run in of] for name, of in runs.items()}
    return {"command": command, "versions": some["versions"], "machine": some["machine"], "seconds": seconds}


def summarise(command: str, out: Path, seeds: Sequence[int], methods: Sequence[str]) -> list[str]:
    """Make the results and ``report/`` from finished runs. Returns what to print."""
    from tempo_verl.report import build_comparison

    about, equal_cost = [describe(command, out, seeds, methods)], collect_equal_cost(out, seeds, methods)
    said = write(collect(out, seeds, methods), about, out, equal_cost)
    build_comparison([out / f"seed_{seed}" / method for method in methods for seed in seeds], out / "report")
    return said


def read(folders: Sequence[Path]) -> tuple[pd.DataFrame, list[dict]]:
    """Metrics and descriptions of several folders as those of one.

    Raises:
        UserError: a folder without results, one with another number of rounds, the same training in two, or folders of
            both scripts.
    """
    parts, about = [], []
    for folder in folders:
        for name in ("metrics.csv", "about.json"):
            if not (folder / name).is_file():
                raise UserError(f"{folder}: no {name} in it; name a folder that run.py has finished")
        parts.append(pd.read_csv(folder / "metrics.csv"))
        about += json.loads((folder / "about.json").read_text(encoding="utf-8"))
    for part, folder in zip(parts, folders, strict=True):
        if part["round"].max() != parts[0]["round"].max():
            raise UserError(
                f"{folder} has {part['round'].max()} rounds, {folders[0]} {parts[0]['round'].max()}; put together what "
                "was trained with the same settings"
            )
    if len({"rehearse.py" in part["command"] for part in about}) > 1:
        raise UserError("some folders are of run.py, some of rehearse.py; put together those of one (see --against)")
    metrics = pd.concat(parts, ignore_index=True)
    twice = metrics[metrics.duplicated(["seed", "method", "round"])]
    if len(twice):
        seed, method = twice.iloc[0][["seed", "method"]]
        raise UserError(f"seed {seed} of {method} is in more than one of the folders; leave one of them out")
    return metrics, about


def read_equal_cost(folders: Sequence[Path]) -> pd.DataFrame | None:
    """Votes before and after of several folders; None where none has any."""
    files = [path for folder in folders if (path := folder / "equal_cost.csv").is_file()]
    return pd.concat(map(pd.read_csv, files), ignore_index=True) if files else None


def main(
    folders: Annotated[list[Path], typer.Argument(help="Folders that hold a metrics.csv.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; by default the first.")] = None,
    against: Annotated[Path | None, typer.Option(help="Say how alike this folder orders the methods.")] = None,
) -> None:
    """Make the table and the figures again, or those of several folders together."""
    metrics, about = read(folders)
    compared = [] if against is None else [agreement(metrics, read([against])[0])]
    for line in (*write(metrics, about, out or folders[0], read_equal_cost(folders)), *compared):
        print(line)


def run_script(main: Callable[..., None]) -> None:
    """Run a script of the miniature: one line for a user's mistake."""
    try:
        typer.run(main)
    except UserError as error:
        print(f"miniature: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run_script(main)
