# SPDX-License-Identifier: Apache-2.0
"""How fast an engine generates. Bound by memory: for each token of all sequences, weights and caches are read once."""

from __future__ import annotations

import math

from tempo_verl.planning.architecture import Architecture


def sequences(space: float, each: float) -> int:
    """Growing sequences that the KV cache of a replica holds: its bytes, by the mean bytes of one."""
    return max(math.floor(space / each), 0)


def tokens_per_second(model: Architecture, held: int, each: float, parallel: int, bandwidth: float) -> float:
    """Tokens that one GPU generates in a second.

    Args:
        held: sequences that a replica works on at a time.
        each: bytes of one sequence's cache, on average.
        parallel: GPUs of a replica.
        bandwidth: bytes a second that a GPU reaches.
    """
    seconds = (2 * model.actor + held * each) / (parallel * bandwidth)
    return held / seconds / parallel
