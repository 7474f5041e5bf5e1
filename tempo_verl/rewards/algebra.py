# SPDX-License-Identifier: Apache-2.0
"""What a child process does for ``mathematics``: compare two answers with Math-Verify.

Math-Verify and SymPy take unbounded time and memory on some inputs, so they only ever run in a child process. They are
imported with this module, and tried once: seconds that belong to the start of the child, not to the first answer.
"""

from __future__ import annotations

import logging
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from tempo_verl.rewards.mathematics import as_formula
from tempo_verl.rewards.spelling import DELIMITERS

MEMORY = 2 * 2**30  # bytes that a comparison may use; (2+3i)^{10^8} takes more by the second


def judge(text: str, truth: str | None) -> tuple[bool, str | None]:
    """Whether ``text`` gives an answer that equals ``truth``, and the answer as Math-Verify reads it."""
    with limited_memory():
        parsed = _parse(text)
        if not parsed:
            return False, None
        verdict = truth is not None and bool(verify(_parse_truth(truth), parsed, timeout_seconds=None))
        return verdict, str(parsed[-1])


@contextmanager
def limited_memory() -> Iterator[None]:
    """Allocations fail beyond MEMORY; not for good, as a user's own verifier may need more in the same process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def why_not(truth: str) -> str | None:
    """Why a ground truth is of no use, or ``None``: it must equal itself, and differ from others in finite time."""
    parsed = _parse_truth(truth)
    if not parsed:
        return "no mathematics in it"
    if not verify(parsed, parsed, timeout_seconds=None):
        return "not equal to itself"
    verify(parsed, _parse(r"$$\pi - 1$$"), timeout_seconds=None)
    return None


def _parse(text: str) -> list[Any]:
    # The time limit is the process's: Math-Verify's own are signals that do not reach into long C calls, and end in
    # "wrong" without a word.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    targets = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    return parse(text, targets, parsing_timeout=None)


@lru_cache(maxsize=4096)
def _parse_truth(truth: str) -> list[Any]:
    """A bare ground truth is LaTeX as if it stood in a box; one with ``$`` or prose around it is read as a response."""
    if DELIMITERS.search(truth):
        return _parse(truth)
    parsed = _parse(as_formula(truth))
    if "\\" not in truth:
        parsed = parsed + _parse(truth) if _is_number(truth) else parsed or _parse(truth)
    return parsed


def _is_number(truth: str) -> bool:
    return re.fullmatch(r"[-+]?[\d.,]+\s*%?", truth) is not None


why_not(r"\frac{1}{2}")  # compiles patterns and loads parsers
