# SPDX-License-Identifier: Apache-2.0
"""A method of your own: reward what both the critic and the policy's other samples believe in."""

from collections import Counter

import torch

from tempo_verl.methods import Method, Needs, Options, Round, Trained
from tempo_verl.methods.base import Samples


class ConfidentOptions(Options):
    critic_share: float = 0.5  # set it with +tempo.confident.critic_share=0.7


class Confident(Method):
    """Reward: the mean of the critic's final value and the answer's share of the votes."""

    name = "confident"
    title = "the policy learns on unlabelled questions, rewarded by a refitted critic and by agreement"
    row = ("mean of V(x, y_1:T) and the share of the votes", "R - V(x, y_1:t-1)", "refitted")
    needs = Needs(labeled=True, unlabeled=True, critic=True)
    Options = ConfidentOptions
    fits_critic = True

    def step(self, round: Round) -> Trained:
        if round.labeled is not None:  # E-step
            with round.log.time("e_step"):
                before = round.critic.measure(round.labeled)
                round.critic.fit(round.labeled, round.labeled.verdicts)
        if not round.plan.improve:  # warm-up: only the critic learns
            return self.calibrated_only(round, round.labeled, before)
        with round.log.time("m_step"):
            samples, labeled = self.batch(round, round.unlabeled)
            values = self.values(round, samples)
            voters = round.unlabeled.by_session()  # an agent loop may have stored several outputs of a response
            share = samples.align(voters, vote_share(voters))
            weight = self.options.critic_share
            reward = weight * self.final_value(samples, values) + (1 - weight) * share
            return self.improve(round, samples, reward, values, labeled)


def vote_share(samples: Samples) -> torch.Tensor:
    """(B,) the share of a prompt's responses that have the same answer; 0 without an answer."""
    votes = list(zip(samples.prompts, samples.answers, strict=True))
    same, total = Counter(votes), Counter(samples.prompts)
    return torch.tensor([0.0 if answer is None else same[prompt, answer] / total[prompt] for prompt, answer in votes])
