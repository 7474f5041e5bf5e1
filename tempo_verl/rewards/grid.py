# SPDX-License-Identifier: Apache-2.0
"""Puzzle grids as in ZebraLogic: a response gives a table as JSON, and is right if every cell of the solution is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tempo_verl.rewards.answers import normalised

WINDOW = 50_000  # a table is looked for in this many characters at the end of a response

Cells = dict[str, str]


def extract_grid(response: str) -> str | None:
    """The cells of the last table in the response, as JSON with sorted keys."""
    tables = [cells for value in _objects(response[-WINDOW:]) if (cells := _cells(value))]
    return json.dumps(tables[-1], sort_keys=True) if tables else None


def equal_grid(answer: str, ground_truth: str) -> bool:
    """Every cell of the solution is in the answer; further cells do not matter."""
    given = json.loads(answer)
    return all(given.get(place) == value for place, value in solution(ground_truth).items())


def solution(ground_truth: str) -> Cells:
    """The cells of a ground truth, {"header": [...], "rows": [[...]]} or {"House 1": {...}, ...}.

    Raises:
        ValueError: it is no such JSON.
    """
    try:
        cells = _cells(json.loads(ground_truth))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not cells:
        raise ValueError("no table in it")
    return cells


def _objects(text: str) -> list[Any]:
    """The JSON objects of a text, outermost ones only."""
    decoder, found, position = json.JSONDecoder(), [], text.find("{")
    while position >= 0:
        try:
            value, position = decoder.raw_decode(text, position)
            found.append(value)
        except (ValueError, RecursionError):
            position += 1
        position = text.find("{", position)
    return found


def _cells(value: Any) -> Cells:
    """{"row/column": text}, normalised; rows are named by their first column, "House 1" by its number."""
    while isinstance(value, dict) and "solution" in value:
        value = value["solution"]
    if not isinstance(value, dict):
        return {}
    header, rows = value.get("header"), value.get("rows")
    named: list[tuple[Any, Iterable[tuple[Any, Any]]]]
    if isinstance(header, list) and isinstance(rows, list):
        named = [(row[0], zip(header[1:], row[1:], strict=False)) for row in rows if isinstance(row, list) and row]
    else:
        named = [(name, row.items()) for name, row in value.items() if isinstance(row, dict)]
    return {
        f"{_row_name(name)}/{normalised(str(column))}": normalised(str(cell))
        for name, row in named
        for column, cell in row
        if not any(isinstance(part, dict | list) for part in (name, column, cell))
    }


def _row_name(name: Any) -> str:
    return normalised(str(name)).removeprefix("house").strip()
