# SPDX-License-Identifier: Apache-2.0
"""Lists and objects in a cell of text: as JSON, as Python or as numpy prints them.

Python itself would read numpy's ``['Paris' 'Rome']`` as one string, "ParisRome".
"""

from __future__ import annotations

import ast
import json
import re
from decimal import Decimal
from typing import Any

_TOKEN = re.compile(
    r"""
    (?P<string>[uUbB]?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"))
  | (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))
  | (?P<name>[A-Za-z_][\w.]*)
  | (?P<sign>[\[\](){},:=])
    """,
    re.VERBOSE | re.DOTALL,
)
_CONSTANTS = {"True": True, "False": False, "None": None, "nan": None}
_LISTS = {"array", "np.array", "numpy.array", "list", "tuple"}
_SCALARS = re.compile(r"(?:np|numpy)\.(?:str_|bool_?|u?int\d*|float\d*)")
_CLOSING = {"[": "]", "(": ")", "{": "}"}


def unprinted(text: str) -> Any:
    """The list or object that a text prints.

    Raises:
        ValueError: it prints none, or one of which it is not clear where its items end.
    """
    try:
        value = json.loads(text, parse_float=Decimal, parse_constant=lambda _: None)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except ValueError:
        try:
            value = _Reader(text).read()
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError(str(error)) from error
    if not isinstance(value, list | dict):
        raise ValueError("neither a list nor an object")
    return value


class _Reader:
    """Recursive descent over the tokens of a printed value."""

    def __init__(self, text: str):
        self._tokens: list[tuple[str, str, bool]] = []  # (kind, text, white space before it)
        at, spaced = 0, False
        while at < len(text):
            if text[at].isspace():
                at, spaced = at + 1, True
                continue
            match = _TOKEN.match(text, at)
            if match is None:
                raise ValueError(f"unexpected {text[at]!r}")
            self._tokens.append((str(match.lastgroup), match[0], spaced))
            at, spaced = match.end(), False
        self._at = 0

    def read(self) -> Any:
        value = self._value()
        if self._at != len(self._tokens):
            raise ValueError("more behind it")
        return value

    def _peek(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _next(self, expected: str | None = None) -> tuple[str, str]:
        if self._at == len(self._tokens) or (expected and self._peek() != expected):
            raise ValueError(f"{expected or 'a value'} expected")
        kind, text, _ = self._tokens[self._at]
        self._at += 1
        return kind, text

    def _value(self) -> Any:
        kind, text = self._next()
        if kind == "string":
            value = ast.literal_eval(text)
            return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        if kind == "number":
            return int(text) if text.lstrip("+-").isdecimal() else Decimal(text)
        if kind == "name":
            return _CONSTANTS[text] if text in _CONSTANTS else self._call(text)
        if text in ("[", "("):
            return self._items(_CLOSING[text])
        if text == "{":
            return self._pairs()
        raise ValueError(f"unexpected {text!r}")

    def _call(self, name: str) -> Any:
        """``array([...], dtype=object)``, ``np.str_('a')``: the first argument."""
        if name not in _LISTS and not _SCALARS.fullmatch(name):
            raise ValueError(f"unexpected {name!r}")
        self._next("(")
        value = self._value()
        while self._peek() == ",":
            self._next()
            self._next()
            self._next("=")
            self._next()
        self._next(")")
        return value

    def _items(self, closing: str) -> list[Any]:
        """Items with a comma between any two, or with white space alone between any two."""
        items: list[Any] = []
        commas = bare = 0
        while self._peek() != closing:
            if items:
                if self._peek() == ",":
                    self._next()
                    commas += 1
                    if self._peek() == closing:
                        break
                elif self._at < len(self._tokens) and self._tokens[self._at][2]:
                    bare += 1
                else:
                    raise ValueError("nothing between two items")
            items.append(self._value())
        if commas and bare:
            raise ValueError("a comma between some items, none between others")
        self._next(closing)
        return items

    def _pairs(self) -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        while self._peek() != "}":
            if pairs:
                self._next(",")
                if self._peek() == "}":
                    break
            name = self._value()
            if not isinstance(name, str | int):
                raise ValueError("a name that is none")
            self._next(":")
            pairs[str(name)] = self._value()
        self._next("}")
        return pairs
