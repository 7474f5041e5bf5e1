# SPDX-License-Identifier: Apache-2.0
"""What all figures share: colours, sizes, axes, and how one becomes a PNG (matplotlib's Agg canvas, no pyplot state).

Colours are from the Okabe-Ito palette, which readers with colour-vision deficiencies can tell apart.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Theme:
    """Colours of a figure: page, text and rules; one per data stream, or one per group of runs."""

    page: str
    text: str
    rule: str
    labeled: str
    unlabeled: str
    heldout: str
    groups: tuple[str, ...]


LIGHT = Theme(
    "#ffffff",
    "#33383f",
    "#d9dce1",
    labeled="#0072B2",
    unlabeled="#D55E00",
    heldout="#009E73",
    groups=("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6B7280"),
)
DARK = Theme(
    "#1b1f25",
    "#d5d9df",
    "#3a4049",
    labeled="#56B4E9",
    unlabeled="#E69F00",
    heldout="#2CC29A",
    groups=("#56B4E9", "#E69F00", "#2CC29A", "#E39AC4", "#F0E442", "#FF7A3D", "#A3ACB8"),
)


@dataclass(frozen=True)
class Drawing:
    """One figure as PNG bytes, for light and for dark pages."""

    name: str
    title: str
    reading: str
    light: bytes
    dark: bytes


def draw_all(
    figures: Mapping[str, tuple[Callable[[Any, Theme], Figure | None], str, str]],
    data: Any,
    *,
    stamp: str | None,
    notes: list[str],
) -> list[Drawing]:
    """Draw every figure there is data for, in both themes; add a note for each that there is not.

    Args:
        figures: name -> function of the data and a theme, title, how to read it.
        stamp: a line below every figure.
    """
    drawings = []
    for name, (function, title, reading) in figures.items():
        light, dark = (_png(function, data, theme, stamp) for theme in (LIGHT, DARK))
        if light and dark:
            drawings.append(Drawing(name, title, reading, light, dark))
        else:
            notes.append(f"Figure left out: {title[0].lower()}{title[1:]} (nothing was logged for it).")
    return drawings


def _png(function: Callable[[Any, Theme], Figure | None], data: Any, theme: Theme, stamp: str | None) -> bytes | None:
    with rc_context(_style(theme)):
        figure = function(data, theme)
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


def label_rounds(axis: Axes, label: str = "round") -> None:
    axis.set_xlabel(label)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))


def legend(figure: Figure, axes: Iterable[Axes], fewest: int = 1) -> None:
    """One legend above the panels, where it covers no data; each label once, none where there are too few to tell."""
    pairs = (pair for axis in axes for pair in zip(*axis.get_legend_handles_labels(), strict=True))
    entries = {fill(label, LINE): handle for handle, label in pairs}
    if len(entries) < fewest:
        return
    columns = 1 if max(map(len, entries), default=0) > LONG_LABEL else 2
    figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=columns)


def with_symbols(text: str) -> str:
    """D_L and D_U as mathematical symbols; any other text stays as it is, dollar signs included."""
    return re.sub(r"\bD_([LU])\b", r"$D_\1$", text.replace("$", r"\$"))


def _style(theme: Theme) -> dict[Any, Any]:
    return {
        "figure.facecolor": theme.page,
        "savefig.facecolor": theme.page,
        "axes.facecolor": theme.page,
        "axes.edgecolor": theme.rule,
        "axes.labelcolor": theme.text,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.titlecolor": theme.text,
        "axes.labelsize": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.rule,
        "grid.linewidth": 0.6,
        "text.color": theme.text,
        "xtick.color": theme.rule,
        "ytick.color": theme.rule,
        "xtick.labelcolor": theme.text,
        "ytick.labelcolor": theme.text,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "font.family": "DejaVu Sans",  # ships with matplotlib: the same picture on every machine
        "font.size": 9.5,
    }
