# SPDX-License-Identifier: Apache-2.0
"""When training is over: answers to all of D_U, by the rollout engine and the critic that the run still holds."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from tempo_verl.data.streams import WithoutAnswers, batch_of, row_of
from tempo_verl.data.validation import prompt_text
from tempo_verl.errors import UserError
from tempo_verl.evaluation.answers import write_predictions
from tempo_verl.evaluation.questions import Question, aligned, evenly_spaced, load_questions, question_of
from tempo_verl.evaluation.samples import Sample
from tempo_verl.trainer.queue import Samples, last_outputs, select

logger = logging.getLogger(__name__)

BATCH = 2048  # samples drawn at a time: as many as a large round's, all of which the queue has to hold


class Predictions:
    """The part of :class:`~tempo_verl.trainer.tempo_trainer.TempoTrainer` that comes after the last round."""

    def _read_questions(self) -> None:
        """What is asked at the end, in ``self._asked``: the questions of D_U's files, and which is which row.

        Raises:
            UserError: verl has left rows out and changed the others, so that they cannot be told apart.
        """
        settings = self.settings
        if not settings.uses_unlabeled or settings.predictions.file is None or self.config.trainer.val_only:
            self._asked = None
            return
        field, files = "tempo.unlabeled.files", settings.unlabeled.files
        paths = [Path(path).expanduser() for path in ([files] if isinstance(files, str) else files)]
        questions, rows = load_questions(field, paths, with_answers=False), self.streams.unlabeled.dataset
        texts = [prompt_text(field, str(files), row, rows[row]["raw_prompt"]) for row in range(len(rows))]
        of_rows = aligned(questions, texts)
        if of_rows is None:
            raise UserError(
                f"tempo.predictions.file: {len(questions) - len(rows)} rows of {field} were left out (data.filter_"
                "overlong_prompts), and the others cannot be told apart; set it to null, and use tempo-verl answer"
            )
        self._asked = questions, of_rows

    def _predict(self) -> None:
        """Sample D_U, and labelled questions for the calibration; write what ``tempo-verl answer`` would.

        A question whose row verl has left out is in the file, without an answer.
        """
        if self._asked is None:
            return
        questions, of_rows = self._asked
        rows = self.streams.unlabeled.dataset
        if not isinstance(rows, WithoutAnswers):  # method=oracle
            rows = WithoutAnswers(rows)
        samples = self._draw("predictions", rows, dict(enumerate(of_rows)))
        labeled: list[Sample] = []
        most = self.settings.predictions.labeled
        if self.streams.labeled is not None and most:
            rows, source = self.streams.labeled.dataset, ("tempo.labeled.files", str(self.settings.labeled.files))
            known = {row: _question(*source, row, rows[row]) for row in evenly_spaced(len(rows), most)}
            labeled = self._draw("predictions: labelled questions", rows, known, verified=True)
        out, oracle = Path(self.settings.predictions.file), self.settings.kind.reward == "verdict"
        said = write_predictions(out, questions, samples, labeled, upper_bound=oracle)
        logger.warning("%s: %s", out, " ".join(said))

    def _draw(
        self, title: str, rows: Dataset, questions: dict[int, Question], *, verified: bool = False
    ) -> list[Sample]:
        """n samples of each question, fewer where a rollout failed, by question and number.

        Args:
            title: what the progress bar says.
            rows: the dataset that the questions are from.
            questions: by their row.
            verified: whether the rows have answers, so that there are verdicts to tell.
        """
        n = self.settings.predictions.n
        batches = math.ceil(len(questions) * n / BATCH)  # of one size: a small one could fail as a whole
        samples: list[Sample] = []
        for batch_rows in tqdm(np.array_split(list(questions), batches), desc=title):
            asked = {int(row): questions[int(row)] for row in batch_rows}
            uids = self._submit(batch_of(rows, list(asked), [f"predict-{index}" for index in asked]), n=n)
            batch, _ = self.replay_buffer.sample(
                global_steps=self.global_steps, partition_id="train", batch_size=len(uids)
            )
            drawn = Samples(last_outputs(select(batch, uids)))
            self._clear_except(Samples(batch), drawn)
            if self.use_critic:
                self.checkpoint_manager.sleep_replicas()  # the critic needs their memory, as in a round
                drawn = self._balanced(drawn.meta, 1, {}, "predictions")
            samples += self._told(drawn, asked, verified)
            drawn.clear()
            if self.use_critic:
                self.checkpoint_manager.update_weights()
        return sorted(samples, key=lambda sample: (sample.index, sample.sample))

    def _told(self, drawn: Samples, asked: dict[int, Question], verified: bool) -> list[Sample]:
        """What the queue, the reward manager and the critic tell of each real row."""
        values: list[float | None] = [None] * len(drawn)
        if self.use_critic:
            values = self._judgement(drawn, self._values(drawn)).tolist()
        columns = zip(
            drawn.meta.keys,
            drawn.real,
            self._reward_info(drawn),
            self._responses(drawn),
            drawn.response_lengths,
            values,
            strict=True,
        )
        samples = []
        for key, real, info, response, length, value in columns:
            if not real:
                continue
            uid, number, _ = key.split("_")
            question = asked[row_of(uid)]
            samples.append(
                Sample(
                    index=question.index,
                    id=question.id,
                    hash=question.hash,
                    data_source=question.data_source,
                    sample=int(number),
                    seed=None,
                    response=response,
                    answer=info.get("pred") or None,
                    correct=bool(info["acc"]) if verified else None,
                    formatted=bool(info.get("format")),
                    tokens=length,
                    truncated=length >= self.config.data.max_response_length,
                    value=value,
                    error=info.get("verifier_error") or None,
                )
            )
        return samples


def _question(field: str, files: str, index: int, row: dict) -> Question:
    return question_of(index, row, prompt_text(field, files, index, row["prompt"]), with_answers=False)
