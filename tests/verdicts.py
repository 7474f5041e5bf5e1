# SPDX-License-Identifier: Apache-2.0
"""Verifiers that are wrong in one way each, for ``reward_model.style=verdicts:NAME``."""

from __future__ import annotations


def right(response: str, ground_truth: str | None) -> tuple[bool, str | None]:
    """Everything is right."""
    return True, response or None


def wrong(response: str, ground_truth: str | None) -> tuple[bool, str | None]:
    """Nothing is."""
    return False, response or None


def nan(response: str, ground_truth: str | None) -> tuple[float, str | None]:
    """No verdict at all."""
    return float("nan"), response or None
