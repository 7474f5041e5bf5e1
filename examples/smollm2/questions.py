# SPDX-License-Identifier: Apache-2.0
"""Questions that a model of 135M parameters gets right now and then: which of three numbers is the largest?

    python examples/smollm2/questions.py --seed 1 --out data

Writes ``labeled.jsonl``, ``unlabeled.jsonl`` and ``heldout.jsonl`` with chat messages and an answer in each line. A
question is asked after one that is answered, so that an answer is one number. No three numbers are in two questions.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Annotated

import typer

SYSTEM = "Largest number"
SHOT = (12, 85, 40)
TWO_DIGITS = range(10, 100)


def messages(numbers: tuple[int, ...]) -> list[dict[str, str]]:
    """The chat that asks for the largest of ``numbers``."""
    turns = [("system", SYSTEM), ("user", shown(SHOT)), ("assistant", str(max(SHOT))), ("user", shown(numbers))]
    return [{"role": role, "content": content} for role, content in turns]


def shown(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers))


def draw(sizes: dict[str, int], seed: int) -> dict[str, list[tuple[int, ...]]]:
    """For each set, so many threes of different two-digit numbers; no two are the same numbers in another order."""
    generator, taken = random.Random(seed), {frozenset(SHOT)}
    sets: dict[str, list[tuple[int, ...]]] = {name: [] for name in sizes}
    for name, size in sizes.items():
        while len(sets[name]) < size:
            numbers = tuple(generator.sample(TWO_DIGITS, len(SHOT)))
            if frozenset(numbers) not in taken:
                taken.add(frozenset(numbers))
                sets[name].append(numbers)
    return sets


def main(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    seed: Annotated[int, typer.Option(help="Of the numbers.")] = 1,
    labeled: Annotated[int, typer.Option(min=1, max=100_000, help="Questions of D_L.")] = 256,
    unlabeled: Annotated[int, typer.Option(min=1, max=100_000, help="Questions of D_U.")] = 32,
    heldout: Annotated[int, typer.Option(min=1, max=100_000, help="Questions that are only evaluated on.")] = 32,
) -> None:
    """Write three sets of questions."""
    out.mkdir(parents=True, exist_ok=True)
    for name, threes in draw({"labeled": labeled, "unlabeled": unlabeled, "heldout": heldout}, seed).items():
        rows = [{"messages": messages(numbers), "answer": str(max(numbers))} for numbers in threes]
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
