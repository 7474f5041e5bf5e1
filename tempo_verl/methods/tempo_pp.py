# SPDX-License-Identifier: Apache-2.0
"""Prediction-powered TEMPO: labelled rollouts tell the policy where the critic was wrong."""

from __future__ import annotations

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
    fit: Literal["first", "last"]
    residual: Literal["before_fit", "after_fit"]
    whitening: Literal["apart", "joint"]
    reward: Literal["final", "lowest", "corrected", "fused"]
    tuned: bool
    positive: Factor
    false_positives: Factor


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
        """The M-step on both streams; on D_U alone where D_L is not there, or its residuals have no weight.

        Args:
            of_labeled: (B, T_i + 1) values of the labelled rows.
        """
        options, settings, unlabeled = self.options, self.settings, round.unlabeled.by_session()
        labeled = None if round.labeled is None else round.labeled.by_session()
        learnt = labeled if options.weight else None
        parts = [] if learnt is None else [round.labeled.rows(np.flatnonzero(round.labeled.real))]
        samples = round.policy.batch(round.unlabeled, *parts)
        values = self.values(round, samples)
        asked, known, trust = self._features(unlabeled, samples, values), None, 1.0
        if labeled is not None:
            known = self._features(labeled, round.labeled, clip_values(of_labeled, settings.value_range))
            correct = labeled.verdicts.numpy()
            if options.reward in ("corrected", "fused"):
                asked, known = _fitted(asked, known, correct)
            slope = calibration_slope(known[:, 0], correct)
            trust = slope if options.tuned and slope is not None else 1.0
            round.log.metrics["tempo/labeled/residual"] = float((correct - known[:, 0]).mean())
            if slope is not None:
                round.log.metrics["tempo/labeled/slope"] = slope
        reward, penalties = samples.align(unlabeled, torch.from_numpy(asked[:, 0])), round.policy.penalties(samples)
        is_labeled, weight, baseline = np.zeros(len(samples), dtype=bool), options.weight, 1 - trust
        if learnt is not None:
            is_labeled[samples.find(learnt)] = True
            residual = correct if settings.actor_on_labeled else correct - trust * known[:, 0]
            reward = reward + samples.align(learnt, torch.from_numpy(residual))
            penalties = penalties.masked_fill(torch.from_numpy(is_labeled), 0)
            weight *= len(unlabeled) / len(learnt)
            baseline = 1.0 if settings.actor_on_labeled else baseline
        advantages = residual_advantage(
            values,
            reward + penalties,
            samples.response_mask,
            is_labeled,
            weight=weight,
            trust=trust,
            positive=options.positive,
            labeled_baseline=baseline,
            whitening=options.whitening if settings.whiten else "off",
        )
        round.policy.store(samples, reward + penalties, advantages, values)
        round.policy.update(samples)
        return Trained(samples, np.flatnonzero(samples.real & ~is_labeled), reward, advantages, values)

    def _features(self, sessions: Samples, samples: Samples, values: Tensor) -> npt.NDArray[np.float64]:
        """(S, 1) the critic's belief in each response; with ``reward=fused`` also its share of the votes, (S, 2).

        Args:
            sessions: S rows, one for each response.
            samples: these rows and others.
            values: (B, T_i + 1) of ``samples``.
        """
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


def _fitted(asked: npt.NDArray, known: npt.NDArray, correct: npt.NDArray) -> tuple[npt.NDArray, npt.NDArray]:
    """Features of both streams with P(right) in place of the belief; as they are where labels say too little."""
    fitted = fitted_probability(known, correct, np.vstack([asked, known]))
    if fitted is None:
        return asked, known
    both = fitted.astype(np.float32)[:, None]
    return both[: len(asked)], both[len(asked) :]
