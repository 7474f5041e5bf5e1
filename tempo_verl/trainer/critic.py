# SPDX-License-Identifier: Apache-2.0
"""The critic of a round: its values, how good they are, and its E-step."""

from __future__ import annotations

import numpy as np
import torch

from tempo_verl.algo.advantage import on_tokens
from tempo_verl.algo.calibration import position_mask
from tempo_verl.methods import Method
from tempo_verl.trainer.batch import Samples
from tempo_verl.trainer.guard import check_range
from tempo_verl.trainer.log import Log
from tempo_verl.trainer.metrics import labeled_metrics
from tempo_verl.trainer.port import Port
from tempo_verl.trainer.replay import Replay


class Critic:
    """V(x, y_1:t), as an estimate of P(right). See :class:`tempo_verl.methods.base.Critic`.

    Args:
        replay: labelled rollouts of earlier rounds.
        number: of the round.
    """

    def __init__(self, port: Port, method: Method, replay: Replay, number: int, log: Log):
        self._port, self._method, self._replay, self._number, self._log = port, method, replay, number, log

    def values(self, samples: Samples) -> torch.Tensor:
        """Jagged (B, T_i + 1) float32 V(x, y_1:t), t = 0..T, of the critic as it is now."""
        values = self._port.values(samples)
        check_range("the critic's values", values, None, samples)
        return values

    def measure(self, samples: Samples) -> torch.Tensor:
        """Values as above. How well they agree with the verdicts of labelled ``samples`` is logged."""
        values = self.values(samples)
        score = self._method.probability(values, samples.response_mask).numpy()[samples.ends]
        correct = samples.verdicts.numpy()[samples.ends]
        self._log.metrics.update(labeled_metrics(score, correct))
        keys = np.array(samples.meta.keys, dtype=str)[samples.ends]
        self._log.arrays.update(labeled_key=keys, labeled_value=score, labeled_correct=correct)
        return values

    def fit(self, samples: Samples, target: torch.Tensor, weight: torch.Tensor | None = None) -> None:
        """The E-step: minimise the mean squared error between every V(x, y_1:t), t = 0..T, and ``target`` (B,).

        ``weight`` (B,) is that of each response in the mean. With ``tempo.calibration.replay`` it also learns from
        rollouts of earlier rounds, with the weights they had.
        """
        mask = position_mask(samples.response_mask)
        if weight is not None:
            mask = on_tokens(weight, mask)
        samples.write(outcome=target.unsqueeze(-1), loss_mask=mask)
        settings = self._method.settings
        if settings.calibration.replay.prompts:
            count = settings.calibration.replay.prompts * settings.labeled.n
            joined = self._replay.join(samples, count, self._mini_batch, self._number)
            self._log.metrics["tempo/labeled/replayed"] = float(len(joined) - len(samples))
            samples = self._port.balanced(
                joined, self._mini_batch, self._log, "replay_seqlen", "critic", updates_only=True
            )
        self.train(samples)

    def train(self, samples: Samples) -> None:
        """Updates in mini-batches, by the loss that was set for the method, on the fields that were written for it."""
        epochs = self._method.settings.calibration.epochs
        samples = self._port.in_updates(samples, self._mini_batch, "critic")
        self._log.metrics.update(
            self._port.train_critic(samples, mini_batch=self._mini_batch, epochs=epochs, number=self._number)
        )

    @property
    def _mini_batch(self) -> int:
        """Samples in one update."""
        return self._method.settings.calibration.mini_batch_size * self._method.settings.labeled.n
