# SPDX-License-Identifier: Apache-2.0
"""Rollouts ahead of their round (``tempo.ahead``): after which rounds there are any, and where they can be had."""

from __future__ import annotations

from omegaconf import DictConfig

from tempo_verl.errors import UserError
from tempo_verl.methods import Method, Plan

PARTIAL, OVERLAP = "partial", "overlap"
BATCHED = "tempo_verl.backends.batch_rollout.BatchRolloutManager"


def streams_of(plan: Plan) -> list[str]:
    """The streams that a round rolls out, in the order in which they are submitted."""
    return [name for name, drawn in (("labeled", plan.label), ("unlabeled", plan.improve)) if drawn]


def streams_ahead(method: Method, trainer: DictConfig, number: int, last: bool) -> list[str]:
    """The streams whose prompts for round ``number + 1`` are rolled out in round ``number``.

    None where verl saves or validates in between, or the run ends: a checkpoint need not hold what is under way, a
    resumed run draws what the run has drawn, and a validation has the inference engine for itself. And no stream that
    the next round might not need.

    Args:
        trainer: verl's section.
        last: the run ends with the round.
    """
    ahead = method.settings.ahead.streams
    if not ahead or last or any(every > 0 and number % every == 0 for every in (trainer.save_freq, trainer.test_freq)):
        return []
    gate = (True,) if method.settings.calibration.gate.min_auroc is None else (True, False)
    needed = [streams_of(method.plan(number + 1, is_open)) for is_open in gate]
    return [name for name in ahead if all(name in streams for streams in needed)]


def check_ahead(config: DictConfig, method: Method) -> None:
    """See that what is asked for is there, and that the inference engine can do it.

    Raises:
        UserError: not.
    """
    settings, rollout, field = method.settings, config.actor_rollout_ref.rollout, "tempo.ahead"
    if not settings.ahead.streams:
        return
    mode = f"{field}.mode={settings.ahead.mode}"
    if settings.ahead.mode == OVERLAP and rollout.name != "transformers":
        raise UserError(
            f"{mode}: the engine of actor_rollout_ref.rollout.name={rollout.name} shares its devices with training, "
            f"and sleeps meanwhile; set it to {PARTIAL}"
        )
    if settings.ahead.mode == PARTIAL and rollout.agent.get("agent_loop_manager_class") == BATCHED:
        raise UserError(
            f"{mode}: batched rollouts are not interrupted; set it to {OVERLAP}, or "
            "actor_rollout_ref.rollout.agent.agent_loop_manager_class=null"
        )
    there = {
        "labeled": bool(settings.labeled.files) and method.draws_labeled(config.critic.enable),
        "unlabeled": method.needs.unlabeled,
    }
    for name in settings.ahead.streams:
        if not there[name]:
            raise UserError(f"{field}.streams: this run draws no {name} prompts; leave {name} out")
        rounds = range(1, settings.rounds)
        if not any(name in streams_ahead(method, config.trainer, number, last=False) for number in rounds):
            raise UserError(
                f"{field}.streams: no round draws {name} prompts ahead. It would have to be sure that the next round "
                "needs them (warm-up, interval and gate of tempo.calibration), with no checkpoint or validation in "
                f"between (trainer.save_freq={config.trainer.save_freq}, trainer.test_freq={config.trainer.test_freq}"
                f"); change these, or leave {name} out"
            )
