# SPDX-License-Identifier: Apache-2.0
"""A round without verl: tensors in place of the queue, and a note of everything that a method asks for, in order.

Tests write tensors padded, as hands do; a method gets them jagged, as in the trainer. ``pad`` takes what it has made
of them back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tempo_verl.algo.jagged import Rows, of_rows, pad
from tempo_verl.errors import UserError
from tempo_verl.methods import Plan, Round
from tempo_verl.rewards import one_spelling


@dataclass
class FakeSamples:
    """Rows of one stream.

    Args:
        keys: (B,) ``<prompt>_<session>``, or ``<prompt>_<session>_<output>``.
        mask: (B, T), 0 behind a row's last token. All of a synthetic row is 0, and as long as the others.
        correct: (B,) verdicts; None: the rows came without an answer.
        texts: (B,) answers.
    """

    keys: list[str]
    mask: Tensor
    correct: list[float] | None = None
    texts: list[str | None] | None = None
    genuine: list[bool] | None = None
    written: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def real(self) -> np.ndarray:
        return np.array([True] * len(self) if self.genuine is None else self.genuine)

    @property
    def prompts(self) -> list[str]:
        return [key.split("_")[0] for key in self.keys]

    @property
    def questions(self) -> list[int]:
        return [int(prompt.strip("lu")) for prompt in self.prompts]

    @property
    def sessions(self) -> list[str]:
        return ["_".join(key.split("_")[:2]) for key in self.keys]

    @property
    def ends(self) -> np.ndarray:
        last = {session: max(key for key in self.keys if key.startswith(session)) for session in self.sessions}
        return np.isin(self.keys, list(last.values())) & self.real

    def by_session(self) -> FakeSamples:
        return self.rows(np.flatnonzero(self.ends))

    @property
    def response_mask(self) -> Tensor:
        lengths = [int(length) or self.mask.shape[1] for length in self.mask.sum(-1)]
        return of_rows([row[:length].bool() for row, length in zip(self.mask, lengths, strict=True)])

    @property
    def verdicts(self) -> Tensor:
        if self.correct is None:
            raise UserError("no verdict")
        return torch.tensor(self.correct)

    @property
    def answers(self) -> list[str | None]:
        return one_spelling(self.texts or [], self.prompts, self.styles) if self.texts else []

    @property
    def styles(self) -> list[str]:
        return ["math"] * len(self)

    def rows(self, indices: np.ndarray) -> FakeSamples:
        def pick(values: list | None) -> list | None:
            return None if values is None else [values[index] for index in indices]

        return FakeSamples(
            pick(self.keys), self.mask[torch.as_tensor(indices, dtype=torch.long)], pick(self.correct),
            pick(self.texts), pick(self.genuine),
        )  # fmt: skip

    def find(self, part: FakeSamples) -> np.ndarray:
        return np.flatnonzero(np.isin(self.sessions, part.sessions))

    def align(self, part: FakeSamples, values: Tensor) -> Tensor:
        last = part.ends
        value_of = {name: value for name, value, end in zip(part.sessions, values.tolist(), last, strict=True) if end}
        return torch.tensor([value_of.get(session, 0.0) for session in self.sessions])

    def write(self, **fields: Any) -> None:
        self.written |= fields


@dataclass
class Log:
    metrics: dict[str, float] = field(default_factory=dict)
    phases: list[str] = field(default_factory=list)

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        self.phases.append(phase)
        yield


@dataclass
class FakeRound:
    """Makes rounds, and remembers what was asked of critic and policy.

    Args:
        before, after: V(x, y_1:t) by row key, (T + 1,) each, of the critic before and after it is fitted.
        has_critic: whether there is one.
    """

    labeled: FakeSamples | None
    unlabeled: FakeSamples | None
    before: dict[str, list[float]] = field(default_factory=dict)
    after: dict[str, list[float]] = field(default_factory=dict)
    has_critic: bool = True
    calls: list[str] = field(default_factory=list)
    stored: dict[str, Any] = field(default_factory=dict)
    log: Log = field(default_factory=Log)
    penalty: float = 0.0
    fitted: bool = False

    def round(self, label: bool = True, improve: bool = True) -> Round:
        return Round(
            1, Plan(label, improve), self.labeled, self.unlabeled, self if self.has_critic else None, self, self.log
        )

    # the critic

    def values(self, samples: FakeSamples) -> Tensor:
        self.calls.append(f"values of {len(samples)}")
        known = self.after if self.fitted else self.before
        return self._jagged(samples, known)

    def measure(self, samples: FakeSamples) -> Tensor:
        self.calls.append(f"measure {len(samples)}")
        return self._jagged(samples, self.before)

    def _jagged(self, samples: FakeSamples, known: dict[str, list[float]]) -> Tensor:
        lengths = Rows.of(samples.response_mask).lengths.tolist()
        return of_rows([torch.tensor(known[key][: n + 1]) for key, n in zip(samples.keys, lengths, strict=True)])

    def fit(self, samples: FakeSamples, target: Tensor, weight: Tensor | None = None) -> None:
        weighed = "" if weight is None else f", weighed {weight.tolist()}"
        self.calls.append(f"fit {len(samples)} to {target.tolist()}{weighed}")
        self.fitted = True

    def train(self, samples: FakeSamples) -> None:
        self.calls.append(f"train {len(samples)}")
        self.stored["critic_mask"] = samples.written["loss_mask"].unbind()
        self.fitted = True

    # the policy

    def batch(self, *parts: FakeSamples) -> FakeSamples:
        def join(name: str) -> list | None:
            columns = [getattr(part, name) for part in parts]
            if all(column is None for column in columns):
                return None
            return [
                entry for part, column in zip(parts, columns, strict=True) for entry in column or [None] * len(part)
            ]

        return FakeSamples(
            join("keys"), torch.cat([part.mask for part in parts]), join("correct"), join("texts"), join("genuine")
        )

    def penalties(self, samples: FakeSamples) -> Tensor:
        return torch.full((len(samples),), self.penalty)

    def store(self, samples: FakeSamples, reward: Tensor, advantages: Tensor, values: Tensor | None) -> None:
        self.calls.append("store")
        tokens = {"advantages": advantages} | ({} if values is None else {"values": values})
        assert all(tensor.is_nested for tensor in tokens.values())
        self.stored |= {"reward": reward} | {name: pad(tensor) for name, tensor in tokens.items()}

    def update(self, samples: FakeSamples) -> None:
        self.calls.append(f"update {len(samples)}")
