# SPDX-License-Identifier: Apache-2.0
"""EMPO, arXiv 2504.05812."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

from tempo_verl.algo.self_reward import Equivalent, cluster_reward
from tempo_verl.methods.base import Method, Needs, Round, Trained
from tempo_verl.rewards import equivalent
from tempo_verl.rewards.process import most

FAILURES = 2  # of one answer: one is the other's fault as likely


class Patient:
    """Compares the answers to one prompt. An answer that has failed ``FAILURES`` times is compared no more.

    A failure takes the whole time limit, and an answer that cannot be compared would meet every other one. So at most
    one comparison fails for each different answer.
    """

    def __init__(self, equivalent: Equivalent):
        self._equivalent, self._failed = equivalent, Counter[str]()

    def __call__(self, first: str, second: str) -> bool | None:
        if max(self._failed[first], self._failed[second]) >= FAILURES:
            return None
        verdict = self._equivalent(first, second)
        if verdict is None:
            self._failed.update((first, second))
        return verdict


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
        drawn = round.unlabeled
        with round.log.time("m_step"):
            style_of = dict(zip(drawn.prompts, drawn.styles, strict=True))
            timeout = self.settings.verifier.timeout
            with ThreadPoolExecutor(most()) as threads:
                shares, clusters = cluster_reward(
                    drawn.answers,
                    drawn.prompts,
                    lambda prompt: Patient(partial(equivalent, style=style_of[str(prompt)], timeout=timeout)),
                    threads.map,
                )
            count = dict.fromkeys(drawn.prompts, 0)
            for prompt, cluster in zip(drawn.prompts, clusters.tolist(), strict=True):
                count[prompt] = max(count[prompt], cluster + 1)
            round.log.metrics["tempo/unlabeled/clusters"] = float(np.mean(list(count.values())))
            samples, guided = self.batch(round, drawn)
            reward = samples.align(drawn, torch.from_numpy(shares))
            return self.improve(round, samples, reward, None, guided)
