# SPDX-License-Identifier: Apache-2.0
"""GRPO on labelled questions."""

from __future__ import annotations

import torch

from tempo_verl.methods.base import Method, Needs, Round, Trained


class GRPO(Method):
    """GRPO on D_L (arXiv 2402.03300): the verdict against the prompt's other responses. No critic."""

    name = "grpo"
    title = "the policy learns on labelled questions D_L, rewarded by the verifier, without a critic"
    row = (
        "the verdict on D_L",
        "GRPO",
        "none",
    )
    needs = Needs(labeled=True, unlabeled=False, critic=False)
    every_round = True

    def step(self, round: Round) -> Trained:
        samples = round.labeled
        verdicts = samples.verdicts
        round.log.metrics["tempo/labeled/accuracy"] = verdicts[torch.from_numpy(samples.ends)].mean().item()
        self.learn(round, samples, verdicts, None)
        return Trained(samples)
