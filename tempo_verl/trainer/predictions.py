# SPDX-License-Identifier: Apache-2.0
"""Answers to all of D_U: after the last round, and before the first, to tell whether training was worth it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from tempo_verl.config.draws import equal_samples, samples_of_rounds
from tempo_verl.data.aside import calibration_rows
from tempo_verl.data.streams import Streams, WithoutAnswers, batch_of, row_of
from tempo_verl.data.validation import prompt_text
from tempo_verl.errors import UserError
from tempo_verl.evaluation.answers import predict, write_predictions
from tempo_verl.evaluation.engines import fingerprint
from tempo_verl.evaluation.equal_cost import before_file, compare, comparison_file, told, write_comparison
from tempo_verl.evaluation.judged import judge, judged_file, write_judged
from tempo_verl.evaluation.questions import Question, aligned, digest, load_questions, question_of
from tempo_verl.evaluation.samples import Sample, sample_folders, spelled, write_samples, written_samples
from tempo_verl.evaluation.shown import Gallery, Trace, shown_file
from tempo_verl.methods import Method
from tempo_verl.trainer.batch import Samples, clear
from tempo_verl.trainer.log import Log
from tempo_verl.trainer.port import Port

logger = logging.getLogger(__name__)

BATCH = 2048  # samples drawn at a time: as many as a large round's, all of which the queue has to hold


class Predictions:
    """Answers every question of D_U's files, at the end of a run and before it; nothing without a file or a D_U.

    Args:
        judge: gives verdicts on responses to rows of D_U, see ``Monitor.judge``; asked when the run is over.

    Raises:
        UserError: verl has left rows out and changed the others, so that they cannot be told apart.
    """

    def __init__(
        self,
        config: DictConfig,
        method: Method,
        streams: Streams,
        judge: Callable[[Sequence[int], Sequence[str]], list[bool | None]],
    ):
        self._config, self._method, self._streams, self._judge = config, method, streams, judge
        self._longest = config.data.max_response_length
        self._questions: list[Question] = []
        self._of_rows: list[Question] = []
        self._digest = ""
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
        self._questions, self._of_rows, self._digest = questions, of_rows, digest(paths)
        self._out = Path(method.settings.predictions.file)
        self._before = before_file(self._out)
        self._samples, self._samples_before = (sample_folders(out)[0] for out in (self._out, self._before))

    def before(self, port: Port, number: int) -> list[str]:
        """Let the policy and critic that the run starts with answer D_U (``tempo.predictions.before``).

        What this run has drawn before it was interrupted is not drawn again. A run that goes on from a later round
        cannot draw it any more.

        Args:
            number: of the next round.

        Returns:
            What whoever started the run should know, a line each.
        """
        if self._questions and number == 1:  # of an earlier run in this folder
            comparison_file(self._out).unlink(missing_ok=True)
        n = self._number_before()
        if not n:
            return []
        drawn_with, written = self._drawn_with(n), written_samples(self._samples_before)
        if number > 1:
            if written is not None and written[0]["data_sha256"] == drawn_with["data_sha256"]:
                return []
            return [
                f"the run goes on from round {number - 1} and has no answers of the policy that it started with "
                f"({self._before}), so it will not tell what sampling more would have given"
            ]
        if written is not None and written[0].items() >= drawn_with.items():
            return []
        begun = time.monotonic()
        samples = self._draw(port, number, "predictions before round 1", *self._asked(), n)
        drawn_with["seconds"] = round(time.monotonic() - begun, 1)
        write_predictions(self._before, predict(self._questions, samples)[0])
        write_samples(self._samples_before, drawn_with, samples)
        return []

    def _number_before(self) -> int:
        """Samples a question before the first round; 0: none."""
        asked = self._method.settings.predictions.before
        if not self._questions or not asked:
            return 0
        equal = self._equal(self._method.settings.rounds)
        return equal if asked == "equal" else min(int(asked), equal)

    def _equal(self, rounds: int) -> int:
        """Samples a question that so many rounds, and the answers after them, are worth."""
        drawn = samples_of_rounds(
            self._method,
            self._config.actor_rollout_ref.rollout.n,
            rounds,
            has_labeled=self._streams.labeled is not None,
        )
        return equal_samples(drawn, len(self._of_rows), self._method.settings.predictions.n)

    def _drawn_with(self, n: int) -> dict[str, Any]:
        """All that the starting policy's samples depend on."""
        rollout, data = self._config.actor_rollout_ref.rollout, self._config.data
        settings: dict[str, Any] = {"n": n, "data_sha256": self._digest}
        models = {"model": self._config.actor_rollout_ref.model.path}
        if self._config.critic.enable:
            models["critic"] = self._config.critic.model.path
        for role, path in models.items():
            print_ = fingerprint(Path(path)) if Path(path).is_dir() else None
            settings |= {role: str(path), f"{role}_fingerprint": print_}
        settings |= {name: rollout[name] for name in ("temperature", "top_p", "top_k")}
        settings |= {name: data[name] for name in ("max_prompt_length", "max_response_length")}
        return settings | {"final_value": self._method.settings.final_value}

    def _asked(self) -> tuple[Dataset, dict[int, Question]]:
        """The rows of D_U without their answers, and their questions."""
        rows = self._streams.unlabeled.dataset
        if not isinstance(rows, WithoutAnswers):  # a method that trains on answers; no prediction is to see one
            rows = WithoutAnswers(rows)
        return rows, dict(enumerate(self._of_rows))

    def write(self, port: Port, number: int) -> tuple[list[Sample], list[Sample]]:
        """Sample D_U, and labelled questions for the calibration; write what ``tempo-verl answer`` would.

        Beside it, in ``shown_file``, are some responses for the report to show; they come from the same passes. A
        question whose row verl has left out is in the file, without an answer.

        Args:
            number: of the round that would come next.

        Returns:
            The samples of D_U and of the labelled questions.
        """
        if not self._questions:
            return [], []
        settings = self._method.settings
        n = settings.predictions.n
        gallery = Gallery(partial(port.tokenizer.decode, skip_special_tokens=True))
        samples = self._draw(port, number, "predictions", *self._asked(), n, gallery=gallery)
        labeled: list[Sample] = []
        most = settings.predictions.labeled
        if self._streams.labeled is not None and most:
            rows, source = self._streams.labeled.dataset, ("tempo.labeled.files", str(settings.labeled.files))
            asked = {row: _question(*source, row, rows[row]) for row in calibration_rows(self._method, len(rows))}
            title = "predictions: labelled questions"
            labeled = self._draw(port, number, title, rows, asked, n, verified=True, gallery=gallery)
        gallery.write(shown_file(self._out))
        self._compare(samples, number - 1)
        predictions, lines = predict(self._questions, samples, labeled, upper_bound=self._method.reads_answers)
        judged = judge(predictions, self._verdicts)
        judged_file(self._out).unlink(missing_ok=True)  # of an earlier end of this run
        if judged is not None:
            write_judged(judged_file(self._out), judged)
        write_predictions(self._out, predictions)  # last: a run that has this file has nothing left to do
        logger.warning("%s: %s", self._out, " ".join(lines))
        return samples, labeled

    def _compare(self, samples: list[Sample], rounds: int) -> None:
        """Tell whether training was worth it, if the starting policy was asked."""
        written = written_samples(self._samples_before) if self._number_before() else None
        if written is None or written[0]["data_sha256"] != self._digest:
            return
        n = self._method.settings.predictions.n
        write_samples(self._samples, {"n": n, "data_sha256": written[0]["data_sha256"]}, samples)
        compared = {
            "rounds": rounds,
            "equal": self._equal(rounds),
            "upper_bound": self._method.reads_answers,
            "seconds_before": written[0]["seconds"],
            **compare(self._judged(written[1]), self._judged(samples), (written[0]["n"], n)),
        }
        write_comparison(comparison_file(self._out), compared)
        logger.warning("%s: %s", comparison_file(self._out), "; ".join(told(compared)))

    def _judged(self, samples: Sequence[Sample]) -> list[Sample]:
        """With verdicts, where D_U's file has answers to watch the run by."""
        verdicts = self._verdicts([sample.index for sample in samples], [sample.response for sample in samples])
        return [replace(sample, correct=verdict) for sample, verdict in zip(samples, verdicts, strict=True)]

    def _verdicts(self, indices: Sequence[int], responses: Sequence[str]) -> list[bool | None]:
        """On responses to questions of D_U, for whoever watches the run."""
        row_of_question = {question.index: row for row, question in enumerate(self._of_rows)}
        return self._judge([row_of_question[index] for index in indices], responses)

    def _draw(
        self,
        port: Port,
        number: int,
        title: str,
        rows: Dataset,
        questions: dict[int, Question],
        n: int,
        *,
        verified: bool = False,
        gallery: Gallery | None = None,
    ) -> list[Sample]:
        """n samples of each question, fewer where a rollout failed, by question and number.

        Args:
            title: of the progress bar.
            rows: the dataset that the questions are from.
            questions: by their row.
            n: more than ``BATCH`` are drawn in several passes over the questions.
            verified: whether the rows have answers, and so verdicts.
            gallery: to show the samples to.
        """
        passes = [min(BATCH, n - first) for first in range(0, n, BATCH)]
        samples: list[Sample] = []
        with tqdm(total=len(questions) * n, desc=title) as bar:
            for turn, each in enumerate(passes):
                batches = math.ceil(len(questions) * each / BATCH)  # of one size: a small one could fail as a whole
                for batch_rows in np.array_split(list(questions), min(batches, len(questions))):
                    asked = {int(row): questions[int(row)] for row in batch_rows}
                    shown = gallery if len(passes) == 1 else None  # it judges a question by all of its samples
                    drawn = self._draw_batch(port, number, rows, asked, each, verified, shown)
                    samples += [replace(sample, sample=turn * BATCH + sample.sample) for sample in drawn]
                    bar.update(len(asked) * each)
        if len(passes) > 1:
            samples = spelled(samples)
        return sorted(samples, key=lambda sample: (sample.index, sample.sample))

    def _draw_batch(
        self,
        port: Port,
        number: int,
        rows: Dataset,
        asked: dict[int, Question],
        n: int,
        verified: bool,
        gallery: Gallery | None,
    ) -> list[Sample]:
        uids = port.submit(batch_of(rows, list(asked), [f"predict-{index}" for index in asked]), number, n)
        (found,), _ = port.collect(number, uids)
        drawn = found.by_session()
        clear([found], but=drawn)
        if port.has_critic:
            port.sleep_engine()  # the critic needs its memory, as in a round
            drawn = port.balanced(drawn, 1, Log(), "predictions", "critic")
        samples = self._as_samples(port, drawn, asked, verified, gallery)
        drawn.clear()
        if port.has_critic:
            port.wake_engine(number - 1)  # the same policy, which goes on with its random numbers
        return samples

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
