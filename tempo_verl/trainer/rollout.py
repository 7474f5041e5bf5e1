# SPDX-License-Identifier: Apache-2.0
"""The rollout of a round: both streams in one generation phase."""

from __future__ import annotations

import math

import numpy as np
from verl.utils.debug import marked_timer

from tempo_verl.config.ahead import OVERLAP, PARTIAL, streams_ahead, streams_of
from tempo_verl.data.streams import Streams
from tempo_verl.errors import UserError
from tempo_verl.methods import Method, Plan
from tempo_verl.trainer.batch import Samples
from tempo_verl.trainer.guard import check_groups
from tempo_verl.trainer.log import Log
from tempo_verl.trainer.metrics import prefixed, verifier_metrics
from tempo_verl.trainer.policy import actor_mini_batch
from tempo_verl.trainer.port import Port


class Rollout:
    """Draws responses to the next prompts of each stream.

    Args:
        streams: where the prompts come from.
    """

    def __init__(self, port: Port, method: Method, streams: Streams):
        self._port, self._method, self._streams = port, method, streams
        self._ahead: dict[str, set[str]] = {}  # stream -> uids of the next round's prompts, which are under way

    def draw(self, number: int, plan: Plan, log: Log, last: bool) -> tuple[Samples | None, Samples | None]:
        """Labelled and unlabelled responses of round ``number``, as far as the plan asks for them.

        The inference engine is filled once for both. Labelled rows come in whole mini-batches of the critic.

        Args:
            last: the run ends with the round.

        Raises:
            UserError: no rollout of a stream succeeded, too many failed, or the verifier did on too many responses.
        """
        under_way, self._ahead = self._ahead, {}
        submitted = {
            name: under_way.pop(name, None) or self._submit(name, number)
            for name in streams_of(plan)
            if getattr(self._streams, name) is not None
        }
        for name in submitted:
            log.metrics[f"tempo/{name}/epoch"] = getattr(self._streams, name).epoch
        assert not under_way, "nothing is submitted ahead that the next round might not need"
        ahead = self._method.settings.ahead
        next_ones = streams_ahead(self._method, self._port.config.trainer, number, last)
        if ahead.mode == PARTIAL:
            self._run_ahead(next_ones, number)
        parts = dict(zip(submitted, self._port.collect_in_round(number, log, *submitted.values()), strict=True))
        if ahead.mode == OVERLAP:
            self._run_ahead(next_ones, number)
        for name, samples in parts.items():
            if name in ahead.streams:
                log.metrics.update(prefixed(f"tempo/{name}", staleness(samples, number)))
            if len(samples) == 0:
                why = self._port.rollout_error()
                raise UserError(f"no {name} rollout of round {number} succeeded{why}; see the agent loop's log")
            guard = self._method.settings.guard
            log.metrics.update(check_groups(name, samples, len(submitted[name]), self._responses(name), guard))
            self._check_verifier(name, samples, number, log)
        if "labeled" in parts:
            multiple, readers = self._labeled_multiple()
            parts["labeled"] = self._port.balanced(parts["labeled"], multiple, log, "labeled_seqlen", *readers)
        return parts.get("labeled"), parts.get("unlabeled")

    def settle(self, seconds: dict[str, float]) -> None:
        """Before the engine gets other weights: wait for what is drawn ahead, unless that was interrupted.

        Args:
            seconds: gets the time of it, as ``ahead``.
        """
        if self._ahead and self._method.settings.ahead.mode == OVERLAP:
            with marked_timer("ahead", seconds):
                self._port.wait(set().union(*self._ahead.values()))

    def _run_ahead(self, streams: list[str], number: int) -> None:
        self._ahead = {name: self._submit(name, number) for name in streams}

    def _submit(self, name: str, number: int) -> set[str]:
        return self._port.submit(getattr(self._streams, name).next_batch(), number, self._responses(name))

    def _responses(self, name: str) -> int:
        """Responses that a prompt of a stream is asked for."""
        if name == "labeled":
            return self._method.settings.labeled.n
        n = self._method.responses()
        return self._port.config.actor_rollout_ref.rollout.n if n is None else n

    def _labeled_multiple(self) -> tuple[int, list[str]]:
        """Labelled rows come in whole updates of whatever learns from them. Returns how many that are, and what."""
        settings, readers = self._method.settings, {}
        if self._port.has_critic:
            readers["critic"] = settings.calibration.mini_batch_size * settings.labeled.n
        if not self._method.needs.unlabeled:
            readers["policy"] = actor_mini_batch(self._port.config)
        return math.lcm(*readers.values()), list(readers)

    def _check_verifier(self, name: str, samples: Samples, number: int, log: Log) -> None:
        """Failed checks count as wrong; above the limit the run stops, because then the verifier is broken."""
        errors = [info.get("verifier_error", "") for info in samples.by_session().reward_info]
        log.metrics.update(prefixed(f"tempo/{name}", verifier_metrics(errors)))
        failed = [error for error in errors if error]
        limit = self._method.settings.verifier.max_error_share
        if len(failed) > limit * len(errors):
            raise UserError(
                f"{len(failed)} of {len(errors)} {name} responses of round {number} got no verdict, more "
                f"than tempo.verifier.max_error_share={limit:g} allows (first: {failed[0]}); repair the verifier, or "
                "raise tempo.verifier.timeout or the limit"
            )


def staleness(samples: Samples, number: int) -> dict[str, float]:
    """How far the rollouts of round ``number`` lag behind the policy that it improves.

    Returns:
        ``staleness``, policy versions, the mean over rows of when each was begun; ``interrupted``, the share of rows
        that an update has interrupted. Empty if the agent loop does not tell the versions.
    """
    versions = [(tag.get("min_global_steps"), tag.get("max_global_steps")) for tag in samples.meta.tags]
    known = np.array([pair for pair in versions if None not in pair], dtype=float).reshape(-1, 2)
    if not len(known):
        return {}
    first, end = known.T
    return {"staleness": float(np.mean(number - 1 - first)), "interrupted": float(np.mean(first != end))}
