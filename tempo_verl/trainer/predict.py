# SPDX-License-Identifier: Apache-2.0
"""When training is over: answers to all of D_U, by the rollout engine and the critic that the run still holds."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import Dataset
from tqdm import tqdm

from tempo_verl.algo.advantage import final_value
from tempo_verl.data.streams import WithoutAnswers, batch_of, row_of
from tempo_verl.data.validation import prompt_text
from tempo_verl.evaluation.answers import write_predictions
from tempo_verl.evaluation.questions import Question, question_of
from tempo_verl.evaluation.samples import Sample
from tempo_verl.trainer.queue import Samples, last_outputs, select

logger = logging.getLogger(__name__)

BATCH = 2048  # samples drawn at a time: as many as a large round's, all of which the queue has to hold


class Predictions:
    """The part of :class:`~tempo_verl.trainer.tempo_trainer.TempoTrainer` that comes after the last round."""

    def fit(self, agent_loop_manager) -> None:
        """verl's loop over the rounds, and then ``tempo.predictions.file``."""
        super().fit(agent_loop_manager)
        if self.settings.uses_unlabeled and self.settings.predictions.file is not None:
            self._predict(Path(self.settings.predictions.file))

    def _predict(self, out: Path) -> None:
        """Sample D_U, and labelled questions for the calibration; write what ``tempo-verl answer`` would."""
        rows = self.streams.unlabeled.dataset
        if not isinstance(rows, WithoutAnswers):  # method=oracle
            rows = WithoutAnswers(rows)
        source = "tempo.unlabeled.files", str(self.settings.unlabeled.files)
        questions = [_question(*source, index, rows.named(index)) for index in range(len(rows))]
        samples = self._draw("predictions", rows, questions)
        labeled: list[Sample] = []
        most = self.settings.predictions.labeled
        if self.streams.labeled is not None and most:
            rows, source = self.streams.labeled.dataset, ("tempo.labeled.files", str(self.settings.labeled.files))
            spread = range(0, len(rows), math.ceil(len(rows) / most))
            known = [_question(*source, index, rows[index]) for index in spread]
            labeled = self._draw("predictions: labelled questions", rows, known, verified=True)
        said = write_predictions(out, questions, samples, labeled)
        logger.warning("%s: %s", out, " ".join(said))

    def _draw(
        self, title: str, rows: Dataset, questions: Sequence[Question], *, verified: bool = False
    ) -> list[Sample]:
        """n samples of each question, fewer where a rollout failed, by question and number.

        Args:
            title: what the progress bar says.
            rows: the dataset that the questions are from, ``Question.index`` being the row.
            verified: whether the rows have answers, so that there are verdicts to tell.
        """
        n = self.settings.predictions.n
        prompts = max(1, BATCH // n)
        samples: list[Sample] = []
        for start in tqdm(range(0, len(questions), prompts), desc=title):
            asked = {question.index: question for question in questions[start : start + prompts]}
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
            values = final_value(self._values(drawn), drawn.response_mask, self.settings.final_value).tolist()
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
