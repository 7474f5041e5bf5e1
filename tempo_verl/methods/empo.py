# SPDX-License-Identifier: Apache-2.0
"""EMPO, arXiv 2504.05812."""

from __future__ import annotations

import numpy as np
import torch

from tempo_verl.algo.self_reward import cluster_reward
from tempo_verl.methods.base import Method, Needs, Round, Trained


class EMPO(Method):
    """Reward: the share of a prompt's answers that are equivalent to this one (EMPO, arXiv 2504.05812).

    A missing answer is a cluster of its own. Advantage: GRPO. The paper describes an entropy filter that its code does
    not have; neither does this.
    """

    name = "empo"
    title = "the policy learns on unlabelled questions D_U, rewarded by the share of its answers that are equivalent"
    row = (
        "the share of answers that are equivalent; a missing answer is alone",
        "GRPO",
        "none",
    )
    needs = Needs(labeled=None, unlabeled=True, critic=False)

    def step(self, round: Round) -> Trained:
        voters = round.unlabeled.by_session()
        with round.log.time("m_step"):
            shares, clusters = cluster_reward(voters.answers, voters.prompts)
            count = dict.fromkeys(voters.prompts, 0)
            for prompt, cluster in zip(voters.prompts, clusters.tolist(), strict=True):
                count[prompt] = max(count[prompt], cluster + 1)
            round.log.metrics["tempo/unlabeled/clusters"] = float(np.mean(list(count.values())))
            samples, guided = self.batch(round, round.unlabeled)
            reward = samples.align(voters, torch.from_numpy(shares))
            return self.improve(round, samples, reward, None, guided)
