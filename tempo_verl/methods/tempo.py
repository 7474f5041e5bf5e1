# SPDX-License-Identifier: Apache-2.0
"""TEMPO, arXiv 2604.19295."""

from __future__ import annotations

from tempo_verl.methods.base import Method, Needs, Round, Trained


class Tempo(Method):
    """Refit the critic on D_L, then reward D_U with the critic's final value (arXiv 2604.19295).

    E-step: the mean squared error between V(x, y_1:t), t = 0..T, and the verdict c(x, y) on labelled rollouts.
    M-step: R = V(x, y_1:T) by the critic as it is after the E-step, A_t = R - V(x, y_1:t-1), whitened.
    """

    name = "tempo"
    title = "the policy learns on unlabelled questions D_U, rewarded by a critic that is refitted on labelled ones"
    row = (
        "V(x, y_1:T) after the E-step",
        "R - V(x, y_1:t-1), whitened",
        "refitted every `calibration.interval` rounds",
    )
    needs = Needs(labeled=True, unlabeled=True, critic=True)
    fits_critic = True
    has_gate = True

    def step(self, round: Round) -> Trained:
        if round.labeled is not None:
            with round.log.time("e_step"):
                before = round.critic.measure(round.labeled)
                round.critic.fit(round.labeled, round.labeled.verdicts)
        if not round.plan.improve:
            return self.calibrated_only(round, round.labeled, before)
        with round.log.time("m_step"):
            samples, guided = self.batch(round, round.unlabeled)
            values = self.values(round, samples)
            return self.improve(round, samples, self.final_value(samples, values), values, guided)
