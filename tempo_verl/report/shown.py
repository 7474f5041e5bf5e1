# SPDX-License-Identifier: Apache-2.0
"""The samples that a report of one run shows: text as it came, each piece in the colour of its V.

What the page's template needs is here; how it looks is in ``shown.html.j2`` and ``shown.css``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tempo_verl.errors import UserError
from tempo_verl.evaluation.shown import BELIEVED, DECEIVED, DISPUTED, UNDERRATED, Counts, Piece, Shown

SHOWN = "predictions.shown.json"  # in a run folder
LEVELS = 10  # colours from V = 0 to V = 1, less one
SHORT = 800  # characters of a response that is shown open
LONGEST_LINE = 90  # characters of a question in the line that opens a response
WIDTH, HEIGHT = 400, 40  # of the curve of V, in its own units

TITLES = {
    DECEIVED: "Wrong answers that the critic believes most",
    UNDERRATED: "Right answers that the critic believes least",
    DISPUTED: "Unlabelled questions on which critic and vote disagree most",
}
WORDS = {
    DECEIVED: (
        "Labelled questions, whose answers are known. These responses are wrong, and of all wrong ones the critic "
        "gives them the highest values. Look for what they have in common: what deceives the critic is rewarded. On "
        "D_U, which is trained on, it may be deceived more often."
    ),
    UNDERRATED: "Labelled questions as well. These responses are right, and the critic gives them the lowest values.",
    DISPUTED: (
        "Questions of D_U, whose answers are not known here. Where vote and critic elect different answers both are "
        "shown. A label would tell which of them to believe: tempo-verl label-next RUN_DIR writes a file of such "
        "questions to fill in."
    ),
}
SPLIT_TITLE = "Unlabelled questions on which the samples disagree most"
SPLIT_WORDS = (
    "Questions of D_U, whose answers are not known here. The two answers with most votes are shown. This run has no "
    "critic, so the text has no colour. tempo-verl label-next RUN_DIR writes a file of such questions to fill in."
)


@dataclass(frozen=True)
class Group:
    """Responses that are shown for the same reason."""

    title: str
    words: str
    responses: list[Shown]


@dataclass(frozen=True)
class Exhibit:
    """What is shown: ``critic``, whether there are values; ``rate``, how often the critic was deceived, in words."""

    critic: bool
    rate: str
    groups: list[Group]

    @property
    def title(self) -> str:
        if not self.critic:
            return "Samples: where the votes are split"
        labeled = any(group.title == TITLES[DECEIVED] for group in self.groups)
        return "Samples: is the critic deceived?" if labeled else "Samples: where critic and vote disagree"


def read_shown(path: Path) -> Exhibit | None:
    """The samples that a run kept; None where it kept none.

    Raises:
        UserError: the file is not what a run writes.
    """
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_bytes())
        counts = Counts(**document["labeled"])
        responses = [
            Shown(**{**response, "pieces": [Piece(str(of["text"]), of["value"]) for of in response["pieces"]]})
            for response in document["responses"]
        ]
        return _exhibit(counts, responses)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not the samples of a run ({reason}); remove it, and make the report again") from None


def _exhibit(counts: Counts, responses: Sequence[Shown]) -> Exhibit | None:
    critic = any(response.value is not None for response in responses)
    titles = TITLES | ({} if critic else {DISPUTED: SPLIT_TITLE})
    words = WORDS | ({} if critic else {DISPUTED: SPLIT_WORDS})
    groups = [Group(title, words[kind], [of for of in responses if of.kind == kind]) for kind, title in titles.items()]
    groups = [group for group in groups if group.responses]
    return Exhibit(critic, _rate(counts) if critic else "", groups) if groups else None


def _rate(counts: Counts) -> str:
    if not counts.responses:
        return ""
    if not counts.wrong:
        return f"All {counts.responses} responses to {counts.questions} labelled questions are right."
    share = f"{100 * counts.believed / counts.wrong:.0f} %"
    return (
        f"Of {counts.responses} responses to {counts.questions} labelled questions {counts.wrong} are wrong; the "
        f"critic gives {counts.believed} of these ({share}) a value of at least {BELIEVED}."
    )


# ---------------------------------------------------------------------- filters of the template


def level(value: float | None) -> str:
    """The class of a piece: ``v0`` (V = 0) to ``v10`` (V = 1); empty without a value."""
    return "" if value is None else f"v{round(LEVELS * min(max(value, 0.0), 1.0))}"


def headline(response: Shown) -> str:
    """One line: verdict, value and votes, and the answer."""
    said = "no answer" if response.answer is None else f"answer {_cut(response.answer)}"
    facts = [said]
    if response.correct is not None:
        facts.append("right" if response.correct else "wrong")
    if response.value is not None:
        facts.append(f"V {response.value:.2f}")
    if response.answer is not None:
        facts.append(f"{response.votes} of {response.samples} votes")
    if response.truncated:
        facts.append("cut off by the length limit")
    return ", ".join(facts)


def line(question: str) -> str:
    """The beginning of a question, in one line."""
    return _cut(" ".join(question.split()))


def is_short(response: Shown) -> bool:
    return sum(len(piece.text) for piece in response.pieces) <= SHORT


def curve(response: Shown) -> str:
    """Points of V along the response as SVG writes them, from V(x); a plot ``WIDTH`` wide, 1 at its top."""
    values = [response.start, *(piece.value for piece in response.pieces)]
    known = [min(max(value, 0.0), 1.0) for value in values if value is not None]
    step = WIDTH / max(1, len(known) - 1)
    return " ".join(f"{number * step:.4g},{HEIGHT * (1 - value):.3g}" for number, value in enumerate(known))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE - 1]}…"


FILTERS = {"level": level, "headline": headline, "line": line, "is_short": is_short, "curve": curve}
