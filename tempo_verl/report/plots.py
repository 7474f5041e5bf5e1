# SPDX-License-Identifier: Apache-2.0
"""The figures of a report.

A figure is made of panels, a panel of lines. Of one group of runs, each colour stands for one data stream, and the
lines of a panel share it. Of several groups, each colour stands for a group, and every line has a panel of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter

from tempo_verl.report.measures import is_average, set_label
from tempo_verl.report.results import Curve, GroupResult, Results
from tempo_verl.report.style import (
    BINS,
    COLOURS,
    DOTTED,
    ORACLE,
    STREAMS,
    TEXT,
    WIDTH,
    from_zero,
    label_rounds,
    legend,
    png,
)
from tempo_verl.report.words import rounds_of

STYLES = ("-", "--", "-.")  # of groups, the next one when the colours are used up
LONGEST_TITLE = 96  # characters across a figure


@dataclass(frozen=True)
class Drawing:
    """One figure, and how to read it."""

    name: str
    title: str
    reading: str
    png: bytes


@dataclass(frozen=True)
class Line:
    """A curve of the results.

    Attributes:
        curve: its name in ``GroupResult.curves``.
        label: in the legend beside other lines.
        colour: one of ``STREAMS``, or the number of a colour.
        style: as matplotlib writes it.
        title: of its own panel, where groups are compared; None: not shown there.
    """

    curve: str
    label: str
    colour: str | int
    style: str = "-"
    title: str | None = None


@dataclass(frozen=True)
class Panel:
    """Lines over rounds. ``scale`` is ``share`` (0 to 100 %), ``zero`` (from zero) or ``free``; ``level`` is marked."""

    title: str
    lines: list[Line]
    unit: str = ""
    scale: str = "free"
    level: tuple[float, str] | None = None
    width: float = 1
    step: str = "round"


def _oracle(text: str, name: str = "unlabeled") -> str:
    return f"{text} ({ORACLE})" if name == "unlabeled" else text


def accuracy(results: Results) -> list[Panel]:
    """Accuracy of training rollouts and of validation; stage 0, where there is one, in its own panel on the left."""
    panels = []
    for prefix, title, step, width in (("stage0/", "stage 0", "stage 0 step", 1), ("", "after stage 0", "round", 2)):
        lines = [
            Line(f"{prefix}tempo/labeled/accuracy", "training rollouts on D_L", "labeled"),
            Line(f"{prefix}tempo/oracle/accuracy", _oracle("training rollouts on D_U"), "unlabeled", "--"),
        ]
        for number, (name, measures) in enumerate(results.measures.items()):
            for measure in filter(is_average, measures):
                colour = name if name in ("unlabeled", "heldout") else 3 + number
                label = _oracle(set_label(name), name)
                shown = None if prefix else f"{measure}, {label}"
                marker = ":o" if name == "unlabeled" else ":s"
                lines.append(Line(f"{prefix}{name}/{measure}", f"validation: {label}", colour, marker, shown))
        panels.append(Panel(title, lines, "accuracy", "share", width=width, step=step))
    if not any(_drawn(results, line) for line in panels[0].lines):
        return [replace(panels[1], title="")]
    return panels


def coverage(results: Results) -> list[Panel]:
    """pass@k and the majority vote of validation, a panel for each question set."""
    panels = []
    for name, measures in results.measures.items():
        label = _oracle(set_label(name), name)
        passes = [measure for measure in measures if measure.startswith("pass@")]
        votes = [measure for measure in measures if measure.startswith("maj@")]
        if not passes and not votes:
            continue
        averages = list(filter(is_average, measures))
        lines = [
            *(Line(f"{name}/{of}", "pass@1", 0, "-o") for of in averages),
            *(Line(f"{name}/{of}", of, number, "-o") for number, of in enumerate(passes, start=1)),
            *(Line(f"{name}/{of}", "majority vote", "text", "--s", f"{of}, {label}") for of in votes),
        ]
        # of several pass@k the one with all samples is compared
        lines = [
            replace(ln, title=f"{passes[-1]}, {label}") if passes and ln.label == passes[-1] else ln for ln in lines
        ]
        panels.append(Panel(label, lines, scale="share"))
    return panels


def calibration(results: Results) -> list[Panel]:
    """AUROC, Brier score, ECE and gap of the critic over the rounds."""
    labeled, rewarded = "labelled rollouts (D_L)", _oracle("rollouts on D_U")
    auroc = [
        Line("tempo/labeled/auroc", labeled, "labeled", title="AUROC on D_L (higher is better)"),
        Line("tempo/oracle/auroc", rewarded, "unlabeled", "--", _oracle("AUROC of the reward on D_U")),
    ]
    panels = [Panel("AUROC (higher is better)", auroc, level=(0.5, "chance"))]
    for key, title, scale in (
        ("brier", "Brier score (lower is better)", "zero"),
        ("ece", "ECE (lower is better)", "zero"),
        ("gap", "optimism gap V − c (0 is best)", "free"),
    ):
        level = (0.0, "") if key == "gap" else None
        panels.append(Panel(title, [Line(f"tempo/labeled/{key}", labeled, "labeled", title=title)], "", scale, level))
    return panels


def reward(results: Results) -> list[Panel]:
    """What the policy was rewarded for on D_U, and how often it was right."""
    rewarded, right = "mean reward on D_U", _oracle("accuracy on D_U")
    lines = [
        Line("tempo/unlabeled/reward_mean", rewarded, "labeled", title=rewarded),
        Line("tempo/oracle/accuracy", right, "unlabeled", "--", right),
    ]
    return [Panel("", lines, scale="zero")] if _drawn(results, lines[0]) else []


def diversity(results: Results) -> list[Panel]:
    """Different answers per question, entropy and response length of the rollouts on D_U over the rounds."""
    return [
        Panel(title, [Line(f"tempo/unlabeled/{key}", "rollouts on D_U", "unlabeled", title=title)], unit, "zero")
        for key, title, unit in (
            ("distinct_answers", "distinct answers", "answers per question"),
            ("entropy", "policy entropy", "nats per token"),
            ("response_length", "response length", "tokens"),
        )
    ]


def _drawn(results: Results, line: Line) -> bool:
    return any(line.curve in group.curves for group in results.groups)


def draw_panels(results: Results, panels: list[Panel]) -> Figure | None:
    """Every panel that there is data for, in one figure; None if there is none."""
    several = len(results.groups) > 1
    if several:
        panels = [replace(p, title=ln.title, lines=[ln], width=1) for p in panels for ln in p.lines if ln.title]
    panels = [panel for panel in panels if any(_drawn(results, line) for line in panel.lines)]
    if not panels:
        return None
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH, 0.9 + (2.8 if rows == 1 else 2.25 * rows)), layout="constrained")
    shared = all(panel.scale == "share" for panel in panels)
    widths = [panel.width for panel in panels] if rows == 1 else None
    axes = list(figure.subplots(rows, columns, sharey=shared, squeeze=False, width_ratios=widths).flat)
    for empty in axes[len(panels) :]:
        empty.set_axis_off()
    for axis, panel in zip(axes, panels, strict=False):
        for line in panel.lines:
            for group, colour, style in _styles(results, line):
                if line.curve in group.curves:
                    _curve(axis, group.curves[line.curve], colour, style, group.name if several else line.label)
        axis.set_title(fill(panel.title or "", LONGEST_TITLE // columns))
        axis.set_ylabel(panel.unit if axis in axes[::columns] or not shared else "")
        label_rounds(axis, panel.step if axis in axes[len(panels) - columns :] else "")
        if panel.scale == "share":
            axis.set_ylim(0, 1.03)
            axis.yaxis.set_major_formatter(PercentFormatter(1))
        elif panel.scale == "zero":
            from_zero(axis)
        if panel.level:
            level, word = panel.level
            axis.axhline(level, color=TEXT, linewidth=0.8, linestyle=DOTTED)
            axis.annotate(word, (1, level), (-2, 2), ("axes fraction", "data"), "offset points", ha="right", fontsize=8)
    legend(figure, axes, fewest=1 if several else 2)
    return figure


def _styles(results: Results, line: Line | None = None) -> Iterator[tuple[GroupResult, str, str]]:
    """Each group with its colour and line."""
    if line and len(results.groups) == 1:
        colour = COLOURS[line.colour % len(COLOURS)] if isinstance(line.colour, int) else STREAMS[line.colour]
        yield results.groups[0], colour, line.style
        return
    for number, group in enumerate(results.groups):
        turn, index = divmod(number, len(COLOURS))
        yield group, COLOURS[index], STYLES[turn % len(STYLES)]


def _curve(axis: Axes, curve: Curve, colour: str, style: str, label: str) -> None:
    """The group's line; over several runs a band of one standard deviation, over thin lines of single runs; of one run
    the intervals over questions."""
    values = curve.values
    mean = np.array([at.value for at in values])
    if not style.endswith(("o", "s")) and len(values) < 6:
        style += "o"  # a line through one point would be invisible
    if len(curve.runs) > 1:
        for run in curve.runs:
            axis.plot(list(run), list(run.values()), style.rstrip("os"), color=colour, linewidth=0.6, alpha=0.45)
        deviation = np.array([at.std for at in values], dtype=float)
        axis.fill_between(curve.steps, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0)
    width = 1 if style.startswith(":") else 1.6
    axis.plot(curve.steps, mean, style, color=colour, linewidth=width, markersize=4, label=label)
    known = [(step, at) for step, at in zip(curve.steps, values, strict=True) if at.low is not None]
    if known and style.startswith(":"):
        below, above = ([abs((getattr(at, end) or 0.0) - at.value) for _, at in known] for end in ("low", "high"))
        middle = [at.value for _, at in known]
        axis.errorbar(
            [s for s, _ in known], middle, [below, above], fmt="none", ecolor=colour, capsize=2.5, linewidth=1
        )


def reliability_diagram(results: Results) -> Figure | None:
    """Observed accuracy against the critic's value in the first, middle and last rounds; of one group, counts below."""
    names = [name for name in ("first", "middle", "last") if any(name in group.reliability for group in results.groups)]
    if not names:
        return None
    several = len(results.groups) > 1
    figure = Figure(figsize=(WIDTH, 3.4 if several else 4.5), layout=ConstrainedLayoutEngine(wspace=0.06))
    # a lone pool does not fill the whole width
    ratios = [1] if several else [3.2, 1]
    axes = figure.subplots(
        len(ratios), max(2, len(names)), sharex=True, sharey="row", squeeze=False, height_ratios=ratios
    )
    for column, name in zip(axes.T, names, strict=False):
        top, bottom = column[0], column[-1]
        top.plot([0, 1], [0, 1], color=TEXT, linewidth=0.8, linestyle=DOTTED)
        for group, colour, style in _styles(results):
            if curve := group.reliability.get(name):
                size = 10 + (60 if several else 130) * curve.count / curve.count.max()
                top.plot(curve.mean_score, curve.accuracy, style, color=colour, linewidth=1.2, label=group.name)
                top.scatter(curve.mean_score, curve.accuracy, size, color=colour, linewidths=0)
                if not several:
                    bottom.bar(curve.centers, curve.count, width=0.9 / BINS, color=colour, alpha=0.75)
        top.set_title(f"{name} rounds" if several else _reliability_title(results.groups[0], name), fontsize=9)
        top.set_xlim(-0.02, 1.02)
        top.set_ylim(-0.03, 1.03)
        bottom.set_xlabel("critic's value")
    for empty in axes[:, len(names) :].flat:
        empty.set_axis_off()
    axes[0][0].set_ylabel("share that is right")
    if several:
        legend(figure, axes.flat)
    else:
        axes[1][0].set_ylabel("rollouts")
    return figure


def _reliability_title(group: GroupResult, name: str) -> str:
    """Such as ``first rounds (1 to 3)``, ``AUROC 0.81``, ``Brier 0.17, ECE 0.05``, with those that are defined."""
    found = group.calibration.get(name, {})
    lines = [f"{name} rounds {rounds_of(group.rounds[name])}"]
    for labels in ({"auroc": "AUROC"}, {"brier": "Brier", "ece": "ECE"}):
        lines.append(", ".join(f"{label} {found[key].value:.2f}" for key, label in labels.items() if key in found))
    return "\n".join(filter(None, lines))


# name -> function, title, how to read it
FIGURES: dict[str, tuple[Callable[[Results], Figure | None], str, str]] = {
    "accuracy": (
        lambda results: draw_panels(results, accuracy(results)),
        "Accuracy",
        "Training helps where validation rises on D_U and does not fall on held-out questions.",
    ),
    "coverage": (
        lambda results: draw_panels(results, coverage(results)),
        "pass@k and the majority vote",
        "Where pass@1 (the average) rises and pass@k with many samples falls, the policy gives up answers it could "
        "find before.",
    ),
    "calibration": (
        lambda results: draw_panels(results, calibration(results)),
        "Calibration of the critic",
        "On fresh rollouts, before the round's E-step. AUROC near 0.5 means that the critic cannot tell right from "
        "wrong, so a reward made of it carries no information. A gap above 0 means that it is too optimistic.",
    ),
    "reward": (
        lambda results: draw_panels(results, reward(results)),
        "Reward on D_U",
        "Of the training rollouts. A reward that rises while the accuracy does not is being gamed.",
    ),
    "diversity": (
        lambda results: draw_panels(results, diversity(results)),
        "Diversity of the answers on D_U",
        "Distinct answers and entropy falling towards one and zero, or a length running away, are signs of collapse.",
    ),
    "reliability": (
        reliability_diagram,
        "Reliability of the critic on D_L",
        "Points on the diagonal mean that a value of 0.7 is right 70 % of the time. Values are those at the last "
        "token, before the round's E-step; the rollouts of these rounds are pooled, the numbers are means over the "
        "rounds. Dot size shows how many rollouts a point stands on.",
    ),
}
BAND = "Thick lines are means over the runs of a group, bands one standard deviation, thin lines single runs."
BARS = "Bars at the markers are 95 % intervals over questions."


def draw(results: Results) -> list[Drawing]:
    """Every figure there is data for; a note for each that there is not."""
    several_runs = any(len(group.members) > 1 for group in results.groups)
    drawings = []
    for name, (function, title, reading) in FIGURES.items():
        if picture := png(function, results, results.stamp):
            more = f" {BARS}" * (name == "accuracy" and results.single)
            more += f" {BAND}" * (several_runs and name != "reliability")
            drawings.append(Drawing(name, title, reading + more, picture))
        else:
            results.missing.append(f"Figure left out: {title[0].lower()}{title[1:]} (nothing was logged for it).")
    return drawings
