# SPDX-License-Identifier: Apache-2.0
"""The two prompt streams of a TEMPO run, labelled and unlabelled.

Each has its own files, batch size, order and epochs. Answers of unlabelled rows are taken away here, where the rows are
read: what leaves an unlabelled stream holds no label, so nothing behind it can train on one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from tempo_verl.data.aside import rows_aside
from tempo_verl.errors import UserError
from tempo_verl.rewards import check_allowed, options_of, style_of

if TYPE_CHECKING:
    from tempo_verl.methods import Method

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

UNKNOWN = 0.25  # uncertainty p (1 - p) of a question that the critic has not judged yet: the greatest there is


@dataclass(frozen=True)
class Answer:
    """A monitoring answer of D_U: ``ground_truth``, the verifier ``style`` it is checked with, its ``options``."""

    ground_truth: str
    style: str
    options: list[str] | None = None


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
        if options := options_of(row.get("extra_info") or {}):
            kept["extra_info"]["options"] = options
        return kept

    def monitoring_answers(self) -> list[Answer | None]:
        """The answers in the file by row, for monitoring; ``None`` where there is none."""
        answers: list[Answer | None] = []
        for index in range(len(self)):
            row = self._rows[index]
            reward_model = row.get("reward_model") or {}
            truth = reward_model.get("ground_truth")
            style = style_of(reward_model.get("style"), row.get("data_source"))
            options = options_of(row.get("extra_info") or {})
            answers.append(None if truth in (None, "") else Answer(str(truth), style, options))
        return answers


def row_of(uid: str) -> int:
    """Row in its dataset of the prompt that a :class:`Stream` gave this uid."""
    return int(uid.rsplit("-", 1)[-1])


def batch_of(dataset: Dataset, rows: Sequence[int], uids: Sequence[str]) -> dict[str, Any]:
    """Rows of a prompt dataset in verl's columns, with their ``uid``."""
    from verl.utils.dataset.rl_dataset import collate_fn

    return collate_fn([dataset[row] for row in rows]) | {"uid": np.array(uids, dtype=object)}


@dataclass
class Stream:
    """Endless batches of prompts from one dataset, the same ones for the same seed.

    A question comes back only when all others have had their turn. A batch may end one pass and begin the next.

    Attributes:
        name: first part of the uids, ``{name}-{number of the draw}-{row}``.
        dataset: prompts.
        batch_size: prompts a batch.
        shuffle: another order in every pass.
        seed: of the order.
        repeat: how often a question may be in one batch; ``batch_size`` is at most ``repeat * len(dataset)``.
        focus: 0: every question in its turn; above 0, up to but not 1: the share of the drawing probability that is
            given to questions by how uncertain the critic is about them (see :meth:`observe`).
        without: rows that are never drawn.
        drawn: prompts handed out so far.

    Raises:
        UserError: the set is too small for a batch, which after the checks of the files means that verl dropped rows.
    """

    name: str
    dataset: Dataset
    batch_size: int
    shuffle: bool
    seed: int
    repeat: int = 1
    focus: float = 0.0
    without: frozenset[int] = frozenset()
    drawn: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._size = len(self.dataset)  # type: ignore[arg-type]
        self._rows = np.array([row for row in range(self._size) if row not in self.without])
        if self.batch_size > self.repeat * len(self._rows):
            raise UserError(
                f"tempo.{self.name}.batch_size={self.batch_size} is larger than the set, which has {len(self._rows)} "
                "questions now; lower it (data.filter_overlong_prompts=true drops prompts that are longer than "
                "data.max_prompt_length)"
            )
        self._passes = 0
        self._waiting: list[int] = []
        self._uncertainty = np.full(self._size, UNKNOWN)

    @property
    def epoch(self) -> float:
        """Prompts handed out so far for each question there is."""
        return self.drawn / len(self._rows)

    def next_batch(self) -> dict[str, Any]:
        """The next ``batch_size`` prompts in verl's columns, with their ``uid``."""
        rows = self._drawn_by_uncertainty() if self.focus else self._in_turn()
        uids = [f"{self.name}-{number}-{row}" for number, row in enumerate(rows, start=self.drawn)]
        self.drawn += len(rows)
        return batch_of(self.dataset, rows, uids)

    def observe(self, uids: Sequence[str], probabilities: Sequence[float]) -> None:
        """Tell the critic's probabilities that responses are right, one for each uid; read with ``focus`` only."""
        by_row: dict[int, list[float]] = {}
        for uid, probability in zip(uids, probabilities, strict=True):
            by_row.setdefault(row_of(uid), []).append(probability)
        for row, values in by_row.items():
            p = float(np.clip(np.mean(values), 0.0, 1.0))
            self._uncertainty[row] = p * (1 - p)

    def _in_turn(self) -> list[int]:
        rows: list[int] = []
        times: Counter[int] = Counter()
        while len(rows) < self.batch_size:
            position = next((at for at, row in enumerate(self._waiting) if times[row] < self.repeat), None)
            if position is None:
                self._waiting += self._next_pass()
                continue
            row = self._waiting.pop(position)
            times[row] += 1
            rows.append(row)
        return rows

    def _next_pass(self) -> list[int]:
        self._passes += 1
        if not self.shuffle:
            return self._rows.tolist()
        return np.random.default_rng([self.seed, self._passes]).permutation(self._rows).tolist()

    def _drawn_by_uncertainty(self) -> list[int]:
        uncertain = self._uncertainty.sum()
        shares = self._uncertainty / uncertain if uncertain > 0 else np.full(self._size, 1 / self._size)
        probability = np.tile((1 - self.focus) / self._size + self.focus * shares, self.repeat)
        rng = np.random.default_rng([self.seed, self.drawn])
        places = rng.choice(len(probability), self.batch_size, replace=False, p=probability / probability.sum())
        return (places % self._size).tolist()

    def state_dict(self) -> dict[str, Any]:
        """Position in the data, and what is known of its questions."""
        return {
            "drawn": self.drawn,
            "passes": self._passes,
            "waiting": list(self._waiting),
            "uncertainty": self._uncertainty.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken.

        Raises:
            UserError: the dataset has another size now.
        """
        if len(state["uncertainty"]) != self._size:
            raise UserError(
                f"tempo.{self.name}.files: {self._size} questions, but the checkpoint was saved with "
                f"{len(state['uncertainty'])}; resume with the same files, or start anew from its weights (model.path)"
            )
        self.drawn, self._passes, self._waiting = state["drawn"], state["passes"], list(state["waiting"])
        self._uncertainty = np.array(state["uncertainty"])


class Stateful(Protocol):
    """Whatever has a state to save."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Streams:
    """Both streams, what watches them and what the method remembers, under the methods by which verl saves and restores
    its data position.
    """

    labeled: Stream | None
    unlabeled: Stream | None
    watch: Stateful | None = None
    memory: Stateful | None = None

    @classmethod
    def build(
        cls, method: Method, rows: Dataset, labeled_rows: Dataset | None, watch: Stateful
    ) -> tuple[Streams, list[Answer | None]]:
        """The streams of a run.

        Args:
            method: what it needs decides.
            rows: those that the policy learns on.
            labeled_rows: D_L beside D_U; None if the run has none or ``rows`` are D_L.
            watch: saved with the streams.

        Returns:
            The streams, and D_U's answers for monitoring, one a row; empty without D_U or ``monitor_oracle``.
        """
        labeled, unlabeled = method.settings.labeled, method.settings.unlabeled
        on_unlabeled, answers = None, []
        if method.needs.unlabeled:
            questions = WithoutAnswers(rows)
            answers = questions.monitoring_answers() if method.settings.monitor_oracle else []
            styles = {answer.style for answer in answers if answer is not None}
            allowed = method.settings.verifier.allow
            check_allowed(styles, allowed, "tempo.unlabeled.files", "tempo.verifier.allow=[NAME]")
            on_unlabeled = Stream(
                "unlabeled",
                rows if method.reads_answers and method.settings.allow_labels_on_unlabeled else questions,
                unlabeled.batch_size,
                unlabeled.shuffle,
                unlabeled.seed,
                unlabeled.repeat,
                unlabeled.focus,
            )
        else:
            labeled_rows = rows
        on_labeled = None
        if labeled_rows is not None:
            without = rows_aside(method, len(labeled_rows))  # type: ignore[arg-type]
            on_labeled = Stream(
                "labeled", labeled_rows, labeled.batch_size, labeled.shuffle, labeled.seed, without=without
            )
        return cls(on_labeled, on_unlabeled, watch, method.memory), answers

    def _present(self) -> dict[str, Stateful]:
        return {name: stream for name, stream in vars(self).items() if stream is not None}

    def state_dict(self) -> dict[str, Any]:
        """States by name."""
        return {name: stream.state_dict() for name, stream in self._present().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what this run has."""
        for name, stream in self._present().items():
            if name in state:
                stream.load_state_dict(state[name])
