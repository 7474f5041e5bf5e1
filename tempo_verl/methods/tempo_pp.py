# SPDX-License-Identifier: Apache-2.0
"""Prediction-powered TEMPO: labelled rollouts tell the policy where the critic was wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from tempo_verl.algo.advantage import clip_values
from tempo_verl.algo.estimate import calibration_slope, fitted_probability
from tempo_verl.algo.residual import lowest_value, residual_advantage
from tempo_verl.algo.self_reward import cluster_reward
from tempo_verl.methods.base import Method, Needs, Options, Round, Samples, Trained, refuse

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

Factor = Annotated[float, Field(ge=0)]


class TempoPPOptions(Options):
    """See ``config/method/tempo_pp.yaml``."""

    weight: Factor
    verdict: Factor
    fit: Literal["first", "last"]
    residual: Literal["before_fit", "after_fit"]
    whitening: Literal["apart", "joint"]
    reward: Literal["final", "lowest", "corrected", "fused"]
    tuned: bool
    positive: Factor
    false_positives: Factor


@dataclass(frozen=True)
class Labels:
    """What labelled sessions say: c (S,), the critic's belief in them (S,), and how far it is to be trusted."""

    sessions: Samples
    correct: Tensor
    believed: Tensor
    trust: float


class TempoPP(Method):
    """TEMPO whose policy also learns from the critic's errors on D_L (arXiv 2301.09633, 2604.19295).

    TEMPO's reward on D_U is what the critic believes, so the policy learns to deceive it. Here the labelled rollouts of
    the E-step enter the policy's loss too, rewarded with the residual c(x, y) - V(x, y_1:T): a response that deceives
    the critic is pushed away, one that it underrates is pulled, and where it is right nothing happens. V is that of
    before the E-step, as the critic has seen these very responses after it.
    """

    name = "tempo_pp"
    title = "the policy learns on unlabelled questions D_U, rewarded by the critic, and on D_L from the critic's errors"
    row = (
        "V(x, y_1:T) after the E-step; on D_L the residual c(x, y) - V(x, y_1:T) before it",
        "R - V(x, y_1:t-1), whitened; the residual itself on D_L",
        "refitted every `calibration.interval` rounds",
    )
    needs = Needs(labeled=True, unlabeled=True, critic=True)
    Options = TempoPPOptions
    fits_critic = True
    has_gate = True
    mixes_streams = True
    reward_range = (-1.0, 1.0)

    def step(self, round: Round) -> Trained:
        values = None
        if round.labeled is not None:
            with round.log.time("e_step"):
                values = before = round.critic.measure(round.labeled)
                if self.options.fit == "first":
                    self._fit(round, before)
                if self.options.residual == "after_fit":
                    values = round.critic.values(round.labeled)
        if round.plan.improve:
            with round.log.time("m_step"):
                trained = self._improve(round, values)
        else:
            trained = self.calibrated_only(round, round.labeled, before)
        if round.labeled is not None and self.options.fit == "last":
            with round.log.time("e_step"):
                self._fit(round, before)
        return trained

    def _fit(self, round: Round, before: Tensor) -> None:
        """The E-step. ``false_positives`` weighs a wrong response by how right the critic thought it."""
        labeled, weight = round.labeled, None
        if self.options.false_positives:
            believed = self.final_value(labeled, clip_values(before, (0.0, 1.0)))
            weight = 1 + self.options.false_positives * believed * (1 - labeled.verdicts)
        round.critic.fit(labeled, labeled.verdicts, weight)

    def _improve(self, round: Round, of_labeled: Tensor | None) -> Trained:
        """The M-step on both streams; on D_U alone where D_L is not there, or has no weight.

        A labelled row has the reward c - k R and the baseline (1 - k) V(x, y_1:t-1): its residual where k is 1, the
        verdict itself where k is 0.

        Args:
            of_labeled: (B, T_i + 1) values of the labelled rows.
        """
        options, settings = self.options, self.settings
        weight = options.weight + options.verdict
        labeled = None if round.labeled is None else round.labeled.rows(np.flatnonzero(round.labeled.real))
        parts = [labeled] if labeled is not None and weight else []
        samples = round.policy.batch(round.unlabeled, *parts)
        values, unlabeled = self.values(round, samples), round.unlabeled.by_session()
        believed, labels = self._beliefs(round, unlabeled, samples, values, of_labeled)
        reward, penalties = samples.align(unlabeled, believed), round.policy.penalties(samples)
        is_labeled, residual = np.zeros(len(samples), dtype=bool), 0.0
        for part in parts:
            is_labeled[samples.find(part)] = True
            residual = labels.trust * options.weight / weight
            reward = reward + samples.align(labels.sessions, labels.correct - residual * labels.believed)
            # a penalty goes with a verdict; a residual is of the critic alone
            penalties = torch.where(torch.from_numpy(is_labeled), options.verdict / weight * penalties, penalties)
            weight *= len(unlabeled) / len(labels.sessions)
        advantages = residual_advantage(
            values,
            reward + penalties,
            samples.response_mask,
            is_labeled,
            weight=weight,
            labeled_baseline=1 - residual,
            trust=1.0 if labels is None else labels.trust,
            positive=options.positive,
            whitening=options.whitening if settings.whiten else "off",
        )
        round.policy.store(samples, reward + penalties, advantages, values)
        round.policy.update(samples)
        return Trained(samples, np.flatnonzero(samples.real & ~is_labeled), reward, advantages, values)

    def _beliefs(
        self, round: Round, unlabeled: Samples, samples: Samples, values: Tensor, of_labeled: Tensor | None
    ) -> tuple[Tensor, Labels | None]:
        """(S,) R of the ``unlabeled`` sessions, in [0, 1] as all values; and what the labelled ones say of it.

        Args:
            samples, values: rows that hold the unlabelled ones, and their (B, T_i + 1) values.
            of_labeled: (B, T_i + 1) values of the labelled rows.
        """
        asked = self._features(unlabeled, samples, values)
        if round.labeled is None:
            return torch.from_numpy(asked[:, 0]), None
        sessions = round.labeled.by_session()
        known = self._features(sessions, round.labeled, clip_values(of_labeled, self.settings.value_range))
        correct = sessions.verdicts
        if self.options.reward in ("corrected", "fused"):
            fitted = fitted_probability(known, correct.numpy(), np.vstack([asked, known]))
            if fitted is not None:
                asked, known = np.split(fitted.astype(np.float32)[:, None], [len(asked)])
        slope = calibration_slope(known[:, 0], correct.numpy())
        round.log.metrics["tempo/labeled/residual"] = float((correct.numpy() - known[:, 0]).mean())
        if slope is not None:
            round.log.metrics["tempo/labeled/slope"] = slope
        trust = slope if self.options.tuned and slope is not None else 1.0
        return torch.from_numpy(asked[:, 0]), Labels(sessions, correct, torch.from_numpy(known[:, 0]), trust)

    def _features(self, sessions: Samples, samples: Samples, values: Tensor) -> npt.NDArray[np.float32]:
        """(S, 1) the critic's belief in each session; with ``reward=fused`` also its share of the votes, (S, 2)."""
        if self.options.reward == "lowest":
            believed = samples.align(samples, lowest_value(values, samples.response_mask))
        else:
            believed = self.final_value(samples, values)
        columns = [sessions.align(samples, believed).numpy()]
        if self.options.reward == "fused":
            columns.append(cluster_reward(sessions.answers, sessions.prompts)[0])
        return np.column_stack(columns).astype(np.float32)

    def check(self, config: DictConfig) -> None:
        refuse(
            self.settings.advantage != "baseline",
            f"tempo.advantage={self.settings.advantage} has no place in method=tempo_pp: a residual has no group; set "
            "tempo.advantage=baseline",
        )
        refuse(
            self.options.fit == "last" and self.options.residual == "after_fit",
            "tempo.tempo_pp.residual=after_fit needs tempo.tempo_pp.fit=first; with fit=last nothing is fitted before",
        )
