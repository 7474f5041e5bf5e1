# SPDX-License-Identifier: Apache-2.0
"""The policy of a round: its batch, its penalties and verl's update."""

from __future__ import annotations

import math

import torch
from omegaconf import DictConfig

from tempo_verl.algo.advantage import on_tokens
from tempo_verl.algo.jagged import Rows, tokens_of
from tempo_verl.algo.official import last_token_reward
from tempo_verl.algo.shaping import format_penalty, length_penalty, overlong_penalty
from tempo_verl.methods import Method
from tempo_verl.trainer.batch import Samples, concatenate
from tempo_verl.trainer.guard import check_range, reward_limits
from tempo_verl.trainer.log import Log
from tempo_verl.trainer.losses import LOSSES
from tempo_verl.trainer.port import Port


class Policy:
    """See :class:`tempo_verl.methods.base.Policy`."""

    def __init__(self, port: Port, method: Method, log: Log):
        self._port, self._method, self._log = port, method, log

    def batch(self, *parts: Samples) -> Samples:
        """All parts as one batch of whole mini-batches on every rank, of the critic too if there is one."""
        readers = ["policy", *(["critic"] if self._port.has_critic else [])]
        return self._port.balanced(concatenate(*parts), self._multiple(), self._log, "global_seqlen", *readers)

    def penalties(self, samples: Samples) -> torch.Tensor:
        """(B,) penalties for the policy alone: neither the critic's target nor any accuracy knows of them.

        A session is as long as its longest output.
        """
        shaping, limit = self._method.settings.shaping, self._port.config.data.max_response_length
        total = torch.zeros(len(samples))
        if not shaping.configured:
            return total
        own, longest = tokens_of(samples.response_mask).tolist(), dict.fromkeys(samples.sessions, 0)
        for session, tokens in zip(samples.sessions, own, strict=True):
            longest[session] = max(longest[session], tokens)
        lengths = torch.tensor([longest[session] for session in samples.sessions])
        formatted = torch.tensor([info["format"] for info in samples.reward_info])
        for name, term in {
            "format": format_penalty(formatted, shaping.format_penalty),
            "overlong": overlong_penalty(lengths, limit, shaping.overlong_buffer, shaping.overlong_penalty),
            "length": length_penalty(lengths, limit, shaping.length_penalty),
        }.items():
            self._log.metrics[f"tempo/shaping/{name}"] = term[torch.from_numpy(samples.ends)].mean().item()
            total += term
        return total

    def store(
        self, samples: Samples, reward: torch.Tensor, advantages: torch.Tensor, values: torch.Tensor | None
    ) -> None:
        """Write reward (B,), advantages (B, T_i) and values (B, T_i + 1) where verl's losses and metrics read them."""
        mask, more = samples.response_mask, {}
        check_range("rewards", reward, reward_limits(self._method), samples)
        if values is not None:
            more["values"] = Rows.of(values).without_last().tensor
        if not samples.remasked.isdisjoint(samples.meta.keys):  # by an E-step; rollouts come with it
            more["loss_mask"] = mask
        samples.write(
            advantages=advantages,
            returns=on_tokens(reward, mask),
            rm_scores=last_token_reward(reward, mask),
            **more,
        )

    def update(self, samples: Samples) -> None:
        """verl's policy update on what is stored: old and reference log-probabilities, then the actor."""
        self._port.update_actor(samples, actor_mini_batch(self._port.config), self._log)

    def _multiple(self) -> int:
        """A batch that the critic's own loss trains on as well has whole mini-batches for both."""
        actor = actor_mini_batch(self._port.config)
        settings = self._method.settings
        critic = settings.calibration.mini_batch_size * settings.labeled.n
        return math.lcm(critic, actor) if LOSSES[self._method.critic_loss].on_policy_batch else actor


def actor_mini_batch(config: DictConfig) -> int:
    """Samples in one policy update."""
    return config.actor_rollout_ref.actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n
