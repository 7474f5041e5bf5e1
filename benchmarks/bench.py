# SPDX-License-Identifier: Apache-2.0
"""All benchmarks of cost in one run, into one file: ``make bench``. The machine should have nothing else to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import driver
import rounds
import startup
import typer
import verifiers
from sections import Section, machine

RESULTS = Path(__file__).with_name("results.md")
PARTS: dict[str, Callable[[bool], Iterable[Section]]] = {
    "rounds": rounds.measure,
    "driver": driver.measure,
    "startup": startup.measure,
    "verdicts": verifiers.measure,
}
BEGIN = """# What TEMPO costs

Made by `make bench`{options} in {minutes:.0f} minutes on {machine}.

Medians, and in brackets the lowest and the highest. Compare only figures of one run.
"""


def main(
    only: Annotated[str, typer.Option(help=f"Parts, with commas: {', '.join(PARTS)}.")] = ",".join(PARTS),
    fast: Annotated[bool, typer.Option("--fast", help="Small sizes, one repetition: does it work at all?")] = False,
    out: Annotated[Path, typer.Option(help="Markdown file.")] = RESULTS,
) -> None:
    """Measure, print every table when it is there, write all to OUT."""
    unknown = set(only.split(",")) - set(PARTS)
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: no such part", param_hint="--only")
    options = f' ARGS="--only {only}{" --fast" * fast}"' if fast or only != ",".join(PARTS) else ""
    started, about, found = time.monotonic(), machine(), []
    for name in only.split(","):
        for section in PARTS[name](fast):
            print(section.markdown(), flush=True)
            found.append(section)
            begin = BEGIN.format(options=options, minutes=(time.monotonic() - started) / 60, machine=about)
            out.write_text("\n".join([begin, *(each.markdown() for each in found)]))
    print(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
