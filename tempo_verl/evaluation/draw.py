# SPDX-License-Identifier: Apache-2.0
"""Draws n samples of every question into a folder, batch by batch; what is there already is not drawn again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from tempo_verl.console import bar_columns
from tempo_verl.errors import UserError
from tempo_verl.evaluation.critic import Critic, check_critic
from tempo_verl.evaluation.engines import Engine, Sampling, first_line, load_engine
from tempo_verl.evaluation.questions import Question, digest, prompt_ids
from tempo_verl.evaluation.samples import Sample, SampleStore, spelled
from tempo_verl.rewards import Score, score

T = TypeVar("T")


@dataclass(frozen=True)
class _Task:
    """One sample to draw."""

    question: Question
    prompt: tuple[int, ...]
    sample: int
    seed: int


class Sampler:
    """Draws samples with one policy and, if there is one, its critic; they are loaded once, when first needed.

    Args:
        sampling: how.
        console: for the progress bars.
    """

    def __init__(self, sampling: Sampling, console: Console):
        self.sampling, self.console = sampling, console

    def draw(
        self, questions: Sequence[Question], files: Sequence[Path], folder: Path, title: str = "sampling"
    ) -> list[Sample]:
        """n samples of each question, in their order, :func:`~tempo_verl.evaluation.samples.spelled`.

        Args:
            questions: of ``load_questions(files)``, all or some.
            folder: where the samples are kept, and looked for.
            title: what the progress bar says.

        Raises:
            UserError: samples made with other settings, or a model, critic or engine that cannot be used; before
                anything large is loaded or anything written.
        """
        settings = self.sampling.record() | {
            "data": [str(file.resolve()) for file in files],
            "data_sha256": digest(files),
            "questions": len(questions),
            "verified": any(question.ground_truth is not None for question in questions),
        }
        store = SampleStore(folder, settings)
        wanted = [(question, number) for question in questions for number in range(self.sampling.n)]
        missing = [(question, number) for question, number in wanted if (question.index, number) not in store.samples]
        if missing:
            self._draw(questions, missing, store, title)
        return spelled([store.samples[question.index, number] for question, number in wanted])

    def _draw(
        self, questions: Sequence[Question], missing: Sequence[tuple[Question, int]], store: SampleStore, title: str
    ) -> None:
        with self.console.status(f"{title}: loading the models"):
            prompts = dict(zip((question.index for question in questions), self._prompts(questions), strict=True))
            engine, _ = self._engine, self._critic
        tasks = [
            _Task(question, prompts[question.index], number, sample_seed(self.sampling.seed, question.index, number))
            for question, number in missing
        ]
        if store.samples:
            there = f"{title}: {len(store.samples)} samples are in {store.folder} already, {len(tasks)} are missing"
            self.console.print(Text(there), soft_wrap=True)
        store.create()
        with Progress(*bar_columns(), console=self.console) as progress, ThreadPoolExecutor() as threads:
            total = len(questions) * self.sampling.n
            bar = progress.add_task(title, total=total, completed=total - len(tasks))
            for batch in batches(tasks, engine.batch_size):
                store.append(self._draw_batch(batch, threads))
                progress.advance(bar, len(batch))

    def _draw_batch(self, batch: Sequence[_Task], threads: ThreadPoolExecutor) -> list[Sample]:
        prompts, questions = [task.prompt for task in batch], [task.question for task in batch]
        completions = self._engine.generate(prompts, [task.seed for task in batch])
        ids = [completion.token_ids for completion in completions]
        responses = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        scores = threads.map(self._score, responses, questions)
        values = [None] * len(batch) if self._critic is None else self._critic.final_values(prompts, ids)
        return [
            Sample(
                index=task.question.index,
                id=task.question.id,
                hash=task.question.hash,
                data_source=task.question.data_source,
                sample=task.sample,
                seed=task.seed,
                response=response,
                answer=verdict.answer,
                correct=None if task.question.ground_truth is None else verdict.correct,
                formatted=verdict.formatted,
                tokens=len(completion.token_ids),
                truncated=completion.truncated,
                value=value,
                error=verdict.error,
                style=task.question.style,
            )
            for task, completion, response, verdict, value in zip(
                batch, completions, responses, scores, values, strict=True
            )
        ]

    def _score(self, response: str, question: Question) -> Score:
        return score(
            response,
            question.ground_truth,
            question.style,
            options=question.options,
            read_unfinished=self.sampling.read_unfinished,
        )

    @cached_property
    def _config(self) -> Any:
        return self._read("AutoConfig")

    @cached_property
    def _tokenizer(self) -> Any:
        return self._read("AutoTokenizer")

    @cached_property
    def _engine(self) -> Engine:
        if self.sampling.critic is not None:  # in vain if that one is of no use
            check_critic(self.sampling.critic, self.sampling.model, self._tokenizer, self.sampling.trust_remote_code)
        return load_engine(self.sampling, self._tokenizer)

    @cached_property
    def _critic(self) -> Critic | None:
        options = self.sampling
        if options.critic is None:
            return None
        return Critic(options.critic, options.final_value, options.trust_remote_code)

    def _read(self, auto_class: str) -> Any:
        import transformers

        options = self.sampling
        try:
            return getattr(transformers, auto_class).from_pretrained(
                options.model, trust_remote_code=options.trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"{options.model}: cannot be read ({first_line(error)}); give a Hugging Face model"
            ) from error

    def _prompts(self, questions: Sequence[Question]) -> list[tuple[int, ...]]:
        """Each question's prompt, which with its response must fit into the model."""
        options = self.sampling
        prompts = prompt_ids(
            questions,
            self._tokenizer,
            self._config.model_type,
            name=options.model,
            chat_template_kwargs=options.chat_template_kwargs,
            max_prompt_tokens=options.max_prompt_tokens,
        )
        text = self._config.get_text_config()
        positions = getattr(text, "max_position_embeddings", None)
        scaled = (getattr(text, "rope_parameters", None) or {}).get("rope_type", "default") != "default"
        longest = max(map(len, prompts))
        if positions is not None and not scaled and longest + options.max_tokens > positions:
            raise UserError(
                f"--max-tokens={options.max_tokens}: with prompts of up to {longest} tokens that is more than the "
                f"{positions} positions of {options.model}; set it to at most {positions - longest}"
            )
        return prompts


def batches(tasks: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """Parts of up to ``most``; the first are smaller, so that an interruption soon loses little."""
    start, size = 0, max(most // 8, 1)
    while start < len(tasks):
        yield tasks[start : start + size]
        start, size = start + size, min(2 * size, most)


def sample_seed(seed: int, index: int, sample: int) -> int:
    """The 32-bit seed of one sample's random stream, independent of the batches it may be drawn in."""
    return int(np.random.SeedSequence([seed, index, sample]).generate_state(1)[0])
