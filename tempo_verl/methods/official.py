# SPDX-License-Identifier: Apache-2.0
"""The official repository's code, deviation by deviation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from tempo_verl.algo.advantage import final_value, on_tokens
from tempo_verl.algo.jagged import Rows
from tempo_verl.algo.official import em_outcome_advantage, em_token_advantage, last_token_reward, mixed_groups
from tempo_verl.methods.base import Method, Needs, Options, Round, Trained

if TYPE_CHECKING:
    from torch import Tensor


class OfficialOptions(Options):
    """See ``config/method/official.yaml``."""

    advantage: Literal["em_token", "em"]
    filter_groups: bool


class Official(Method):
    """A round as the official TEMPO repository's code does it, to see what each deviation from the paper costs.

    D_L and D_U are one batch. Labelled rows have +1 and -1 as reward and are in the policy's loss; prompts that are all
    right or all wrong are left out. Values are those before the critic's update. R = V(x, y_1:T-1). Whitening is joint.
    The critic's loss is clipped and on labelled rows only.
    """

    name = "official"
    title = "the policy learns on labelled and unlabelled questions in one batch, as in the official code"
    row = (
        "what the official repository does: one mixed batch, +1/-1 on D_L, stale values, V(x, y_1:T-1), "
        "joint whitening, D_L in the policy's loss",
        "`em_token` or `em`",
        "clipped loss on D_L",
    )
    needs = Needs(labeled=True, unlabeled=True, critic=True)
    Options = OfficialOptions
    every_round = True
    mixes_streams = True
    critic_loss = "clipped"

    def step(self, round: Round) -> Trained:
        drawn = round.labeled
        outcome = drawn.verdicts
        round.critic.measure(drawn)
        kept = drawn.real
        if self.options.filter_groups:
            kept = kept & mixed_groups(outcome.numpy(), drawn.prompts)
        round.log.metrics["tempo/labeled/kept"] = float(kept[drawn.ends].mean())

        labeled = drawn.rows(np.flatnonzero(kept))
        samples = round.policy.batch(round.unlabeled, labeled)
        values = round.critic.values(samples)  # before the critic's update, for the actor as well
        mask = samples.response_mask
        is_labeled = np.zeros(len(samples), dtype=bool)
        is_labeled[samples.find(labeled)] = True
        reward = last_token_reward(samples.align(drawn, 2 * outcome - 1), mask)
        columns = Rows.of(values).without_last().tensor  # verl's T
        credit = em_outcome_advantage if self.options.advantage == "em" else em_token_advantage
        groups = {"uid": samples.prompts, "sessions": samples.sessions} if self.options.advantage == "em" else {}
        final = samples.align(samples, final_value(values, mask, "before_last_token"))
        advantages, returns = credit(columns, reward, mask, is_labeled, final=final, **groups)

        samples.write(
            values=columns,
            advantages=advantages,
            returns=returns,
            rm_scores=reward,
            loss_mask=on_tokens(torch.from_numpy(is_labeled), mask),
        )
        with round.log.time("update_critic"):
            round.critic.train(samples)
        samples.write(loss_mask=mask)
        round.policy.update(samples)
        unlabeled = samples.find(round.unlabeled)
        return Trained(samples, unlabeled, final, advantages, values)

    def probability(self, values: Tensor, response_mask: Tensor) -> Tensor:
        """(B,) its critic is fitted to +1 and -1: (1 + V) / 2."""
        return (1 + final_value(values, response_mask, self.settings.final_value)) / 2
