# SPDX-License-Identifier: Apache-2.0
"""TEMPO without its E-step."""

from __future__ import annotations

from tempo_verl.methods.base import Method, Needs, Round, Trained


class FrozenCritic(Method):
    """TEMPO without the E-step, an ablation of arXiv 2604.19295: the critic stays as it was given.

    With labelled questions and ``tempo.calibration.interval=k`` the critic is measured on them every k rounds, and not
    fitted.
    """

    name = "frozen_critic"
    title = "the policy learns on unlabelled questions D_U, rewarded by a critic that stays as it was given"
    row = (
        "V(x, y_1:T)",
        "R - V(x, y_1:t-1), whitened",
        "as it was given",
    )
    needs = Needs(labeled=None, unlabeled=True, critic=True)
    has_gate = True

    def step(self, round: Round) -> Trained:
        if round.labeled is not None:
            with round.log.time("e_step"):
                before = round.critic.measure(round.labeled)
        if not round.plan.improve:  # the gate is closed
            return self.calibrated_only(round, round.labeled, before)
        with round.log.time("m_step"):
            samples, guided = self.batch(round, round.unlabeled)
            values = self.values(round, samples)
            return self.improve(round, samples, self.final_value(samples, values), values, guided)
