# SPDX-License-Identifier: Apache-2.0
"""Labelled rollouts of earlier rounds, from which an E-step learns again.

One round has too few labelled samples to follow the policy, so the critic learns shortcuts that the policy exploits.
The verdicts of earlier rollouts are known, so they can be learnt from again.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import torch

from tempo_verl.trainer.batch import Samples, concatenate, of_keys, put_back

PARTITION = "replay"
FILE = "replay.pt"  # in a checkpoint


class Replay:
    """The labelled samples of the last rounds, kept in a partition of their own in the queue.

    Checkpoints hold them: a resumed run draws what the run would have drawn.

    Args:
        window: calibrating rounds to keep.
        seed: of the draws.
    """

    def __init__(self, window: int, seed: int):
        self._window, self._seed = window, seed
        self._rounds: deque[Samples] = deque()

    def join(self, fresh: Samples, count: int, multiple: int, number: int) -> Samples:
        """Keep a round's samples, and put earlier ones, drawn at random without replacement, behind them.

        Args:
            fresh: samples of this round, with the critic's targets.
            count: earlier ones to draw; fewer where there are not as many yet.
            multiple: their number is a multiple of it.
            number: of the round.
        """
        while len(self._rounds) > self._window:
            self._rounds.popleft().clear()
        rows = [
            (key, tag)
            for samples in self._rounds
            for key, tag, real in zip(samples.meta.keys, samples.meta.tags, samples.real, strict=True)
            if real
        ]
        count = min(count, len(rows)) // multiple * multiple
        drawn = np.random.default_rng([self._seed, number]).choice(len(rows), count, replace=False) if count else []
        kept = fresh.copy_to(PARTITION)
        self._rounds.append(kept)
        return concatenate(kept, of_keys(PARTITION, [rows[row] for row in drawn]))

    def save(self, folder: Path) -> None:
        """Write what is kept into a checkpoint; nothing where nothing is."""
        if self._rounds:
            torch.save([samples.stored() for samples in self._rounds], folder / FILE)

    def load(self, folder: Path) -> None:
        """Put back into the queue what a checkpoint holds."""
        if (folder / FILE).is_file():
            rounds = torch.load(folder / FILE, weights_only=True)
            self._rounds = deque(put_back(PARTITION, **stored) for stored in rounds)
