# SPDX-License-Identifier: Apache-2.0
"""Responses, tokens and FLOPs of each phase of a round, averaged over the run's rounds with the gate open."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig

from tempo_verl.config.layout import roles
from tempo_verl.methods import Method
from tempo_verl.planning.architecture import Architecture


@dataclass(frozen=True)
class Streams:
    """Which stream goes through a phase, and how often: ``L`` labelled, ``U`` unlabelled.

    Attributes:
        generated: rolled out.
        read: the policy computes old log-probabilities.
        trained: the policy is trained (M-step).
        values: the critic computes values.
        fitted: the critic is trained (E-step).
    """

    generated: str
    read: str
    trained: str
    values: str = ""
    fitted: str = ""


METHODS = {
    "tempo": Streams("LU", "U", "U", "LU", "L"),
    "empo": Streams("U", "U", "U"),
    "frozen_critic": Streams("U", "U", "U", "U"),
    "grpo": Streams("L", "L", "L"),
    "official": Streams("LU", "LU", "LU", "LUU", "LU"),
    "oracle": Streams("LU", "U", "U", "LU", "L"),
    "ppo": Streams("L", "L", "L", "L", "L"),
    "random_reward": Streams("U", "U", "U"),
    "tempo_pp": Streams("LU", "LU", "LU", "LLU", "L"),
    "trapo": Streams("LU", "LU", "LU"),
    "ttrl": Streams("U", "U", "U"),
}


@dataclass(frozen=True)
class Phase:
    """A part of a round. ``flops`` is 0 for the rollout, which is bound by memory bandwidth.

    ``tokens``: generated ones of the rollout, of prompts and responses elsewhere; with passes counted.
    """

    name: str
    responses: float
    tokens: float
    flops: float


def streams(method: Method) -> Streams:
    """Of a method; of one's own, what its needs say: labels fit a critic, the policy learns on one stream."""
    if method.name in METHODS:
        return METHODS[method.name]
    learns = "L" if method.learns_on() == "labeled" else "U"
    both = "LU" if learns == "U" and (method.needs.labeled or method.fits_critic) else learns
    return Streams(both, learns, learns, both, "L" if method.fits_critic else "")


def phases(
    config: DictConfig, method: Method, actor: Architecture, critic: Architecture, prompt: float, response: float
) -> list[Phase]:
    """The phases of a mean round, in their order.

    Args:
        prompt: mean tokens of a prompt.
        response: mean tokens of a response.
    """
    settings, of = method.settings, streams(method)
    n = config.actor_rollout_ref.rollout.n
    plans = [method.plan(number) for number in range(1, settings.rounds + 1)]
    improved = sum(plan.improve for plan in plans) / len(plans)
    labeled = 1.0 if "U" not in of.generated else sum(plan.label for plan in plans) / len(plans)
    fewer = getattr(method.options, "n_train", n)
    rows = {"L": settings.labeled.batch_size * settings.labeled.n, "U": settings.unlabeled.batch_size * fewer}
    drawn = rows | {"U": settings.unlabeled.batch_size * (method.responses() or n)}
    share = {"L": labeled, "U": improved}
    length = round(prompt + response)

    def count(letters: str, of_stream: dict[str, int]) -> float:
        return sum(of_stream[letter] * share[letter] for letter in letters)

    trained = count(of.trained, rows)
    if "U" not in of.trained:
        trained *= improved  # stage 0 with warm-up rounds

    def passes(name: str, model: Architecture, head: int, responses: float, factor: int) -> Phase:
        tokens = responses * length
        return Phase(name, responses, tokens, factor * model.forward_flops(tokens, length, head))

    generated = count(of.generated, drawn)
    vocabulary, epochs = actor.vocabulary, config.actor_rollout_ref.actor.ppo_epochs
    found = [Phase("rollout", generated, generated * response, 0.0)]
    if not config.algorithm.rollout_correction.bypass_mode:
        found.append(passes("log-probabilities", actor, vocabulary, count(of.read, rows), 1))
    if "reference" in roles(config):
        found.append(passes("reference", actor, vocabulary, count(of.trained, rows), 1))
    if config.critic.enable and of.values:
        found.append(passes("values", critic, 1, count(of.values, rows), 1))
    if config.critic.enable and of.fitted:
        replayed = settings.calibration.replay.prompts * settings.labeled.n * labeled
        fitted = (count(of.fitted, rows) + replayed) * settings.calibration.epochs
        found.append(passes("E-step (critic)", critic, 1, fitted, 3))
    found.append(passes("M-step (policy)", actor, vocabulary, trained * epochs, 3))
    return found
