# SPDX-License-Identifier: Apache-2.0
"""What all figures share: colours, axes, legend, and how one becomes a PNG (matplotlib's Agg canvas, no pyplot state).

Colours are from the Okabe-Ito palette, which readers with colour-vision deficiencies can tell apart. On a dark page the
browser turns light and dark of a figure around.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from textwrap import fill
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

DPI = 144
WIDTH = 7.2  # inches
BINS = 10  # of a reliability diagram
DOTTED = (0, (1, 2))
ORACLE = "oracle monitoring"
LINE = 92  # characters of a label that fit across a figure
LONG_LABEL = 50  # characters; two longer ones do not fit side by side
TEXT, RULE = "#33383f", "#d9dce1"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6B7280")  # of groups
STREAMS = {"labeled": COLOURS[0], "unlabeled": COLOURS[1], "heldout": COLOURS[2], "text": TEXT}
STYLE: dict[Any, Any] = {
    **{f"axes.{name}color": TEXT for name in ("label", "title")},
    **{f"{axis}tick.{name}": colour for axis in "xy" for name, colour in (("color", RULE), ("labelcolor", TEXT))},
    **{f"{axis}tick.labelsize": 9 for axis in "xy"},
    **{f"axes.spines.{side}": False for side in ("top", "right")},
    "axes.edgecolor": RULE,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": TEXT,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same picture on every machine
    "font.size": 9.5,
}


def png(function: Callable[[Any], Figure | None], data: Any, stamp: str | None) -> bytes | None:
    """Draw a figure, with a stamp below it; None if the function finds nothing to draw in the data."""
    with rc_context(STYLE):
        figure = function(data)
        if figure is None:
            return None
        if stamp:
            figure.supxlabel(stamp, fontsize="small", fontweight="bold")  # the legend is on top
        for text in figure.findobj(Text):
            text.set_text(with_symbols(text.get_text()))
        FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def from_zero(axis: Axes) -> None:
    """Measure from zero, so that a small change looks small; some room beyond the highest point, and one below zero."""
    low, high = (axis.dataLim.y0, max(axis.dataLim.y1, 1e-9)) if axis.has_data() else (0, 1 / 1.08)
    axis.set_ylim(1.08 * min(low, 0), 1.08 * high)


def label_rounds(axis: Axes, label: str) -> None:
    axis.set_xlabel(label)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))


def legend(figure: Figure, axes: Iterable[Axes], fewest: int = 1) -> None:
    """One legend above the panels, where it covers no data; each label once, none where there are too few to tell."""
    pairs = (pair for axis in axes for pair in zip(*axis.get_legend_handles_labels(), strict=True))
    entries = {fill(label, LINE): handle for handle, label in pairs}
    if len(entries) >= fewest:
        columns = 1 if max(map(len, entries), default=0) > LONG_LABEL else 2
        figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=columns)


def with_symbols(text: str) -> str:
    """D_L and D_U as mathematical symbols; any other text stays as it is, dollar signs included."""
    return re.sub(r"\bD_([LU])\b", r"$D_\1$", text.replace("$", r"\$"))
