# SPDX-License-Identifier: Apache-2.0
"""Verifiers: is a response right, and what did it answer?

A dataset row chooses its verifier by ``reward_model.style``: ``math`` (Math-Verify), ``exact`` (the stripped text), or
``module:function`` for a user's own, called as ``function(response, ground_truth) -> (correct, answer)`` with
``ground_truth=None`` where only the answer is wanted.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from tempo_verl.errors import UserError

MATH_SECONDS = 5  # for each of parsing and comparing; an answer that takes longer counts as wrong

Verifier = Callable[[str, str | None], tuple[bool, str | None]]


@dataclass(frozen=True)
class Score:
    """``correct``: does the answer equal the ground truth; ``answer``: what was extracted, ``None`` if nothing was."""

    correct: bool
    answer: str | None


def _exact(response: str, ground_truth: str | None) -> tuple[bool, str | None]:
    answer = response.strip() or None
    return answer is not None and ground_truth is not None and answer == ground_truth.strip(), answer


def _math(response: str, ground_truth: str | None) -> tuple[bool, str | None]:
    from math_verify import parse, verify

    # Math-Verify's timeouts are signals, which only a main thread gets; TempoRewardManager sees to it that it is one.
    seconds = MATH_SECONDS if threading.current_thread() is threading.main_thread() else None
    parsed = parse(response, parsing_timeout=seconds)
    answer = str(parsed[-1]) if parsed else None
    if ground_truth is None or not parsed:
        return False, answer
    gold = parse(ground_truth if "\\boxed" in ground_truth else f"\\boxed{{{ground_truth}}}", parsing_timeout=seconds)
    return bool(verify(gold, parsed, timeout_seconds=seconds)), answer


@lru_cache
def verifier(style: str) -> Verifier:
    """The verifier of a style.

    Raises:
        UserError: the style is unknown, its ``module:function`` cannot be imported, or Math-Verify is not installed.
    """
    builtin: dict[str, Verifier] = {"math": _math, "rule": _math, "exact": _exact}
    if builtin.get(style) is _math and importlib.util.find_spec("math_verify") is None:
        raise UserError(f"reward_model.style={style!r} needs Math-Verify: pip install 'tempo-verl[math]'")
    if style in builtin:
        return builtin[style]
    module, _, function = style.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        known = ", ".join(builtin)
        raise UserError(
            f"reward_model.style={style!r}: neither one of {known} nor an importable module:function ({error})"
        ) from error


def score(response: str, ground_truth: str, style: str = "math") -> Score:
    """Check a response.

    Args:
        response: the policy's text, without special tokens.
        ground_truth: the right answer as the dataset gives it.
        style: which verifier, see the module's text.
    """
    return Score(*verifier(style)(response, ground_truth))


def extract(response: str, style: str = "math") -> str | None:
    """The answer a response gives, by the same extraction that :func:`score` uses."""
    return verifier(style)(response, None)[1]
