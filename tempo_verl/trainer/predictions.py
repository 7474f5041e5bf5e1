# SPDX-License-Identifier: Apache-2.0
"""After the last round: answers to all of D_U, with the final policy and critic."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from tempo_verl.data.aside import calibration_rows
from tempo_verl.data.streams import Streams, WithoutAnswers, batch_of, row_of
from tempo_verl.data.validation import prompt_text
from tempo_verl.errors import UserError
from tempo_verl.evaluation.answers import write_predictions
from tempo_verl.evaluation.questions import Question, aligned, load_questions, question_of
from tempo_verl.evaluation.samples import Sample
from tempo_verl.evaluation.shown import Gallery, Trace, shown_file
from tempo_verl.methods import Method
from tempo_verl.trainer.batch import Samples, clear
from tempo_verl.trainer.log import Log
from tempo_verl.trainer.port import Port

logger = logging.getLogger(__name__)

BATCH = 2048  # samples drawn at a time: as many as a large round's, all of which the queue has to hold


class Predictions:
    """Answers every question of D_U's files at the end of a run; nothing where no file or no D_U is named.

    Raises:
        UserError: verl has left rows out and changed the others, so that they cannot be told apart.
    """

    def __init__(self, config: DictConfig, method: Method, streams: Streams):
        self._method, self._streams = method, streams
        self._longest = config.data.max_response_length
        self._questions: list[Question] = []
        self._of_rows: list[Question] = []
        files = method.settings.unlabeled.files
        if streams.unlabeled is None or method.settings.predictions.file is None or config.trainer.val_only:
            return
        field = "tempo.unlabeled.files"
        paths = [Path(path).expanduser() for path in ([files] if isinstance(files, str) else files)]
        allowed, setting = method.settings.verifier.allow, "tempo.verifier.allow=[NAME]"
        questions = load_questions(field, paths, with_answers=False, allowed=allowed, setting=setting)
        rows = streams.unlabeled.dataset
        texts = [prompt_text(field, str(files), row, rows[row]["raw_prompt"]) for row in range(len(rows))]
        of_rows = aligned(questions, texts)
        if of_rows is None:
            raise UserError(
                f"tempo.predictions.file: {len(questions) - len(rows)} rows of {field} were left out (data.filter_"
                "overlong_prompts), and the others cannot be told apart; set it to null, and use tempo-verl answer"
            )
        self._questions, self._of_rows = questions, of_rows

    def write(self, port: Port, number: int) -> tuple[list[Sample], list[Sample]]:
        """Sample D_U, and labelled questions for the calibration; write what ``tempo-verl answer`` would.

        Beside it, in ``shown_file``, are some responses for the report to show; they come from the same passes. A
        question whose row verl has left out is in the file, without an answer.

        Args:
            number: of the last round.

        Returns:
            The samples of D_U and of the labelled questions.
        """
        if not self._questions:
            return [], []
        settings, rows = self._method.settings, self._streams.unlabeled.dataset
        if not isinstance(rows, WithoutAnswers):  # a method that trains on answers; no prediction is to see one
            rows = WithoutAnswers(rows)
        gallery = Gallery(partial(port.tokenizer.decode, skip_special_tokens=True))
        samples = self._draw(port, number, "predictions", rows, dict(enumerate(self._of_rows)), gallery=gallery)
        labeled: list[Sample] = []
        most = settings.predictions.labeled
        if self._streams.labeled is not None and most:
            rows, source = self._streams.labeled.dataset, ("tempo.labeled.files", str(settings.labeled.files))
            asked = {row: _question(*source, row, rows[row]) for row in calibration_rows(self._method, len(rows))}
            title = "predictions: labelled questions"
            labeled = self._draw(port, number, title, rows, asked, verified=True, gallery=gallery)
        out = Path(settings.predictions.file)
        gallery.write(shown_file(out))  # first: where predictions are, nothing is done again
        lines = write_predictions(out, self._questions, samples, labeled, upper_bound=self._method.reads_answers)
        logger.warning("%s: %s", out, " ".join(lines))
        return samples, labeled

    def _draw(
        self,
        port: Port,
        number: int,
        title: str,
        rows: Dataset,
        questions: dict[int, Question],
        *,
        verified: bool = False,
        gallery: Gallery | None = None,
    ) -> list[Sample]:
        """n samples of each question, fewer where a rollout failed, by question and number.

        Args:
            title: of the progress bar.
            rows: the dataset that the questions are from.
            questions: by their row.
            verified: whether the rows have answers, and so verdicts.
            gallery: to show the samples to.
        """
        n = self._method.settings.predictions.n
        batches = math.ceil(len(questions) * n / BATCH)  # of one size: a small one could fail as a whole
        samples: list[Sample] = []
        for batch_rows in tqdm(np.array_split(list(questions), batches), desc=title):
            asked = {int(row): questions[int(row)] for row in batch_rows}
            uids = port.submit(batch_of(rows, list(asked), [f"predict-{index}" for index in asked]), number, n)
            (found,), _ = port.collect(number, uids)
            drawn = found.by_session()
            clear([found], but=drawn)
            if port.has_critic:
                port.sleep_engine()  # the critic needs its memory, as in a round
                drawn = port.balanced(drawn, 1, Log(), "predictions", "critic")
            samples += self._as_samples(port, drawn, asked, verified, gallery)
            drawn.clear()
            if port.has_critic:
                port.wake_engine()
        return sorted(samples, key=lambda sample: (sample.index, sample.sample))

    def _as_samples(
        self, port: Port, drawn: Samples, asked: dict[int, Question], verified: bool, gallery: Gallery | None
    ) -> list[Sample]:
        """What queue, reward manager and critic tell of each real row."""
        values: list[Any] = [None] * len(drawn)
        along = None
        if port.has_critic:
            along = port.values(drawn)
            values = self._method.probability(along, drawn.response_mask).tolist()
        known = all("pred" in info for info in drawn.reward_info)  # else another reward manager is in use
        columns = zip(
            drawn.meta.keys,
            drawn.real,
            drawn.reward_info,
            drawn.answers if known else [None] * len(drawn),
            map(port.reader(drawn), range(len(drawn))),
            drawn.response_lengths,
            values,
            strict=True,
        )
        samples = []
        for key, real, info, answer, response, length, value in columns:
            if not real:
                continue
            uid, sample, _ = key.split("_")
            question = asked[row_of(uid)]
            samples.append(
                Sample(
                    index=question.index,
                    id=question.id,
                    hash=question.hash,
                    data_source=question.data_source,
                    sample=int(sample),
                    seed=None,
                    response=response,
                    answer=answer,
                    correct=bool(info["acc"]) if verified else None,
                    formatted=bool(info.get("format")),
                    tokens=length,
                    truncated=length >= self._longest,
                    value=value,
                    error=info.get("verifier_error") or None,
                    style=question.style,
                )
            )
        if gallery is not None:
            gallery.look(samples, {question.index: question for question in asked.values()}, _tracer(drawn, along))
        return samples


def _tracer(drawn: Samples, values: Tensor | None) -> Callable[[int], Trace]:
    """Fetch tokens and values of one response: which of the real rows -> (T,) token ids, (T + 1,) values.

    Args:
        values: (B, T_i + 1); None without a critic.
    """
    real, along = np.flatnonzero(drawn.real), None if values is None else values.unbind()

    def trace(number: int) -> Trace:
        row = real[number]
        (token_ids,) = drawn.rows(np.array([row])).read("responses")["responses"].unbind()
        return token_ids.tolist(), None if along is None else along[row].tolist()

    return trace


def _question(field: str, files: str, index: int, row: dict) -> Question:
    """A question of D_L, whose answer may be known."""
    return question_of(index, row, prompt_text(field, files, index, row["prompt"]), with_answers=True)
