# SPDX-License-Identifier: Apache-2.0
"""The rollout of a round: both streams in one generation phase."""

from __future__ import annotations

import math

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

    def draw(self, number: int, plan: Plan, log: Log) -> tuple[Samples | None, Samples | None]:
        """Labelled and unlabelled responses of round ``number``, as far as the plan asks for them.

        The inference engine is filled once for both. Labelled rows come in whole mini-batches of the critic.

        Raises:
            UserError: no rollout of a stream succeeded, too many failed, or the verifier did on too many responses.
        """
        labeled, unlabeled = self._streams.labeled, self._streams.unlabeled
        submitted, asked = {}, {"labeled": self._method.settings.labeled.n}
        if plan.label and labeled is not None:
            submitted["labeled"] = self._port.submit(labeled.next_batch(), number, asked["labeled"])
        if plan.improve and unlabeled is not None:
            n = self._method.responses()
            asked["unlabeled"] = self._port.config.actor_rollout_ref.rollout.n if n is None else n
            submitted["unlabeled"] = self._port.submit(unlabeled.next_batch(), number, n)
        parts = dict(zip(submitted, self._port.collect_in_round(number, log, *submitted.values()), strict=True))
        for name, samples in parts.items():
            log.metrics[f"tempo/{name}/epoch"] = getattr(self._streams, name).epoch
            if len(samples) == 0:
                why = self._port.rollout_error()
                raise UserError(f"no {name} rollout of round {number} succeeded{why}; see the agent loop's log")
            guard = self._method.settings.guard
            log.metrics.update(check_groups(name, samples, len(submitted[name]), asked[name], guard))
            self._check_verifier(name, samples, number, log)
        if "labeled" in parts:
            multiple, readers = self._labeled_multiple()
            parts["labeled"] = self._port.balanced(parts["labeled"], multiple, log, "labeled_seqlen", *readers)
        return parts.get("labeled"), parts.get("unlabeled")

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
