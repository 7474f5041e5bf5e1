# SPDX-License-Identifier: Apache-2.0
"""Watches a run by its label-free and labelled metrics: alarms, the gate of the M-step, and when to stop.

Nothing here looks at an answer of D_U.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from tempo_verl.config.schema import Alarms, Gate, Guard
from tempo_verl.errors import UserError

logger = logging.getLogger(__name__)

# alarm -> the metric it watches, and what it means
ALARMS = {
    "auroc": ("tempo/labeled/auroc", "the critic hardly tells right from wrong"),
    "gap": ("tempo/labeled/gap", "the critic is too optimistic"),
    "entropy": ("tempo/unlabeled/entropy", "the policy's entropy collapses"),
    "diversity": ("tempo/unlabeled/distinct_answers", "the policy's answers collapse"),
    "length": ("tempo/unlabeled/response_length", "responses run away in length"),
}

ROLES = ("actor", "critic")


class Watch:
    """What the last rounds looked like, against limits and against the first rounds.

    Attributes:
        gate_open: whether the next round may improve the policy.
        stop: why the run should end, or ``None``.
        ends: with which round, then: verl saves and validates in a last one.
    """

    def __init__(self, alarms: Alarms, gate: Gate, guard: Guard):
        self._alarms, self._gate, self._guard = alarms, gate, guard
        self._first: dict[str, list[float]] = {name: [] for name in ALARMS}
        self._last: dict[str, list[float]] = {name: [] for name in ALARMS}
        self._on: set[str] = set()
        self._closed = self._skipped = 0
        self.stop: str | None = None
        self.ends: int | None = None

    @property
    def gate_open(self) -> bool:
        """Whether the critic's AUROC over the last rounds, where it is known, reaches ``gate.min_auroc``."""
        recent = self._last["auroc"][-self._gate.window :]
        return self._gate.min_auroc is None or not recent or float(np.mean(recent)) >= self._gate.min_auroc

    def observe(self, number: int, metrics: dict[str, float]) -> dict[str, float]:
        """Look at round ``number``.

        Returns:
            ``tempo/alarm/<name>``, 0 or 1, ``tempo/gate_open``, and ``tempo/skipped_updates``: roles that skipped any.

        Raises:
            UserError: updates were skipped in too many rounds in a row.
        """
        found = self._skipped_updates(number, metrics)
        for name, (metric, meaning) in ALARMS.items():
            if metric in metrics:
                self._remember(name, float(metrics[metric]))  # numpy's numbers are not read back from a checkpoint
            limit = self._limit(name)
            if limit is None or not self._last[name]:
                continue
            value = float(np.mean(self._last[name][-self._alarms.window :]))
            on = value > limit if name in ("gap", "length") else value < limit
            found[f"tempo/alarm/{name}"] = float(on)
            if on and name not in self._on:
                logger.warning("round %d: %s (%s %.3g, limit %.3g)", number, meaning, metric, value, limit)
                if name in self._alarms.stop:
                    self.stop = f"alarm {name}: {meaning} ({metric} {value:.3g}, limit {limit:.3g})"
            self._on = self._on | {name} if on else self._on - {name}
        if self._gate.min_auroc is not None:
            found["tempo/gate_open"] = float(self.gate_open)
            self._closed = 0 if self.gate_open else self._closed + 1
            if self._closed > self._gate.max_closed:
                self.stop = (
                    f"the critic's AUROC stayed under tempo.calibration.gate.min_auroc={self._gate.min_auroc:g} for "
                    f"{self._closed} rounds of E-steps"
                )
        if self.stop is not None and self.ends is None:
            self.ends = number + 1
        return found

    def go_on(self, number: int) -> None:
        """A run that has ended before its time is to go on behind round ``number``: nothing stops it yet."""
        if self.ends is not None and number >= self.ends:
            self.stop = self.ends = None

    def _skipped_updates(self, number: int, metrics: dict[str, float]) -> dict[str, float]:
        """verl leaves out an update whose gradient is not finite, and says so in its log alone."""
        norms = {role: metrics[f"{role}/grad_norm"] for role in ROLES if f"{role}/grad_norm" in metrics}
        skipped = [role for role, norm in norms.items() if not np.isfinite(norm)]
        self._skipped = self._skipped + 1 if skipped else 0
        if skipped:
            logger.warning(
                "round %d: updates of the %s were skipped, the gradient was not finite",
                number,
                " and the ".join(skipped),
            )
        if self._skipped >= self._guard.max_skipped_rounds:
            raise UserError(
                f"the gradient of the {' and the '.join(skipped)} was not finite in {self._skipped} rounds in a row "
                "(tempo.guard.max_skipped_rounds), so updates were skipped; lower the learning rate, and go on from "
                "the last checkpoint"
            )
        return {"tempo/skipped_updates": float(len(skipped))} if norms else {}

    def _remember(self, name: str, value: float) -> None:
        if len(self._first[name]) < self._alarms.window:
            self._first[name].append(value)
        self._last[name] = [*self._last[name], value][-max(self._alarms.window, self._gate.window) :]

    def _limit(self, name: str) -> float | None:
        """The value beyond which the alarm is on; the last three are relative to the first rounds."""
        alarms, first = self._alarms, self._first[name]
        limit = {
            "auroc": alarms.min_auroc,
            "gap": alarms.max_gap,
            "entropy": alarms.min_entropy,
            "diversity": alarms.min_diversity,
            "length": alarms.max_length,
        }[name]
        if limit is None or name in ("auroc", "gap"):
            return limit
        return limit * float(np.mean(first)) if len(first) == alarms.window else None

    def state_dict(self) -> dict[str, Any]:
        """What has been seen."""
        return {
            "first": self._first,
            "last": self._last,
            "on": sorted(self._on),
            "closed": self._closed,
            "skipped": self._skipped,
            "stop": self.stop,
            "ends": self.ends,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self._first, self._last, self._on = state["first"], state["last"], set(state["on"])
        self._closed, self._skipped = state["closed"], state["skipped"]
        self.stop, self.ends = state["stop"], state["ends"]
