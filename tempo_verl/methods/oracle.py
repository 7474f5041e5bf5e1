# SPDX-License-Identifier: Apache-2.0
"""An upper bound, which is allowed to look."""

from __future__ import annotations

from tempo_verl.methods.base import Method, Needs, Round, Trained


class Oracle(Method):
    """Upper bound: the verifier's verdict on D_U as reward. No test-time training.

    It runs only with ``tempo.allow_labels_on_unlabeled=true``. A critic, if there is one, is refitted on D_L as in
    TEMPO, and is the baseline.
    """

    name = "oracle"
    title = "the policy is trained on the true answers of D_U, an upper bound rather than a method"
    row = (
        "the verdict on **D_U**: an upper bound, has to be allowed by `tempo.allow_labels_on_unlabeled=true`",
        "R - V(x, y_1:t-1), or `tempo.advantage=group`",
        "as configured",
    )
    needs = Needs(labeled=None, unlabeled=True, critic=None)
    fits_critic = True
    reads_answers = True

    def step(self, round: Round) -> Trained:
        before = None
        if round.labeled is not None and round.critic is not None:
            with round.log.time("e_step"):
                before = round.critic.measure(round.labeled)
                round.critic.fit(round.labeled, round.labeled.verdicts)
        if not round.plan.improve:
            return self.calibrated_only(round, round.labeled, before)
        with round.log.time("m_step"):
            samples, guided = self.batch(round, round.unlabeled)
            return self.improve(round, samples, samples.verdicts, self.values(round, samples), guided)
