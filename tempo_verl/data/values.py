# SPDX-License-Identifier: Apache-2.0
"""Values of a record: found by name or dotted path, and told as text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any


class RowError(ValueError):
    """A row that cannot be used: the ``reason`` it is counted under, and the ``detail``."""

    def __init__(self, reason: str, detail: str):
        super().__init__(" ".join(f"{reason} ({detail})".split()))
        self.reason, self.detail = reason, detail


def clean(text: str) -> str:
    """Text that every file format can hold: without NUL, pairs of surrogates joined, lone ones replaced."""
    return text.replace("\0", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@lru_cache(maxsize=4096)
def key(name: str) -> str:
    """What names have in common that differ in case, spaces and hyphens."""
    return re.sub(r"[\s-]+", "_", name.strip().casefold())


@lru_cache(maxsize=256)
def by_key(names: tuple[str, ...]) -> dict[str, str]:
    """The names of a record's columns; of two that look the same, the first."""
    return {key(name): name for name in reversed(names)}


def lookup(value: Any, path: str) -> tuple[bool, Any]:
    """(is it there, the value) at a dotted path."""
    if isinstance(value, dict):
        if path in value:
            return True, value[path]
        head, dot, rest = path.partition(".")
        for candidate in (path, head):
            name = by_key(tuple(value)).get(key(candidate))
            if name is not None:
                return lookup(value[name], rest) if dot and candidate == head else (True, value[name])
    elif isinstance(value, list):
        head, dot, rest = path.partition(".")
        if head.isdecimal() and int(head) < len(value):
            return lookup(value[int(head)], rest) if dot else (True, value[int(head)])
    return False, None


def values_of(fields: dict[str, Any], names: Sequence[str]) -> list[Any]:
    """The values of those columns that have one."""
    return [value for name in names if not is_missing(value := lookup(fields, name)[1])]


def names_of(fields: dict[str, Any]) -> str:
    """The names of a record's columns, for a message."""
    more = f" and {len(fields) - 20} more" if len(fields) > 20 else ""
    return f"found {', '.join(map(str, list(fields)[:20])) or 'none'}{more}"


def is_missing(value: Any) -> bool:
    """No value, or an empty one."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (
        isinstance(value, str | list | dict) and not (value.strip() if isinstance(value, str) else value)
    )


def as_text(value: Any, role: str, column: str) -> str:
    """A scalar as text, without loss: 204 for 204 and 204.0.

    Raises:
        RowError: it is no scalar.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float | Decimal):
        number = Decimal(repr(value)) if isinstance(value, float) else value
        if number.is_finite() and abs(number.adjusted()) < 40:  # no thousand digits for 1e1000
            return f"{number:f}" if number != number.to_integral_value() else f"{number.to_integral_value():f}"
        return str(value)
    inside: Any = "0" if isinstance(value, list) else "text"
    if isinstance(value, dict):
        inside = next((name for name, item in value.items() if not isinstance(item, list | dict)), inside)
    raise RowError(
        f"nested {role}", f"{column} is a {type(value).__name__}; name what is in it, like {column}.{inside}"[:200]
    )
