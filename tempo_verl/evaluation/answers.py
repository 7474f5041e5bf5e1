# SPDX-License-Identifier: Apache-2.0
"""``tempo-verl answer``: one answer a question by the vote of its samples, and how likely it is right."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tempo_verl.algo.calibration import FEWEST_LABELED
from tempo_verl.algo.evaluation import Votes, majority_vote, tally, vote_weights
from tempo_verl.data.aside import evenly_spaced
from tempo_verl.data.validation import check_disjoint, read_questions
from tempo_verl.errors import UserError
from tempo_verl.evaluation.draw import Sampler
from tempo_verl.evaluation.engines import Sampling
from tempo_verl.evaluation.questions import Question, digest, load_questions
from tempo_verl.evaluation.samples import Sample, read_samples, sample_folders, write_whole
from tempo_verl.evaluation.summary import by_question, values_of

# Settings that labelled samples must share with those they calibrate.
SHARED = (
    "model", "model_fingerprint", "critic", "critic_fingerprint", "n", "temperature", "top_p", "max_tokens",
    "final_value", "chat_template_kwargs", "read_unfinished",
)  # fmt: skip


@dataclass(frozen=True)
class Election:
    """The vote of one question's samples, weighted by the critic where there is one.

    Attributes:
        answer: the winner; None if no sample gave an answer.
        majority: the winner without weights.
        votes: by answer, the winner first.
        share: the winner's share of the weight of all samples.
        value: mean weight (critic value in [0, 1]) of the samples that gave it; None without a critic.
        shown: of these, the one with the highest value, the first among equals.
    """

    answer: str | None
    majority: str | None
    votes: dict[Any, Votes]
    share: float
    value: float | None
    shown: Sample | None

    @property
    def score(self) -> float:
        """The probability that the answer is right as the critic says it, or the vote share without one."""
        return self.share if self.value is None else self.value

    @property
    def features(self) -> list[float]:
        """What a calibrated probability is made of."""
        return [self.share] if self.value is None else [self.share, self.value]


def elect(samples: Sequence[Sample]) -> Election:
    """Vote over one question's samples."""
    answers, values = [sample.answer for sample in samples], values_of(samples)
    weights = [1.0] * len(samples) if values is None else vote_weights(values)
    votes = tally(answers, weights)
    winner = next(iter(votes), None)
    if winner is None:
        return Election(None, None, votes, 0.0, None if values is None else 0.0, None)
    won, total = votes[winner], sum(weights)
    return Election(
        answer=str(winner),
        majority=str(majority_vote(answers)),
        votes=votes,
        share=won.weight / total if total > 0 else won.count / len(samples),
        value=None if values is None else won.weight / won.count,
        shown=max(
            (sample for sample in samples if sample.answer == winner),
            key=lambda sample: (sample.value or 0.0, -sample.sample),
        ),
    )


class Calibrator:
    """P(the elected answer is right), by logistic regression (Platt 1999) on the features of labelled elections.

    A feature that would lower the probability as it rises is left out: few labelled questions can make it seem so.

    Args:
        samples: of labelled questions, drawn as those to calibrate.

    Raises:
        ValueError: too few questions have a verdict and an answer, all of them are right, or all wrong, or no feature
            raises the probability.
    """

    def __init__(self, samples: Sequence[Sample]):
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        features, right = [], []
        for group in by_question(samples):
            election = elect(group)
            if election.shown is None or election.shown.correct is None:
                continue
            features.append(election.features)
            right.append(any(sample.correct for sample in group if sample.answer == election.answer))
        self.questions = len(right)
        if self.questions < FEWEST_LABELED:
            raise ValueError(f"only {self.questions} labelled questions have an answer, {FEWEST_LABELED} are needed")
        if len(set(right)) == 1:
            raise ValueError(
                f"all {self.questions} labelled questions were answered {'right' if right[0] else 'wrong'}"
            )
        known = np.array(features)
        self._used = np.arange(known.shape[1])
        while len(self._used):
            self._model = make_pipeline(StandardScaler(), LogisticRegression()).fit(known[:, self._used], right)
            rises = self._model[-1].coef_[0] >= 0
            if rises.all():
                return
            self._used = self._used[rises]
        raise ValueError(
            f"the answers to {self.questions} labelled questions are right the less, the surer the vote is"
        )

    def probability(self, election: Election) -> float:
        return float(self._model.predict_proba(np.array([election.features])[:, self._used])[0, 1])


def predict(
    questions: Sequence[Question],
    samples: Sequence[Sample],
    labeled: Sequence[Sample] = (),
    *,
    upper_bound: bool = False,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Of each question its answer, how likely that is right, the votes, and the sample to show.

    ``probability`` is the calibrated one where ``calibrated`` is true. Else it is, by ``basis``, the mean critic value
    of the samples that gave the answer, or their share. ``prompt`` and ``style`` are the chat and the verifier of the
    question. No ground truth of ``questions`` is looked at.

    Args:
        questions: those to answer.
        samples: n of each, with critic values or without; a question that has none gets no answer.
        labeled: samples of labelled questions, drawn alike, to calibrate the probabilities on.
        upper_bound: the policy was trained on the answers of ``questions``; each line says so.

    Returns:
        The predictions, JSON objects, and what to tell about them, a line each.
    """
    calibrator, said = None, []
    if labeled:
        try:
            calibrator = Calibrator(labeled)
            said.append(f"probabilities are calibrated on {calibrator.questions} labelled questions.")
        except ValueError as error:
            said.append(f"probabilities are not calibrated: {error}.")
    else:
        said.append("probabilities are not calibrated: no labelled questions were given.")
    groups = {group[0].index: group for group in by_question(samples)}
    predictions = [_prediction(question, groups.get(question.index, []), calibrator) for question in questions]
    if upper_bound:
        predictions = [prediction | {"upper_bound": True} for prediction in predictions]
        said.append("upper_bound: the policy was trained on the answers of these very questions.")
    if unanswered := sum(prediction["answer"] is None for prediction in predictions):
        said.append(f"{unanswered} of {len(predictions)} questions have no answer: no sample gave one.")
    return predictions, said


def write_predictions(out: Path, predictions: Sequence[Mapping[str, Any]]) -> None:
    """Write one JSON line a question."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, "".join(json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions))


def _prediction(question: Question, samples: Sequence[Sample], calibrator: Calibrator | None) -> dict[str, Any]:
    election = elect(samples)
    probability: float | None = None
    if election.answer is not None:
        probability = election.score if calibrator is None else calibrator.probability(election)
    shown = election.shown
    return {
        "index": question.index,
        "id": question.id,
        "data_source": question.data_source,
        "question": question.text,
        "prompt": _chat(question),
        "style": question.style,
        "answer": election.answer,
        "majority": election.majority,
        "probability": probability,
        "calibrated": calibrator is not None,
        "basis": "vote share" if election.value is None else "critic value",
        "samples": len(samples),
        "votes": {
            answer: {"count": votes.count} if election.value is None else asdict(votes)
            for answer, votes in election.votes.items()
        },
        "rationale": shown and {"sample": shown.sample, "value": shown.value, "response": shown.response},
    }


def _chat(question: Question) -> list[dict[str, Any]] | None:
    """The messages of a question; None if there is something else than text in them, such as a picture."""
    text = all(isinstance(message, dict) and isinstance(message.get("content"), str) for message in question.messages)
    return question.messages if text else None


def answer(
    sampling: Sampling,
    files: Sequence[Path],
    out: Path,
    console: Console,
    *,
    labeled: Sequence[Path] = (),
    limit: int | None = None,
    labeled_limit: int = 256,
) -> list[str]:
    """Sample the questions, vote, and write ``out``.

    The samples stay beside it, in ``*.samples`` and ``*.labeled``: the same call goes on from them after an
    interruption, and draws none where all are there.

    Args:
        files: the questions; a ground truth in them is taken away as they are read.
        labeled: files of labelled questions, or one folder of ``tempo-verl evaluate`` on them, to calibrate on.
            Questions that the critic was trained on make probabilities too high.
        limit: only so many questions, the first.
        labeled_limit: only so many labelled questions, spread over their files.

    Returns:
        What to tell about the file, a line each.

    Raises:
        UserError: as ``load_questions`` and ``Sampler.draw``; or labelled questions that are among those to answer,
            have no ground truths, or were sampled otherwise.
    """
    questions = load_questions("--data", files, with_answers=False, limit=limit, allowed=sampling.allowed)
    rollouts: Sequence[Sample] = ()
    known: Sequence[Question] = ()
    if labeled and labeled[0].is_dir():
        rollouts = _labeled_samples(labeled, questions, sampling.record())
    elif labeled:
        known_texts = read_questions("--labeled", list(map(str, labeled)), needs_answers=True)
        check_disjoint(known_texts, read_questions("--data", list(map(str, files)), needs_answers=False))
        known = load_questions("--labeled", labeled, with_answers=True, allowed=sampling.allowed)
        known = [known[row] for row in evenly_spaced(len(known), labeled_limit)]
    sampler = Sampler(sampling, console)
    own, other = sample_folders(out)
    samples = sampler.draw(questions, files, own, "sampling the questions")
    if known:
        rollouts = sampler.draw(known, labeled, other, "sampling labelled questions")
    predictions, said = predict(questions, samples, rollouts)
    write_predictions(out, predictions)
    return said


def answer_from_samples(
    folder: Path,
    out: Path,
    *,
    files: Sequence[Path] = (),
    labeled: Sequence[Path] = (),
    allowed: Collection[str] = (),
) -> list[str]:
    """As :func:`answer`, from the samples of a finished ``tempo-verl evaluate``; its verdicts are not looked at.

    Args:
        folder: of the evaluation.
        files: its questions, where they no longer are where they were.
        labeled: one folder of an evaluation on labelled questions, to calibrate on; or none.
        allowed: as in ``load_questions``.

    Raises:
        UserError: no finished evaluation, other questions, or labelled samples drawn otherwise or of these questions.
    """
    settings, samples = read_samples(folder)
    files = files or [Path(file) for file in settings["data"]]
    questions = load_questions("--data", files, with_answers=False, limit=settings["questions"], allowed=allowed)
    if digest(files) != settings["data_sha256"]:
        raise UserError(
            f"--data={', '.join(map(str, files))}: not the questions that {folder} was sampled on; name those"
        )
    rollouts = _labeled_samples(labeled, questions, settings) if labeled else ()
    predictions, said = predict(questions, samples, rollouts)
    write_predictions(out, predictions)
    return said


def _labeled_samples(
    labeled: Sequence[Path], questions: Sequence[Question], settings: Mapping[str, Any]
) -> list[Sample]:
    """The samples of an evaluation on other questions, which must have been drawn with these settings."""
    folder = labeled[0]
    if len(labeled) > 1 or not folder.is_dir():
        raise UserError(f"--labeled={', '.join(map(str, labeled))}: give one folder of tempo-verl evaluate")
    earlier, samples = read_samples(folder)
    for name in SHARED:
        if earlier[name] != settings[name]:
            raise UserError(
                f"--labeled={folder}: sampled with {name}={earlier[name]!r:.100}, not {settings[name]!r:.100}; "
                "sample both alike"
            )
    shared = {question.hash for question in questions} & {sample.hash for sample in samples}
    if shared:
        raise UserError(
            f"--labeled={folder}: {len(shared)} of its questions are among those to answer; evaluate on others"
        )
    return samples
