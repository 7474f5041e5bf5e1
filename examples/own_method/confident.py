# SPDX-License-Identifier: Apache-2.0
"""A method of your own: reward what both the critic and the policy's other samples believe in."""

from collections import Counter

import torch

from tempo_verl.algo.advantage import final_value
from tempo_verl.methods import Method, Needs, Options, Round, Trained


class ConfidentOptions(Options):
    critic_share: float = 0.5  # set it with +tempo.confident.critic_share=0.7


class Confident(Method):
    """Reward: the mean of the critic's final value and the share of the prompt's samples with the same answer."""

    name = "confident"
    title = "the policy learns on unlabelled questions, rewarded by a refitted critic and by agreement"
    row = ("mean of V(x, y_1:T) and the answer's share of the votes", "R - V(x, y_1:t-1), whitened", "refitted")
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
            value = final_value(values, samples.response_mask, self.settings.final_value)
            share = samples.align(round.unlabeled, vote_share(round.unlabeled.prompts, round.unlabeled.answers))
            weight = self.options.critic_share
            return self.improve(round, samples, weight * value + (1 - weight) * share, values, labeled)


def vote_share(prompts: list[str], answers: list[str | None]) -> torch.Tensor:
    """(B,) the share of the responses to the same prompt that have the same answer; 0 without an answer."""
    same, total = Counter(zip(prompts, answers, strict=True)), Counter(prompts)
    pairs = zip(prompts, answers, strict=True)
    return torch.tensor([0.0 if a is None else same[p, a] / total[p] for p, a in pairs])
