# SPDX-License-Identifier: Apache-2.0
"""What a method is. A method says what the policy is rewarded for; the trainer gives it a :class:`Round` to work on.

One method is one file: a subclass of :class:`Method` that declares what it needs and has one :meth:`Method.step`. It
imports torch, ``tempo_verl.algo`` and ``tempo_verl.rewards``, never verl or ray.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from tempo_verl.algo.advantage import advantage, clip_values, final_value, group_advantage
from tempo_verl.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from tempo_verl.config.schema import TempoSettings


@dataclass(frozen=True)
class Needs:
    """What a method works with. None: it can use it, and does without.

    Attributes:
        labeled: labelled questions, ``tempo.labeled.files``.
        unlabeled: unlabelled questions. False: the policy learns on the labelled ones.
        critic: a critic, ``critic.enable``.
    """

    labeled: bool | None
    unlabeled: bool
    critic: bool | None


class Options(BaseModel):
    """Options of one method, under ``tempo.<name of the method>``. A subclass lists typed fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Plan:
    """What one round does.

    Attributes:
        label: roll out D_L: to fit the critic, to measure a frozen one, or to train the policy on.
        improve: update the policy.
    """

    label: bool
    improve: bool


class Samples(Protocol):
    """Rollouts of one stream, in a fixed row order: B rows, of T_i tokens.

    Tensors with a number for each token are jagged, (B, T_i): rows of their own lengths, without padding. All functions
    of ``tempo_verl.algo`` take them; ``tempo_verl.algo.jagged`` has what else there is to do with them.

    A row is one output of an agent-loop session. Most sessions have one; a loop of several turns may have more. A
    session is one response: it has one answer, one verdict and one reward, those of its last output.

    The trainer may have added synthetic rows, which make a batch divisible: ``real`` is False there, their mask is 0.
    """

    def __len__(self) -> int: ...

    @property
    def real(self) -> np.ndarray:
        """(B,) bool, False on synthetic rows."""

    @property
    def prompts(self) -> list[str]:
        """(B,) the uid of each row's prompt; responses to one prompt share it."""

    @property
    def questions(self) -> list[int]:
        """(B,) the row of each prompt's question in its file: the same whenever it is drawn."""

    @property
    def sessions(self) -> list[str]:
        """(B,) the session of each row; the outputs of one session share it."""

    @property
    def ends(self) -> np.ndarray:
        """(B,) bool, True on the last output of each session: one row for each response, and no synthetic one."""

    @property
    def response_mask(self) -> Tensor:
        """Jagged (B, T_i) bool, True on the policy's own tokens."""

    @property
    def verdicts(self) -> Tensor:
        """(B,) float, the verifier's c(x, y) in {0, 1} of each row's session.

        Raises ``KeyError`` for rows that came without an answer.
        """

    @property
    def answers(self) -> list[str | None]:
        """(B,) what each row's session answers, None if nothing was found.

        Answers to one prompt that say the same are spelled alike (``tempo_verl.rewards.groups``).
        """

    @property
    def styles(self) -> list[str]:
        """(B,) the verifier of each row."""

    def rows(self, indices: np.ndarray) -> Samples:
        """Some of the rows, in the order of ``indices``."""

    def by_session(self) -> Samples:
        """One row for each session, its last output. Votes are counted on these."""

    def find(self, part: Samples) -> np.ndarray:
        """Positions of the rows whose session is in ``part`` as well, in ascending order."""

    def align(self, part: Samples, values: Tensor) -> Tensor:
        """(B,) ``values``, one for each row of ``part``, at the rows of the same sessions here; 0 on other rows.

        Of a session with several outputs in ``part``, the value of the last one.
        """

    def write(self, **fields: Tensor) -> None:
        """Store fields for the workers, (B, ...) or jagged, as they are; bool masks of tokens as int64."""


class Critic(Protocol):
    """The critic V(x, y_1:t), as an estimate of P(right)."""

    def values(self, samples: Samples) -> Tensor:
        """Jagged (B, T_i + 1) float32 V(x, y_1:t), t = 0..T, of the critic as it is now."""

    def measure(self, samples: Samples) -> Tensor:
        """Values as above. How well they agree with the verdicts of labelled ``samples`` is logged."""

    def fit(self, samples: Samples, target: Tensor, weight: Tensor | None = None) -> None:
        """Minimise the mean squared error between every V(x, y_1:t), t = 0..T, and ``target`` (B,).

        Args:
            weight: (B,) of each response in that mean; None: all alike.
        """

    def train(self, samples: Samples) -> None:
        """Updates by the method's ``critic_loss``, on the fields that were written for it."""


class Policy(Protocol):
    """The policy, and its update by verl."""

    def batch(self, *parts: Samples) -> Samples:
        """All parts as one batch of whole mini-batches on every rank."""

    def penalties(self, samples: Samples) -> Tensor:
        """(B,) ``tempo.shaping``, 0 or below. For the policy alone: no accuracy and no critic learns of them."""

    def store(self, samples: Samples, reward: Tensor, advantages: Tensor, values: Tensor | None) -> None:
        """Write reward (B,), advantages (B, T_i), values (B, T_i + 1) where verl's losses and metrics read them."""

    def update(self, samples: Samples) -> None:
        """verl's policy update on what is stored: old and reference log-probabilities, then the actor."""


class Log(Protocol):
    """What a round tells."""

    metrics: dict[str, float]  # by full name, tempo/...

    def time(self, phase: str) -> AbstractContextManager[None]:
        """Count the seconds within as those of ``phase``."""


@dataclass(frozen=True)
class Round:
    """One round, as a method sees it. No answer of an unlabelled question is in reach of it.

    Attributes:
        number: counted from 1.
        plan: what the round does.
        labeled: rollouts on D_L, if the plan asked for them and there is a D_L.
        unlabeled: rollouts on D_U, if the method uses it and the plan asks for an update.
        critic: None in a run without one.
    """

    number: int
    plan: Plan
    labeled: Samples | None
    unlabeled: Samples | None
    critic: Critic | None
    policy: Policy
    log: Log


@dataclass(frozen=True)
class Trained:
    """What a round has done.

    Attributes:
        samples: the rows that were trained on; verl logs their metrics.
        unlabeled: (N,) positions of the real unlabelled rows in them; None if the policy did not learn on D_U.
        reward: (B,) R of each row's session, without penalties.
        advantages: jagged (B, T_i).
        values: jagged (B, T_i + 1); None without a critic.
    """

    samples: Samples
    unlabeled: np.ndarray | None = None
    reward: Tensor | None = None
    advantages: Tensor | None = None
    values: Tensor | None = None


class Method(ABC):
    """One way to train at test time.

    Args:
        settings: the checked ``tempo`` section.

    Attributes:
        name: in ``method=NAME``; its options are under ``tempo.NAME``.
        title: one sentence for reports: what the policy learns from.
        row: for the table of methods: what it is rewarded for, its advantage, its critic.
        needs: streams and critic.
        Options: its own options; none by default.
        fits_critic: it has an E-step, which calls ``round.critic.fit``.
        has_gate: its reward is a critic's value that D_L can measure, so ``tempo.calibration.gate`` applies.
        every_round: D_L is rolled out in every round, whatever ``tempo.calibration.interval`` says.
        reads_answers: it trains on answers of D_U: an upper bound, which has to be allowed.
        mixes_streams: labelled rows are in the policy's batch, too, whatever ``tempo.actor_on_labeled`` says.
        labels_by_vote: a reward of 1 marks the answer it takes for the truth, so monitoring tells how often it is.
        reward_range: lowest and highest reward there can be, values and penalties aside; others end the run. None: any.
        critic_loss: how ``round.critic.train`` trains, a name in ``tempo_verl.trainer.losses.LOSSES``.
        memory: what it remembers from round to round, with ``state_dict`` and ``load_state_dict``: checkpoints hold it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    row: ClassVar[tuple[str, str, str]] = ("", "", "")
    needs: ClassVar[Needs]
    Options: ClassVar[type[Options]] = Options
    fits_critic: ClassVar[bool] = False
    has_gate: ClassVar[bool] = False
    every_round: ClassVar[bool] = False
    reads_answers: ClassVar[bool] = False
    mixes_streams: ClassVar[bool] = False
    labels_by_vote: ClassVar[bool] = False
    reward_range: ClassVar[tuple[float, float] | None] = (0.0, 1.0)
    critic_loss: ClassVar[str] = "calibration"
    memory: Any = None

    def __init__(self, settings: TempoSettings, options: Any = None):
        self.settings, self.options = settings, options

    @abstractmethod
    def step(self, round: Round) -> Trained:
        """One round: rollouts are there, the policy is to be better for it."""

    def check(self, config: DictConfig) -> None:  # noqa: B027  (a method may have nothing to check)
        """Find mistakes in the whole configuration that only this method knows of.

        Raises:
            UserError: in one line.
        """

    # ------------------------------------------------------------------ what most methods share

    def draws_labeled(self, critic: bool) -> bool:
        """Whether D_L, where it is named, is drawn: a critic or the policy learns on it.

        Args:
            critic: ``critic.enable``.
        """
        return critic or self.settings.actor_on_labeled or self.mixes_streams or not self.needs.unlabeled

    @classmethod
    def learns_on(cls) -> str:
        """The stream whose samples train the policy: ``labeled`` or ``unlabeled``."""
        return "unlabeled" if cls.needs.unlabeled else "labeled"

    def plan(self, number: int, gate_open: bool = True) -> Plan:
        """The schedule: D_L every ``calibration.interval`` rounds (0: never), an update after ``warmup_rounds``.

        Args:
            number: of the round, counted from 1.
            gate_open: False turns the update into another E-step.
        """
        calibration = self.settings.calibration
        warming_up = number <= calibration.warmup_rounds
        due = self.every_round or (calibration.interval > 0 and (number - 1) % calibration.interval == 0)
        return Plan(label=due or warming_up or not gate_open, improve=gate_open and not warming_up)

    def responses(self) -> int | None:
        """Responses to an unlabelled prompt; None: ``actor_rollout_ref.rollout.n``."""
        return None

    def probability(self, values: Tensor, response_mask: Tensor) -> Tensor:
        """(B,) the critic's P(right) of whole responses.

        Args:
            values: (B, T_i + 1).
            response_mask: (B, T_i).
        """
        return final_value(values, response_mask, self.settings.final_value)

    def advantages(self, samples: Samples, reward: Tensor, values: Tensor | None) -> Tensor:
        """(B, T_i) A_t = R - V(x, y_1:t-1), or R against the other responses to the prompt (``tempo.advantage``).

        Args:
            reward: (B,) R.
            values: (B, T_i + 1); None without a critic.
        """
        if self.settings.advantage == "group":
            return group_advantage(reward, samples.prompts, samples.response_mask, samples.sessions)
        assert values is not None, "the checks refuse tempo.advantage=baseline without a critic"
        return advantage(values, reward, samples.response_mask, whiten_advantage=self.settings.whiten)

    def values(self, round: Round, samples: Samples) -> Tensor | None:
        """(B, T_i + 1) the critic's values in ``tempo.value_range``; None without a critic."""
        return None if round.critic is None else clip_values(round.critic.values(samples), self.settings.value_range)

    def final_value(self, samples: Samples, values: Tensor) -> Tensor:
        """(B,) V(x, y_1:T) at the end of each row's session (``tempo.final_value``); 0 on synthetic rows.

        Args:
            values: (B, T_i + 1).
        """
        return samples.align(samples, final_value(values, samples.response_mask, self.settings.final_value))

    def batch(self, round: Round, unlabeled: Samples) -> tuple[Samples, Samples | None]:
        """What the policy learns on: ``unlabeled``, and with ``tempo.actor_on_labeled`` the round's labelled rows too.

        Returns:
            the batch, and of it the labelled part.
        """
        if round.labeled is None or not self.settings.actor_on_labeled:
            return round.policy.batch(unlabeled), None
        guided = round.labeled.rows(np.flatnonzero(round.labeled.real))
        return round.policy.batch(unlabeled, guided), guided

    def improve(
        self, round: Round, samples: Samples, reward: Tensor, values: Tensor | None, guided: Samples | None = None
    ) -> Trained:
        """The M-step: penalties, advantages, policy update.

        Args:
            samples: from :meth:`batch`.
            reward: (B,) R of the unlabelled rows.
            values: (B, T_i + 1); None without a critic.
            guided: the labelled part of the batch, whose reward is its verdicts.
        """
        unlabeled = np.flatnonzero(samples.real)
        if guided is not None:
            labeled = samples.find(guided)
            reward = reward.clone()
            reward[labeled] = samples.align(guided, guided.verdicts)[labeled]
            unlabeled = np.setdiff1d(unlabeled, labeled)
        advantages = self.learn(round, samples, reward, values)
        return Trained(samples, unlabeled, reward, advantages, values)

    def learn(self, round: Round, samples: Samples, reward: Tensor, values: Tensor | None) -> Tensor:
        """Update the policy on ``samples`` unless the plan says otherwise. Returns the (B, T_i) advantages."""
        shaped = reward + round.policy.penalties(samples)
        advantages = self.advantages(samples, shaped, values)
        round.policy.store(samples, shaped, advantages, values)
        if round.plan.improve:
            round.policy.update(samples)
        return advantages

    def calibrated_only(self, round: Round, samples: Samples, values: Tensor) -> Trained:
        """The end of a round of E-steps alone: verl's metrics tell of ``values``, those before the fit."""
        reward = samples.verdicts
        round.policy.store(samples, reward, self.advantages(samples, reward, values), values)
        return Trained(samples)


def refuse(condition: Any, message: str) -> None:
    """Raise ``UserError(message)`` if the condition holds."""
    if condition:
        raise UserError(message)


__all__ = [
    "Critic", "Log", "Method", "Needs", "Options", "Plan", "Policy", "Round", "Samples", "Trained", "refuse",
]  # fmt: skip
