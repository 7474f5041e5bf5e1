# SPDX-License-Identifier: Apache-2.0
"""PPO on labelled questions: stage 0."""

from __future__ import annotations

from tempo_verl.methods.base import Method, Needs, Round, Trained


class PPO(Method):
    """PPO with a value critic on D_L: stage 0, or keeping on with it (arXiv 1707.06347, 2604.19295).

    Reward: the verdict. With gamma = lambda = 1, GAE is c(x, y) - V(x, y_1:t-1) and every return is c(x, y). Values are
    those before the critic's update, as in verl.
    """

    name = "ppo"
    title = "the policy learns on labelled questions D_L, rewarded by the verifier, with a value critic"
    row = (
        "the verdict on D_L: stage 0, or keeping on with it",
        "GAE",
        "PPO's",
    )
    needs = Needs(labeled=True, unlabeled=False, critic=True)
    fits_critic = True
    every_round = True

    def step(self, round: Round) -> Trained:
        samples = round.labeled
        verdicts = samples.verdicts
        values = round.critic.measure(samples)
        with round.log.time("update_critic"):
            round.critic.fit(samples, verdicts)
        self.learn(round, samples, verdicts, values)
        return Trained(samples)
