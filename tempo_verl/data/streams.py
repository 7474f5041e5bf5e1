# SPDX-License-Identifier: Apache-2.0
"""The two prompt streams of a TEMPO run, labelled and unlabelled.

Each has its own files, batch size, shuffling and epochs. Answers of unlabelled rows are taken away here, where the rows
are read: what leaves an unlabelled stream holds no label, so nothing behind it can train on one.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, SequentialSampler
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler

from tempo_verl.errors import UserError

# What an unlabelled row may carry on: the question and how to roll it out. Anything else could hold an answer, and
# verl's ``tools_kwargs`` and ``interaction_kwargs`` often do: tools that grade are created with the ground truth.
UNLABELED_FIELDS = frozenset(
    {
        "raw_prompt",
        "prompt",
        "data_source",
        "ability",
        "index",
        "agent_name",
        "dummy_tensor",
    }
)


@dataclass(frozen=True)
class Answer:
    """A monitoring answer of D_U: ``ground_truth`` and the verifier ``style`` it is checked with."""

    ground_truth: str
    style: str


class WithoutAnswers(Dataset):
    """A prompt dataset whose rows carry no answer.

    Args:
        rows: dataset of verl rows (``raw_prompt``, ``reward_model``, ...).
    """

    def __init__(self, rows: Dataset):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        kept = {name: value for name, value in row.items() if name in UNLABELED_FIELDS}
        kept["reward_model"] = {"style": (row.get("reward_model") or {}).get("style"), "ground_truth": None}
        kept["extra_info"] = {"index": row.get("index", index)}
        kept["row"] = torch.tensor([index])
        return kept

    def monitoring_answers(self) -> list[Answer | None]:
        """The answers in the file by row, for monitoring; ``None`` where there is none."""
        answers: list[Answer | None] = []
        for index in range(len(self)):
            reward_model = self._rows[index].get("reward_model") or {}
            truth = reward_model.get("ground_truth")
            answers.append(None if truth in (None, "") else Answer(str(truth), reward_model.get("style") or "math"))
        return answers


@dataclass
class Stream:
    """Endless batches of prompts from one dataset.

    Attributes:
        dataset: prompts.
        batch_size: prompts a batch; at most ``len(dataset)``, an incomplete last batch of an epoch is dropped.
        shuffle: reshuffle at every epoch.
        seed: of the shuffling.
        num_workers: of the data loader.
        epoch: passes begun, the first is 1; 0 before the first batch.

    Raises:
        UserError: the set has no whole batch, which after the checks of the files means that verl dropped rows.
    """

    dataset: Dataset
    batch_size: int
    shuffle: bool
    seed: int
    num_workers: int = 0
    epoch: int = field(default=0, init=False)

    def __post_init__(self):
        from verl.utils.dataset.rl_dataset import collate_fn

        questions = len(self.dataset)  # type: ignore[arg-type]
        if self.batch_size > questions:
            raise UserError(
                f"batch_size={self.batch_size} is larger than the set, which has {questions} questions now; lower it "
                "(data.filter_overlong_prompts=true drops prompts that are longer than data.max_prompt_length)"
            )
        if self.shuffle:
            sampler = RandomSampler(self.dataset, generator=torch.Generator().manual_seed(self.seed))
        else:
            sampler = SequentialSampler(self.dataset)
        self._loader = StatefulDataLoader(
            self.dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            drop_last=True,
            collate_fn=collate_fn,
        )
        self._batches = None

    def next_batch(self) -> dict[str, Any]:
        """The next ``batch_size`` prompts in verl's columns, each with a fresh ``uid``."""
        batch = next(self._batches, None) if self._batches is not None else None
        if batch is None:
            # A resumed position is consumed by the first iter(); if it was the end of an epoch, a new one begins.
            self._batches = iter(self._loader)
            batch = next(self._batches, None)
            if batch is None:
                self._batches = iter(self._loader)
                batch = next(self._batches)
            self.epoch += 1
        batch["uid"] = np.array([str(uuid.uuid4()) for _ in batch["raw_prompt"]], dtype=object)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Position in the data, and the epoch count."""
        return {"loader": self._loader.state_dict(), "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self._loader.load_state_dict(state["loader"])
        self.epoch = state["epoch"]
        # Taken before the first batch, a state has no pass to go on with.
        self._batches = iter(self._loader) if self.epoch else None


@dataclass
class Streams:
    """Both streams of a run, under the two methods verl calls to save and restore its data position."""

    labeled: Stream
    unlabeled: Stream | None

    def _present(self) -> dict[str, Stream]:
        return {name: stream for name, stream in vars(self).items() if stream is not None}

    def state_dict(self) -> dict[str, Any]:
        """States of the streams by name."""
        return {name: stream.state_dict() for name, stream in self._present().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the streams that this run has."""
        for name, stream in self._present().items():
            if name in state:
                stream.load_state_dict(state[name])
