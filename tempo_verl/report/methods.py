# SPDX-License-Identifier: Apache-2.0
"""What the report has to know of a method. No other module of it names one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """A method in words.

    Attributes:
        text: a sentence on what the policy is trained on.
        uses_answers_of_d_u: whether its training reads answers of D_U; None where nobody knows.
        learns_on: ``labeled`` or ``unlabeled``, the stream that trains the policy; None where nobody knows.
    """

    text: str
    uses_answers_of_d_u: bool | None = None
    learns_on: str | None = None


# what a method is rewarded for on D_U; none of these reads its answers
_ON_UNLABELED = {
    "tempo": "TEMPO: a critic is re-fitted on labelled questions D_L (E-step), and what it says about answers to the "
    "unlabelled questions D_U is the reward the policy is trained on (M-step).",
    "frozen_critic": "Frozen critic: the policy is trained on unlabelled questions D_U with the values of a critic "
    "that is never re-fitted.",
    "ttrl": "TTRL: the policy is trained on unlabelled questions D_U, rewarded for agreeing with its majority vote.",
    "empo": "EMPO: the policy is trained on unlabelled questions D_U, rewarded by the size of an answer's cluster.",
    "random_reward": "Random reward: a control in which the reward on the unlabelled questions D_U means nothing.",
    "official": "The official TEMPO recipe: labelled and unlabelled questions in one mixed batch.",
}
_ON_LABELED = {
    "ppo": "PPO: the policy is trained on labelled questions D_L with the verifier's reward; D_U is only evaluated.",
    "grpo": "GRPO: the policy is trained on labelled questions D_L with the verifier's reward, compared within the "
    "samples of a question; D_U is only evaluated.",
}
_ORACLE = "Oracle: the policy is trained on the true answers of D_U, an upper bound rather than a method."
_METHODS = {
    **{name: About(text, False, "unlabeled") for name, text in _ON_UNLABELED.items()},
    **{name: About(text, False, "labeled") for name, text in _ON_LABELED.items()},
    "oracle": About(_ORACLE, True, "unlabeled"),
}


def about(method: str | None) -> About:
    """What is known of a method; neutral words for one that is not of this package, such as ``module:Class``."""
    if method is None:
        return About("The configuration does not say by which method this policy was trained.")
    return _METHODS.get(method, About(f"The policy was trained by {method}, which this report knows nothing about."))
