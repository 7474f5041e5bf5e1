# SPDX-License-Identifier: Apache-2.0
"""TTRL, arXiv 2504.16084."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from pydantic import Field

from tempo_verl.algo.self_reward import majority_reward, mean_by_prompt
from tempo_verl.methods.base import Method, Needs, Options, Round, Trained, refuse

if TYPE_CHECKING:
    from omegaconf import DictConfig


class TTRLOptions(Options):
    """See ``config/method/ttrl.yaml``."""

    n_votes: Annotated[int, Field(ge=1)]
    n_train: Annotated[int, Field(ge=1)]


class TTRL(Method):
    """Reward 1 for the answers that equal the majority's of their prompt, else 0 (TTRL, arXiv 2504.16084).

    ``n_votes`` samples of each prompt vote, the first ``n_train`` of them train the policy. Advantage: GRPO.
    """

    name = "ttrl"
    title = "the policy learns on unlabelled questions D_U, rewarded for agreeing with the majority of its own answers"
    row = (
        "the majority's answer: `tempo.ttrl.n_votes` samples vote, `n_train` of them train",
        "GRPO",
        "none",
    )
    needs = Needs(labeled=None, unlabeled=True, critic=False)
    Options = TTRLOptions
    labels_by_vote = True

    def step(self, round: Round) -> Trained:
        voters = round.unlabeled.by_session()
        with round.log.time("m_step"):
            votes, _ = majority_reward(voters.answers, voters.prompts)
            round.log.metrics["tempo/unlabeled/majority_ratio"] = mean_by_prompt(votes, voters.prompts)
            kept = voters.rows(first_samples(voters.prompts, self.options.n_train))
            samples, guided = self.batch(round, round.unlabeled.rows(round.unlabeled.find(kept)))
            reward = samples.align(voters, torch.from_numpy(votes))
            return self.improve(round, samples, reward, None, guided)

    def responses(self) -> int:
        return self.options.n_votes

    def check(self, config: DictConfig) -> None:
        votes, trained, n = self.options.n_votes, self.options.n_train, config.actor_rollout_ref.rollout.n
        refuse(votes < trained, f"tempo.ttrl.n_votes={votes} must be at least {trained}, tempo.ttrl.n_train")
        refuse(trained != n, f"actor_rollout_ref.rollout.n={n} must equal tempo.ttrl.n_train={trained}")


def first_samples(prompts: Sequence[str], count: int) -> np.ndarray:
    """Rows of the first ``count`` samples of each prompt."""
    seen: dict[str, int] = {}
    kept = []
    for row, prompt in enumerate(prompts):
        seen[prompt] = seen.get(prompt, 0) + 1
        if seen[prompt] <= count:
            kept.append(row)
    return np.array(kept, dtype=int)
