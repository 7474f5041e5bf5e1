# SPDX-License-Identifier: Apache-2.0
"""TraPO, arXiv 2512.13106."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from tempo_verl.algo.pass_rates import PassRates, clear_majority
from tempo_verl.algo.self_reward import mean_by_prompt
from tempo_verl.methods.base import Method, Needs, Options, Round, Trained


class TraPOOptions(Options):
    """See ``config/method/trapo.yaml``."""

    warmup: Annotated[int, Field(ge=1)]
    top: Annotated[float, Field(ge=0, le=1)]
    threshold: Annotated[float, Field(ge=-1, le=1)]


class TraPO(Method):
    """GRPO on D_L by verdicts, and on those questions of D_U whose votes can be trusted (TraPO, arXiv 2512.13106).

    A question of D_U has a trajectory: the share of its samples that agree with its majority, visit by visit. It is
    trained on once it has enough visits and its trajectory is like that of the pass rate on D_L at these times.

    The paper compares with every labelled question's own trajectory, which takes several passes over D_L. Here it is
    the mean over D_L's rollouts of each round, which there is however large D_L is. It does not take trajectories of
    chosen questions into the reference, as the authors' code can.
    """

    name = "trapo"
    title = "the policy learns on D_L by the verifier, and on questions of D_U whose votes are learnt as D_L is"
    row = (
        "the verdict on D_L; the majority's answer on questions of D_U whose pass rate moves as D_L's",
        "GRPO",
        "none",
    )
    needs = Needs(labeled=True, unlabeled=True, critic=False)
    Options = TraPOOptions
    every_round = True
    mixes_streams = True
    labels_by_vote = True

    def __init__(self, settings, options=None):
        super().__init__(settings, options)
        self.memory = PassRates()

    def step(self, round: Round) -> Trained:
        labeled, voters = round.labeled.rows(np.flatnonzero(round.labeled.real)), round.unlabeled.by_session()
        verdicts = labeled.verdicts
        accuracy = verdicts[torch.from_numpy(labeled.ends)].mean().item()
        round.log.metrics["tempo/labeled/accuracy"] = accuracy
        with round.log.time("m_step"):
            votes = clear_majority(voters.answers, voters.prompts)
            round.log.metrics["tempo/unlabeled/majority_ratio"] = mean_by_prompt(votes, voters.prompts)
            asked = np.array(voters.questions)
            for question in sorted(set(asked.tolist())):
                self.memory.visit(question, float(votes[asked == question].mean()), accuracy)
            chosen = self.memory.reliable(asked.tolist(), **self.options.model_dump())
            kept = voters.rows(np.flatnonzero(np.isin(asked, list(chosen))))
            round.log.metrics["tempo/unlabeled/kept"] = len(kept) / len(voters)
            learnt = round.unlabeled.rows(round.unlabeled.find(kept))
            samples = round.policy.batch(labeled, *([learnt] if len(learnt) else []))
            reward = samples.align(labeled, verdicts) + samples.align(voters, torch.from_numpy(votes))
            advantages = self.learn(round, samples, reward, None)
            unlabeled = samples.find(learnt) if len(learnt) else None
            return Trained(samples, unlabeled, reward, advantages)
