# SPDX-License-Identifier: Apache-2.0
"""A reward that knows nothing."""

from __future__ import annotations

import numpy as np
import torch

from tempo_verl.methods.base import Method, Needs, Round, Trained


class RandomReward(Method):
    """Control: a reward from U(0, 1), the same for the same ``tempo.unlabeled.seed`` and round.

    With ``critic.enable=true tempo.advantage=baseline`` the baseline is a critic's, which is never fitted.
    """

    name = "random_reward"
    title = "the policy learns on unlabelled questions D_U from random rewards, a control"
    row = (
        "U(0, 1), a control",
        "GRPO",
        "none; or frozen, `critic.enable=true tempo.advantage=baseline`",
    )
    needs = Needs(labeled=None, unlabeled=True, critic=None)

    def step(self, round: Round) -> Trained:
        if round.labeled is not None and round.critic is not None:
            with round.log.time("e_step"):
                round.critic.measure(round.labeled)
        drawn = round.unlabeled.by_session()
        with round.log.time("m_step"):
            rng = np.random.default_rng([self.settings.unlabeled.seed, round.number])
            chance = rng.random(len(drawn), dtype=np.float32)
            samples, guided = self.batch(round, round.unlabeled)
            values = self.values(round, samples)
            reward = samples.align(drawn, torch.from_numpy(chance))
            return self.improve(round, samples, reward, values, guided)
