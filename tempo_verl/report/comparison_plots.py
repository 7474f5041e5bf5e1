# SPDX-License-Identifier: Apache-2.0
"""The figures of a report over several runs; each colour stands for one group of runs in all of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from tempo_verl.report.comparison import Comparison, GroupResult
from tempo_verl.report.results import set_label
from tempo_verl.report.style import (
    DOTTED,
    ORACLE,
    WIDTH,
    Drawing,
    FigureFunction,
    Theme,
    draw_all,
    from_zero,
    label_rounds,
    legend,
    with_symbols,
)

LINES = ("-", "--", "-.")  # the next one when the colours are used up


def draw_comparison(results: Comparison) -> list[Drawing]:
    """Every figure there is data for."""
    return draw_all(FIGURES, results, stamp=results.stamp, notes=results.notes)


def accuracy(results: Comparison, theme: Theme) -> Figure | None:
    """Validation over the rounds: a row per set; average on the left, pass@k on the right."""
    if not results.measures:
        return None
    figure = Figure(figsize=(WIDTH, 0.7 + 2.5 * len(results.measures)), layout="constrained")
    rows = figure.subplots(len(results.measures), 2, sharex=True, sharey=True, squeeze=False)
    for axes, (name, measures) in zip(rows, results.measures.items(), strict=True):
        label = set_label(name) + f" ({ORACLE})" * (name == "unlabeled")
        for axis, kind in zip(axes, ("avg@", "pass@"), strict=True):
            shown = [measure for measure in measures if measure.startswith(kind)][-1:]
            for measure in shown:
                _curves(axis, results, f"{name}/{measure}", theme)
                axis.set_title(with_symbols(f"{measure}, {label}"), fontsize=9)
            if not shown:
                axis.set_axis_off()
    for axis in rows[-1]:
        label_rounds(axis)
    rows[0][0].set_ylim(0, 1.03)
    rows[0][0].yaxis.set_major_formatter(PercentFormatter(1))
    legend(figure, rows.flat)
    return figure


def calibration(results: Comparison, theme: Theme) -> Figure | None:
    """AUROC, optimism gap, Brier score and ECE of the critic on fresh labelled rollouts."""
    panels = {
        "tempo/labeled/auroc": "AUROC (higher is better)",
        "tempo/labeled/gap": "optimism gap V − c (0 is best)",
        "tempo/labeled/brier": "Brier score (lower is better)",
        "tempo/labeled/ece": "ECE (lower is better)",
    }
    if not any(name in group.curves for name in panels for group in results.groups):
        return None
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True).ravel()
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        _curves(axis, results, name, theme)
        axis.set_title(title)
    for axis, level in zip(axes, (0.5, 0), strict=False):
        axis.axhline(level, color=theme.text, linewidth=0.8, linestyle=DOTTED)
    for axis in axes[2:]:
        from_zero(axis)
        label_rounds(axis)
    legend(figure, axes)
    return figure


def reward(results: Comparison, theme: Theme) -> Figure | None:
    """What the policy was rewarded for on D_U, and how well that tells right from wrong."""
    panels = {
        "tempo/unlabeled/reward_mean": ("mean reward on D_U", ""),
        "tempo/oracle/accuracy": (f"accuracy on D_U\n({ORACLE})", ""),
        "tempo/oracle/auroc": (f"AUROC of the reward\n({ORACLE})", ""),
    }
    return _row(results, theme, panels)


def diversity(results: Comparison, theme: Theme) -> Figure | None:
    """Different answers, entropy and response length of the training rollouts on D_U."""
    panels = {
        "tempo/unlabeled/distinct_answers": ("distinct answers", "answers per question"),
        "tempo/unlabeled/entropy": ("policy entropy", "nats per token"),
        "tempo/unlabeled/response_length": ("response length", "tokens"),
    }
    return _row(results, theme, panels)


def _row(results: Comparison, theme: Theme, panels: dict[str, tuple[str, str]]) -> Figure | None:
    """A row of curves: metric -> title and unit; those that any group has."""
    drawn = {key: text for key, text in panels.items() if any(key in group.curves for group in results.groups)}
    if not drawn:
        return None
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axis, (name, (title, unit)) in zip(axes, drawn.items(), strict=True):
        _curves(axis, results, name, theme)
        axis.set_title(title)
        axis.set_ylabel(unit)
        from_zero(axis)
        label_rounds(axis)
    legend(figure, axes)
    return figure


def reliability_diagram(results: Comparison, theme: Theme) -> Figure | None:
    """Observed accuracy against the critic's value in the first, middle and last rounds, pooled over the runs."""
    names = [name for name in ("first", "middle", "last") if any(name in group.reliability for group in results.groups)]
    if not names:
        return None
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots(1, max(2, len(names)), sharey=True)
    for axis, name in zip(axes, names, strict=False):
        axis.plot([0, 1], [0, 1], color=theme.text, linewidth=0.8, linestyle=DOTTED)
        for group, colour, line in _styles(results, theme):
            if curve := group.reliability.get(name):
                size = 6 + 60 * curve.count / curve.count.max()
                axis.plot(curve.mean_score, curve.accuracy, line, color=colour, linewidth=1.2, label=group.name)
                axis.scatter(curve.mean_score, curve.accuracy, size, color=colour, linewidths=0)
        axis.set_title(f"{name} rounds")
        axis.set_xlabel("critic's value")
        axis.set_xlim(-0.02, 1.02)
        axis.set_ylim(-0.03, 1.03)
    for empty in axes[len(names) :]:
        empty.set_axis_off()
    axes[0].set_ylabel("share that is right")
    legend(figure, axes)
    return figure


def _styles(results: Comparison, theme: Theme) -> Iterator[tuple[GroupResult, str, str]]:
    """Each group with its colour and line."""
    for number, group in enumerate(results.groups):
        turn, index = divmod(number, len(theme.groups))
        yield group, theme.groups[index], LINES[turn % len(LINES)]


def _curves(axis: Axes, results: Comparison, name: str, theme: Theme) -> None:
    """The mean of each group with a band of one standard deviation, over thin lines of its runs."""
    for group, colour, line in _styles(results, theme):
        curve = group.curves.get(name)
        if not curve:
            continue
        for run in curve.runs:
            axis.plot(list(run), list(run.values()), line, color=colour, linewidth=0.6, alpha=0.45)
        mean = np.array([at.mean for at in curve.spread])
        marker = "o" if len(curve.steps) < 6 else None
        axis.plot(curve.steps, mean, line, color=colour, linewidth=1.8, marker=marker, markersize=4, label=group.name)
        if len(curve.runs) > 1:
            deviation = np.array([at.std for at in curve.spread])
            axis.fill_between(curve.steps, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0)


BAND = (
    "Thick lines are means over the runs of a group, bands one standard deviation to each side, thin lines single runs."
)
FIGURES: dict[str, tuple[FigureFunction, str, str]] = {
    "accuracy": (accuracy, "Accuracy and pass@k", BAND),
    "calibration": (
        calibration,
        "Calibration of the critic on D_L",
        f"{BAND} Measured on fresh labelled rollouts, before the round's E-step. AUROC near 0.5 means that the critic "
        "cannot tell right from wrong; a gap above 0 that it is too optimistic.",
    ),
    "reward": (
        reward,
        "Reward on D_U",
        f"{BAND} Of the training rollouts. A reward that rises while the accuracy does not is being gamed; its AUROC "
        "says how well it tells right from wrong: near 0.5, the policy learns nothing from it.",
    ),
    "diversity": (
        diversity,
        "Diversity of the answers on D_U",
        f"{BAND} Distinct answers and entropy falling towards one and zero, or a length running away, are signs of "
        "collapse.",
    ),
    "reliability": (
        reliability_diagram,
        "Reliability of the critic on D_L",
        "Points on the diagonal mean that a value of 0.7 is right 70 % of the time. Rollouts of a few rounds and of "
        "all runs of a group are pooled; dot size shows how many a point stands on.",
    ),
}
