# SPDX-License-Identifier: Apache-2.0
"""Plain lines and the columns of progress bars, alike in every command."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def tell(console: Console, line: str) -> None:
    """One line as it is: no markup, no colours, no breaks."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def bar_columns() -> tuple[ProgressColumn, ...]:
    """Title, bar, how many of how many, time taken and time left."""
    return (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
