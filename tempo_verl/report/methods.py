# SPDX-License-Identifier: Apache-2.0
"""What the report has to know of a method: its class is asked."""

from __future__ import annotations

from dataclasses import dataclass

from tempo_verl.errors import UserError


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


def about(method: str | None) -> About:
    """What a method's class says of it; neutral words for one that cannot be found here, such as a user's own."""
    from tempo_verl.methods import find

    if method is None:
        return About("The configuration does not say by which method this policy was trained.")
    try:
        found = find(method)
    except UserError:  # a report is made wherever the run folder is, without the user's own packages
        return About(f"The policy was trained by {method}, which this report knows nothing about.")
    return About(f"{found.name}: {found.title}.", found.reads_answers, found.learns_on())
