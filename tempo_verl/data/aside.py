# SPDX-License-Identifier: Apache-2.0
"""The questions of D_L that calibrate the probabilities of the predictions, kept out of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tempo_verl.algo.calibration import FEWEST_LABELED

if TYPE_CHECKING:
    from tempo_verl.methods import Method


def calibration_rows(method: Method, size: int) -> list[int]:
    """Rows of D_L, of ``size`` questions, that are asked beside D_U after the last round."""
    kept = rows_aside(method, size)
    return sorted(kept) or evenly_spaced(size, method.settings.predictions.labeled)


def rows_aside(method: Method, size: int) -> frozenset[int]:
    """Those rows, where they are kept out of training; none where that would leave too few of either.

    A critic knows the answers that it was fitted on, and so takes its own judgement for better than it is on D_U.
    """
    predictions = method.settings.predictions
    if not method.needs.unlabeled or predictions.file is None:
        return frozenset()
    most = min(predictions.labeled, int(predictions.aside * size))
    return frozenset(evenly_spaced(size, most)) if most >= FEWEST_LABELED else frozenset()


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most ``most`` of the rows 0 .. count - 1, evenly spaced."""
    return [row * count // most for row in range(most)] if count > most else list(range(count))
