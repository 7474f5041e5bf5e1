# SPDX-License-Identifier: Apache-2.0
"""Curves over rounds: a figure is made of panels, a panel of lines.

Of one group of runs, each colour stands for one data stream, and the lines of a panel share it. Of several groups, each
colour stands for a group, and every line has a panel of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from tempo_verl.report.results import Curve, GroupResult, Results
from tempo_verl.report.style import COLOURS, DOTTED, STREAMS, TEXT, WIDTH, from_zero, label_rounds, legend

STYLES = ("-", "--", "-.")  # of groups, the next one when the colours are used up
LONGEST_TITLE = 96  # characters across a figure


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


def drawn(results: Results, line: Line) -> bool:
    return any(line.curve in group.curves for group in results.groups)


def draw_panels(results: Results, panels: list[Panel]) -> Figure | None:
    """Every panel that there is data for, in one figure; None if there is none."""
    several = len(results.groups) > 1
    if several:
        panels = [replace(p, title=ln.title, lines=[ln], width=1) for p in panels for ln in p.lines if ln.title]
    panels = [panel for panel in panels if any(drawn(results, line) for line in panel.lines)]
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
            for group, colour, style in styles(results, line):
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


def styles(results: Results, line: Line | None = None) -> Iterator[tuple[GroupResult, str, str]]:
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
    if style.startswith(":"):  # validation; nan where there is no interval
        ends = np.array([(at.low, at.high) for at in values], dtype=float).T
        axis.errorbar(curve.steps, mean, abs(ends - mean), fmt="none", ecolor=colour, capsize=2.5, linewidth=1)
