# SPDX-License-Identifier: Apache-2.0
"""How much the label of a question would tell: where vote and critic say different things about the same answer.

The vote takes an answer for right with the share of the samples that gave it, s; the critic with the mean value of
those samples, v. A label gives the verdict c on each answer. If one of the two is right about c, and nobody knows
which, the verdict tells

    I = H((s + v) / 2) - (H(s) + H(v)) / 2   bits,   H(p) = -p log2 p - (1 - p) log2 (1 - p),

about which of them to believe: the Jensen-Shannon divergence of two coins, 0 where they agree and 1 where one is sure
of what the other rules out. This is query by committee (McCallum and Nigam 1998) with a committee of two. The label
tells at least as much as its most telling verdict, which is the score of a question. Without a critic the score is the
entropy of the votes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LONGEST = 40  # characters of an answer in a reason


@dataclass(frozen=True)
class Candidate:
    """An answer to a question.

    Attributes:
        answer: as the samples spell it.
        votes: samples that gave it, at least 1.
        share: of all samples of the question, in (0, 1].
        critic: mean critic value of the samples that gave it, in [0, 1]; None without a critic.
    """

    answer: str
    votes: int
    share: float
    critic: float | None = None

    @property
    def telling(self) -> float:
        """Bits that the verdict on this answer tells, see :func:`information`; 0 without a critic."""
        return 0.0 if self.critic is None else information(self.share, self.critic)


def candidates(votes: Iterable[tuple[str, int, float | None]], samples: int) -> list[Candidate]:
    """The answers to a question, the one with most votes first; ties go to the smallest text, as in a majority vote.

    Args:
        votes: answer, samples that gave it, and the sum of their critic values in [0, 1]; None without a critic.
        samples: all samples of the question, those without an answer too.
    """
    found = [
        Candidate(answer, count, count / samples, None if weight is None else weight / count)
        for answer, count, weight in votes
    ]
    return sorted(found, key=lambda candidate: (-candidate.votes, candidate.answer))


def information(share: float, critic: float) -> float:
    """Bits in [0, 1] that a verdict on an answer tells about whether to believe the vote or the critic.

    Args:
        share: of the votes, in [0, 1].
        critic: its probability that the answer is right, in [0, 1].
    """
    return max(0.0, _entropy([(share + critic) / 2]) - (_entropy([share]) + _entropy([critic])) / 2)


def score(of: Sequence[Candidate]) -> float:
    """What the label of a question tells, in bits: at least that of its most telling verdict, in [0, 1].

    Without a critic it is the entropy of the votes, at least 0; samples without an answer count as one answer more.
    """
    if any(candidate.critic is not None for candidate in of):
        return max(candidate.telling for candidate in of)
    return _entropy([candidate.share for candidate in of])


def in_question(of: Sequence[Candidate]) -> list[Candidate]:
    """The answers that the disagreement is about.

    That of the vote and that of the critic (the highest mean value); where they are the same, the one with the most
    telling verdict. Without a critic the two with most votes.

    Args:
        of: as :func:`candidates` gives them.
    """
    if not of or of[0].critic is None:
        return list(of[:2])
    preferred = max(of, key=lambda candidate: (candidate.critic or 0.0, candidate.votes))
    return [of[0], preferred] if preferred != of[0] else [max(of, key=lambda candidate: candidate.telling)]


def reason(of: Sequence[Candidate], samples: int) -> str:
    """Why to label this question, as a short phrase.

    Args:
        of: as :func:`candidates` gives them.
        samples: all samples of the question.
    """
    if not of:
        return "no sample gave an answer"
    first, *others = in_question(of)
    said = f"{first.answer:.{LONGEST}}"
    if first.critic is None:
        return f"the votes for {said} are {first.votes} of {samples}"
    if others:
        other = others[0]
        return (
            f"the vote elects {said} ({first.votes} of {samples}, critic {first.critic:.2f}), the critic prefers "
            f"{other.answer:.{LONGEST}} ({other.votes} of {samples}, critic {other.critic:.2f})"
        )
    if not first.telling:
        return f"critic and vote agree on {said}"
    verb = "doubts" if first.critic < first.share else "is surer than the vote of"
    return f"the critic {verb} {said} ({first.votes} of {samples}, critic {first.critic:.2f})"


def _entropy(shares: Sequence[float]) -> float:
    """Bits; what the shares leave of 1 is one outcome more."""
    rest = max(0.0, 1.0 - math.fsum(shares))
    return -math.fsum(share * math.log2(share) for share in (*shares, rest) if share > 0.0) + 0.0  # no -0.0
