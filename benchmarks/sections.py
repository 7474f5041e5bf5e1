# SPDX-License-Identifier: Apache-2.0
"""What every benchmark here gives back: tables in Markdown, with the machine they were made on."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("tempo-verl", "verl", "torch", "transformers", "ray", "TransferQueue", "math-verify", "sympy")


@dataclass
class Section:
    """A table and what is to be said of it."""

    title: str
    header: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    text: str = ""

    def markdown(self) -> str:
        lines = [f"## {self.title}", ""]
        if self.rows:
            lines += [_line(self.header), _line(["---"] * len(self.header)), *map(_line, self.rows), ""]
        return "\n".join([*lines, self.text, ""] if self.text else lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """Median, and the lowest and the highest of several."""
    middle, low, high = (format(of(values), form) for of in (statistics.median, min, max))
    return middle if len(values) == 1 else f"{middle} ({low} - {high})"


def ratio(values: Sequence[float], others: Sequence[float]) -> str:
    """Of two medians."""
    return f"{statistics.median(values) / statistics.median(others):.2f}"


def machine() -> str:
    """Processor, cores, load, system, versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return (
        f"{datetime.date.today()}, {names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"load {os.getloadavg()[0]:.1f}, {platform.platform()}, Python {platform.python_version()}; {versions}"
    )


def show(sections: Iterable[Section]) -> None:
    """Print them as they are measured, and the machine at the end."""
    for section in sections:
        print(section.markdown(), flush=True)
    print(machine())
