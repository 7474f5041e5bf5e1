# SPDX-License-Identifier: Apache-2.0
"""What a run of the example measured: ``metrics.csv``, ``about.json`` and ``accuracy.png``, from its two run folders.

    python examples/smollm2/results.py runs/smollm2

All shares are fractions in [0, 1]. The answers of D_U that ``unlabeled`` and ``auroc_unlabeled`` are measured with
reach no training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from matplotlib.figure import Figure

from tempo_verl.report.data import read_run
from tempo_verl.report.measures import logged
from tempo_verl.report.style import STREAMS, label_rounds, png

STAGES = ("stage0", "tempo")
ROLLOUTS = {
    "labeled": "tempo/labeled/accuracy",
    "unlabeled": "tempo/oracle/accuracy",
    "auroc_labeled": "tempo/labeled/auroc",
    "auroc_unlabeled": "tempo/oracle/auroc",
    "seconds": "perf/time_per_step",
}
NAMES = {"labeled": "D_L", "unlabeled": "D_U", "heldout": "held out"}


def collect(out: Path) -> pd.DataFrame:
    """One row a round: measures of its rollouts, and of the validation after it (``val_*``); round 0 is a start."""
    rows = []
    for stage in STAGES:
        run = read_run(out / stage)
        series = {column: dict(zip(*run.series("tempo", name), strict=True)) for column, name in ROLLOUTS.items()}
        for name, steps in logged(run).items():
            averages = {at: value for at, of in steps.items() for key, value in of.items() if key.startswith("avg@")}
            series[f"val_{name}"] = averages
        rounds = sorted({at for values in series.values() for at in values})
        rows += [{"stage": stage, "round": at} | {of: values.get(at) for of, values in series.items()} for at in rounds]
    return pd.DataFrame(rows).round(4)


def draw(metrics: pd.DataFrame) -> Figure:
    """Both stages one after the other: accuracy of rollouts and validations, and the critic's AUROC."""
    last = metrics.loc[metrics["stage"] == STAGES[0], "round"].max()
    at = metrics["round"] + last * (metrics["stage"] == STAGES[1])
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    accuracy, auroc = figure.subplots(1, 2)
    for name in NAMES:
        for axis, column, kind in (
            (accuracy, name, {"alpha": 0.6}),
            (accuracy, f"val_{name}", {"marker": "o", "linewidth": 2}),
            (auroc, f"auroc_{name}", {"marker": "."}),
        ):
            if column in metrics:
                known = metrics[column].notna() | (axis is auroc)  # undefined where all were right, or all wrong
                label = None if axis is accuracy and column == name else NAMES[name]
                axis.plot(at[known], metrics.loc[known, column], color=STREAMS[name], label=label, **kind)
    accuracy.set_title("accuracy: points of validations, lines of rollouts")
    accuracy.plot([], [], color=STREAMS["labeled"], alpha=0.6, label=NAMES["labeled"])
    auroc.set_title("AUROC of the critic, before it is fitted")
    auroc.axhline(0.5, color=STREAMS["text"], linewidth=0.8, linestyle=":")
    for axis in (accuracy, auroc):
        axis.axvline(last, color=STREAMS["text"], linewidth=0.8, linestyle="--")
        axis.set_ylim(0, 1)
        label_rounds(axis, "round: stage 0, then TEMPO")
        axis.legend(loc="lower right")
    return figure


def main(out: Annotated[Path, typer.Argument(help="Folder that run.sh wrote.")]) -> None:
    """Write metrics.csv, about.json and accuracy.png into OUT."""
    metrics = collect(out)
    metrics.to_csv(out / "metrics.csv", index=False)
    runs = {stage: json.loads((out / stage / "run.json").read_text(encoding="utf-8")) for stage in STAGES}
    about = {name: runs["tempo"][name] for name in ("versions", "machine")}
    about["seconds"] = {stage: run["seconds"] for stage, run in runs.items()}
    (out / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    (out / "accuracy.png").write_bytes(png(draw, metrics, None) or b"")


if __name__ == "__main__":
    typer.run(main)
