# SPDX-License-Identifier: Apache-2.0
"""The responses that a run keeps to be looked at: where the critic is deceived, and where it contradicts the vote.

Their number is bounded, whatever the size of the data, and so is what is kept of each, whatever its length.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tempo_verl.evaluation.answers import elect
from tempo_verl.evaluation.disagreement import candidates, in_question, score
from tempo_verl.evaluation.questions import Question
from tempo_verl.evaluation.samples import Sample, write_whole
from tempo_verl.evaluation.summary import by_question

# Questions of each kind: labelled ones with the response that is wrong and has the highest value, and with the one that
# is right and has the lowest; and those of D_U on which critic and vote disagree most, with up to two responses.
DECEIVED, UNDERRATED, DISPUTED = "deceived", "underrated", "disputed"
MOST = {DECEIVED: 8, UNDERRATED: 4, DISPUTED: 6}
PIECES = 400  # of a response: so many tokens one by one, longer ones in stretches of equal length
LONGEST = 400  # characters of a piece, beyond which its middle is left out: 40 tokens have about 160
BELIEVED = 0.5  # the critic takes a response for right from this value on
UNFINISHED = "\ufffd"  # what half a character is decoded as
CHARACTER = 4  # tokens that one character may take

Decode = Callable[[Sequence[int]], str]
# token ids of a response, and its values V(x), V(x, y_1), ..., V(x, y_1:T); None without a critic
Trace = tuple[Sequence[int], Sequence[float] | None]


@dataclass(frozen=True)
class Piece:
    """A stretch of a response's text, and the mean of V after each of its tokens; None without a critic."""

    text: str
    value: float | None


@dataclass(frozen=True)
class Shown:
    """One response to look at.

    Attributes:
        kind: ``deceived``, ``underrated`` or ``disputed``.
        score: by which it was chosen, the largest first: V, -V, or what a label would tell.
        index, id, data_source, question: as in a prediction.
        reference: the right answer, of a question of D_L; None of one of D_U.
        sample: its number among the question's samples.
        answer, correct, value, tokens, truncated: as in ``Sample``.
        votes: samples of the question that give the same answer, of ``samples``.
        start: V(x), before the first token; None without a critic.
        stretch: tokens of a piece; the last one may have fewer.
        pieces: at most ``PIECES``, in order.
    """

    kind: str
    score: float
    index: int
    id: str
    data_source: str
    question: str
    reference: str | None
    sample: int
    answer: str | None
    correct: bool | None
    value: float | None
    tokens: int
    truncated: bool
    votes: int
    samples: int
    start: float | None
    stretch: int
    pieces: list[Piece]


@dataclass
class Counts:
    """Labelled responses that were looked at: all, the wrong ones, and those of them that the critic believes."""

    questions: int = 0
    responses: int = 0
    wrong: int = 0
    believed: int = 0


@dataclass
class Gallery:
    """Chooses what to keep, one batch of samples after the other; a question's samples are in one batch.

    Args:
        decode: token ids to text.
    """

    decode: Decode
    labeled: Counts = field(init=False, default_factory=Counts)
    _kept: dict[str, list[list[Shown]]] = field(init=False, default_factory=lambda: {kind: [] for kind in MOST})

    def look(self, samples: Sequence[Sample], questions: Mapping[int, Question], trace: Callable[[int], Trace]) -> None:
        """Keep what is worth more than what is kept already.

        Args:
            samples: of whole questions.
            questions: by index; of D_L with their answers, if these are to be shown.
            trace: tokens and values of ``samples[number]``; asked for those that are kept.
        """
        numbers = {(sample.index, sample.sample): number for number, sample in enumerate(samples)}
        for group in by_question(samples):
            self._count(group)
            for kind, worth, chosen in _of_interest(group):
                kept = self._kept[kind]
                if len(kept) == MOST[kind] and worth <= kept[-1][0].score:
                    continue
                question = questions[group[0].index]
                kept.append(
                    [
                        _shown(kind, worth, question, one, group, trace(numbers[one.index, one.sample]), self.decode)
                        for one in chosen
                    ]
                )
                kept.sort(key=lambda responses: -responses[0].score)  # stable: of equals the earlier one stays
                del kept[MOST[kind] :]

    def write(self, path: Path) -> None:
        """One JSON object: ``labeled``, see :class:`Counts`, and ``responses``, a list of :class:`Shown`."""
        shown = [asdict(response) for kept in self._kept.values() for responses in kept for response in responses]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({"labeled": asdict(self.labeled), "responses": shown}, ensure_ascii=False) + "\n")

    def _count(self, group: Sequence[Sample]) -> None:
        if group[0].correct is None:
            return
        wrong = [sample for sample in group if _is_wrong(sample)]
        self.labeled.questions += 1
        self.labeled.responses += len(group)
        self.labeled.wrong += len(wrong)
        self.labeled.believed += sum(sample.value is not None and sample.value >= BELIEVED for sample in wrong)


def shown_file(predictions: Path) -> Path:
    """Where the responses to look at are kept: beside the predictions."""
    return predictions.with_suffix(".shown.json")


def pieces(decode: Decode, token_ids: Sequence[int], values: Sequence[float] | None) -> tuple[int, list[Piece]]:
    """A response in at most ``PIECES`` stretches.

    Args:
        token_ids: (T,).
        values: (T + 1,); None without a critic.

    Returns:
        tokens of a stretch, and the pieces; together their texts are the response, but for what is left out of long
        ones.
    """
    stretch = max(1, math.ceil(len(token_ids) / PIECES))
    found = []
    for number, text in enumerate(_texts(decode, token_ids, stretch)):
        after = values[1 + number * stretch : 1 + (number + 1) * stretch] if values is not None else ()
        found.append(Piece(_shortened(text), round(math.fsum(after) / len(after), 3) if after else None))
    return stretch, found


def _texts(decode: Decode, token_ids: Sequence[int], stretch: int) -> Iterator[str]:
    """The text that each stretch adds: each is decoded with the one before it, since spaces and characters may be
    spread over tokens. A character that is not complete comes with the stretch that completes it."""
    begin = told = 0
    for end in (*range(stretch, len(token_ids), stretch), len(token_ids)):
        text = decode(token_ids[begin:end])
        if text.endswith(UNFINISHED) and end - told < stretch + CHARACTER and end < len(token_ids):
            yield ""
            continue
        yield text[len(decode(token_ids[begin:told])) :]
        begin, told = told, end


def _shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]} […] {text[-half:]}"


def _of_interest(group: Sequence[Sample]) -> Iterator[tuple[str, float, list[Sample]]]:
    """(kind, what it is worth, responses) of one question's samples."""
    if group[0].correct is None:
        election = elect(group)
        valued = election.value is not None
        votes = [(str(answer), of.count, of.weight if valued else None) for answer, of in election.votes.items()]
        found = candidates(votes, len(group))
        if (worth := score(found)) > 0.0:
            yield DISPUTED, worth, [_best(group, candidate.answer) for candidate in in_question(found)]
        return
    known = [(sample.value, sample) for sample in group if sample.value is not None]
    wrong = [(value, sample) for value, sample in known if _is_wrong(sample)]
    right = [(value, sample) for value, sample in known if sample.correct]
    if wrong:
        value, sample = max(wrong, key=lambda pair: (pair[0], -pair[1].sample))
        yield DECEIVED, value, [sample]
    if right:
        value, sample = min(right, key=lambda pair: (pair[0], pair[1].sample))
        yield UNDERRATED, -value, [sample]


def _is_wrong(sample: Sample) -> bool:
    """By a verdict: not where the verifier has failed."""
    return sample.correct is False and sample.error is None


def _best(group: Sequence[Sample], answer: str) -> Sample:
    """Of the samples that gave an answer, the one with the highest value, the first among equals."""
    given = (sample for sample in group if sample.answer == answer)
    return max(given, key=lambda sample: (sample.value or 0.0, -sample.sample))


def _shown(
    kind: str, worth: float, question: Question, sample: Sample, group: Sequence[Sample], trace: Trace, decode: Decode
) -> Shown:
    token_ids, values = trace
    stretch, found = pieces(decode, token_ids, values)
    alike = [other for other in group if sample.answer is not None and other.answer == sample.answer]
    return Shown(
        kind=kind,
        score=worth,
        index=sample.index,
        id=sample.id,
        data_source=sample.data_source,
        question=question.text,
        reference=question.ground_truth,
        sample=sample.sample,
        answer=sample.answer,
        correct=sample.correct,
        value=sample.value,
        tokens=sample.tokens,
        truncated=sample.truncated,
        votes=len(alike),
        samples=len(group),
        start=None if values is None else round(values[0], 3),
        stretch=stretch,
        pieces=found,
    )
