# SPDX-License-Identifier: Apache-2.0
"""The only module that touches TransferQueue: rollouts in a fixed order on this side, fields by key on the other.

Token-level fields are jagged on both: rows of their own lengths, without padding.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from tensordict import NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta

from tempo_verl.algo.jagged import Rows, converted, of_rows
from tempo_verl.data.streams import row_of
from tempo_verl.errors import UserError
from tempo_verl.rewards import SECONDS, one_spelling
from tempo_verl.trainer.guard import check_range

IMAGES = "multi_modal_inputs"  # the only Python objects that a training worker reads
# Fields that no pass of the policy, and none of the critic, reads. A worker cuts all that it is sent into mini-batches,
# row by row, which for short responses takes longer than the model.
NOT_FOR_ACTOR = frozenset({"values", "outcome", "returns", "rm_scores", "entropy", "log_probs"})
NOT_FOR_CRITIC = frozenset({"rollout_log_probs", "old_log_probs", "log_probs", "ref_log_prob", "entropy", "advantages",
                            "rm_scores", "returns", "values"})  # fmt: skip


def as_jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    """Rows of different lengths as one jagged nested tensor, the form of every token-level field in the queue."""
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


@dataclass
class Samples:
    """Rollouts of one stream in a round, in a fixed row order: the outputs of agent-loop sessions, mostly one of each.

    ``meta`` is what verl's worker groups take; rows are written back by its keys, so they are never reordered. verl may
    have appended synthetic rows to make the batch divisible: ``real`` is False there.
    """

    meta: KVBatchMeta
    # name -> key -> value: what rollouts have stored, read once and handed on to whatever holds the same rows
    known: dict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict), repr=False)
    timeout: float = SECONDS  # for a comparison of two answers
    # keys of the round, in whatever part of it, whose loss_mask is no longer the response mask that it begins as
    remasked: set[str] = field(default_factory=set, repr=False)

    def __len__(self) -> int:
        return len(self.meta)

    def rows(self, indices: np.ndarray) -> Samples:
        """Some of the rows, in the order of ``indices`` (int)."""
        return self.of(self.meta.select_keys([self.meta.keys[index] for index in indices]))

    def of(self, meta: KVBatchMeta) -> Samples:
        """Samples of ``meta``, which knows of these rows, or of them and others."""
        return Samples(meta, self.known, self.timeout, self.remasked)

    def by_session(self) -> Samples:
        """One row for each session, its last output; no synthetic rows."""
        return self if self.ends.all() else self.rows(np.flatnonzero(self.ends))

    def find(self, part: Samples) -> np.ndarray:
        """Positions of the rows whose session is in ``part`` as well, in ascending order."""
        return np.flatnonzero(np.isin(self.sessions, part.sessions))

    def align(self, part: Samples, values: torch.Tensor) -> torch.Tensor:
        """(B,) ``values``, one for each row of ``part``, at the rows of the same sessions here; 0 on other rows.

        Of a session with several outputs in ``part``, the value of the last one.
        """
        rows = zip(part.sessions, values.tolist(), part.ends, strict=True)
        of_session = {session: value for session, value, last in rows if last}
        return torch.tensor([of_session.get(session, 0.0) for session in self.sessions])

    def request(self, without: frozenset[str], **extra_info: Any) -> KVBatchMeta:
        """These rows and ``extra_info``, as the argument of a worker-group call that does not read ``without``."""
        return KVBatchMeta(
            partition_id=self.meta.partition_id,
            keys=self.meta.keys,
            tags=self.meta.tags,
            fields=self._trained_on(without),
            extra_info=extra_info,
        )

    def _trained_on(self, without: frozenset[str]) -> list[str]:
        """The stored fields that a training worker may read: no Python objects, such as the chat."""
        stored = tq.get_client().kv_retrieve_meta(keys=self.meta.keys, partition_id=self.meta.partition_id)
        tensors = [name for name, kind in stored.field_schema.items() if name == IMAGES or not kind["is_non_tensor"]]
        return [name for name in tensors if name not in without]

    def copy_to(self, partition: str) -> Samples:
        """The same rows, with what the critic learns from, in another partition of the queue."""
        fields = self.read(*self._trained_on(NOT_FOR_CRITIC))
        tq.kv_batch_put(keys=self.meta.keys, partition_id=partition, fields=fields)
        return Samples(KVBatchMeta(partition_id=partition, keys=self.meta.keys, tags=self.meta.tags))

    def stored(self) -> dict[str, Any]:
        """Keys, tags and fields of these rows as plain Python values and tensors, for :func:`put_back`."""
        fields = {name: _plain(column) for name, column in self.read(*self._trained_on(frozenset())).items()}
        return {"keys": list(self.meta.keys), "tags": [dict(tag) for tag in self.meta.tags], "fields": fields}

    def read(self, *names: str) -> TensorDict:
        """Fields as stored: jagged for token-level ones."""
        return tq.kv_batch_get(keys=self.meta.keys, partition_id=self.meta.partition_id, select_fields=list(names))

    def read_once(self, name: str, dtype: torch.dtype | None = None) -> list[Any]:
        """A field that nobody writes again, one tensor (in ``dtype``) or Python object a row."""
        known = self.known[name]
        missing = [key for key in self.meta.keys if key not in known]
        if missing:
            column = self.of(self.meta.select_keys(missing)).read(name)[name]
            known.update(zip(missing, _unbound(column, dtype), strict=True))
        return [known[key] for key in self.meta.keys]

    def write(self, **fields: torch.Tensor) -> None:
        """Store fields, (B, ...) or jagged, as they are; bool masks of tokens as int64, as verl's own are.

        Raises:
            UserError: numbers that are not finite; all that is trained on comes by here.
        """
        for name, column in fields.items():
            check_range(name, column, None, self)
        if "loss_mask" in fields:
            self.remasked.update(self.meta.keys)
        tq.kv_batch_put(
            keys=self.meta.keys,
            partition_id=self.meta.partition_id,
            fields=TensorDict({name: _as_stored(column) for name, column in fields.items()}, batch_size=len(self)),
        )

    def clear(self) -> None:
        """Drop these rows from the queue."""
        tq.kv_clear(keys=self.meta.keys, partition_id=self.meta.partition_id)

    @cached_property
    def real(self) -> np.ndarray:
        """(B,) bool, False for synthetic padding rows."""
        return np.array([not tag.get("is_padding", False) for tag in self.meta.tags], dtype=bool)

    @cached_property
    def sessions(self) -> list[str]:
        """(B,) id of the agent-loop session of each row, ``{uid}_{session}``."""
        return [key.rpartition("_")[0] for key in self.meta.keys]

    @cached_property
    def ends(self) -> np.ndarray:
        """(B,) bool, True on the last output of each session here; False on synthetic rows."""
        last: dict[str, tuple[int, int]] = {}
        for row, (key, session) in enumerate(zip(self.meta.keys, self.sessions, strict=True)):
            last[session] = max(last.get(session, (-1, -1)), (int(key.rpartition("_")[2]), row))
        ends = np.zeros(len(self), dtype=bool)
        ends[[row for _, row in last.values()]] = True
        return ends & self.real

    @property
    def response_lengths(self) -> list[int]:
        """Tokens of each response, tool turns included."""
        return self.response_mask.offsets().diff().tolist()

    @cached_property
    def response_mask(self) -> torch.Tensor:
        """Jagged (B, T_i) bool: True on the policy's own tokens, not on tool turns and a synthetic row's."""
        return of_rows(self.read_once("response_mask", torch.bool))  # an eighth of the int64 in the queue

    @cached_property
    def prompts(self) -> list[str]:
        """uid of the prompt of each row."""
        return [key.split("_")[0] for key in self.meta.keys]

    @cached_property
    def questions(self) -> list[int]:
        """(B,) row of each prompt in its dataset."""
        return [row_of(prompt) for prompt in self.prompts]

    @cached_property
    def reward_info(self) -> list[dict[str, Any]]:
        """What the reward manager found out about each row: ``acc`` (rows with an answer), ``pred``, ``format``, ..."""
        return [extra.get("reward_extra_info") or {} for extra in self.read_once("extra_fields")]

    @property
    def verdicts(self) -> torch.Tensor:
        """(B,) float32 c(x, y) in {0, 1} as the verifier found it.

        Raises:
            UserError: a row without a verdict.
        """
        missing = sum("acc" not in info for info in self.reward_info)
        if missing:
            raise UserError(
                f"{missing} of {len(self)} responses came without a verdict (reward_extra_info.acc): an agent "
                "loop that scores its responses itself, or another reward manager, has to give it, 0 or 1; or leave "
                "the scoring to TempoRewardManager"
            )
        return torch.tensor([float(info["acc"]) for info in self.reward_info])

    @property
    def answers(self) -> list[str | None]:
        """(B,) what each row's session answers, None if nothing was found; one spelling for what says the same.

        Rows that are compared here are not compared anew in their parts, or in batches that they join.
        """
        spelled = self.known["answers"]
        if any(real and key not in spelled for key, real in zip(self.meta.keys, self.real, strict=True)):
            found = [info["pred"] or None for info in self.reward_info]
            found = one_spelling(found, self.prompts, self.styles, timeout=self.timeout)
            spelled.update(zip(self.meta.keys, found, strict=True))
        return [spelled.get(key) for key in self.meta.keys]

    @property
    def styles(self) -> list[str]:
        """(B,) the verifier of each row."""
        return [info["style"] for info in self.reward_info]


def response_values(full: torch.Tensor, response_lengths: np.ndarray) -> torch.Tensor:
    """The T + 1 response values of each row out of a critic pass over prompt and response.

    Args:
        full: jagged (B, prompt + response), one value after each input token.
        response_lengths: (B,) int64, tokens of each response.

    Returns:
        jagged (B, T_i + 1) float32: V(x), V(x, y_1), ..., V(x, y_1:T).
    """
    found = Rows.of(full).last(response_lengths + 1)
    return found.holding(converted(found.flat, torch.float32)).tensor


def final_values_of(full: torch.Tensor, response_lengths: list[int]) -> torch.Tensor:
    """As :func:`response_values`, (B, T + 1) padded with 0, for the small batch of a loss: the graph is kept."""
    rows = [row[-(length + 1) :] for row, length in zip(full.unbind(), response_lengths, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def select(meta: KVBatchMeta, *prompts: set[str], timeout: float = SECONDS) -> list[Samples]:
    """For each of ``prompts`` (uids) the rows of a batch that answer one of them, by prompt, session and output.

    Args:
        timeout: seconds for a comparison of two answers.
    """
    parts, remasked = [], set[str]()
    for uids in prompts:
        found = [key for key in meta.keys if key.split("_")[0] in uids]
        parts.append(Samples(meta.select_keys(sorted(found, key=_in_order)), timeout=timeout, remasked=remasked))
    return parts


def concatenate(*parts: Samples) -> Samples:
    """All rows as one batch, part by part."""
    meta = KVBatchMeta(
        partition_id=parts[0].meta.partition_id,
        keys=[key for part in parts for key in part.meta.keys],
        tags=[tag for part in parts for tag in part.meta.tags],
    )
    known: dict[str, dict[str, Any]] = defaultdict(dict)
    for part in parts:
        for name, values in part.known.items():
            known[name] |= values
    shared = all(part.remasked is parts[0].remasked for part in parts)
    remasked = parts[0].remasked if shared else set().union(*(part.remasked for part in parts))
    return Samples(meta, known, parts[0].timeout, remasked)


def of_keys(partition: str, rows: list[tuple[str, dict[str, Any]]]) -> Samples:
    """Rows of a partition by key and tag."""
    return Samples(KVBatchMeta(partition_id=partition, keys=[key for key, _ in rows], tags=[tag for _, tag in rows]))


def put_back(partition: str, keys: list[str], tags: list[dict[str, Any]], fields: dict[str, Any]) -> Samples:
    """Store rows as :meth:`Samples.stored` gave them: a (B, ...) tensor, or a list with one tensor or object a row."""
    columns = {name: _column(values) for name, values in fields.items()}
    put(partition, keys, tags, TensorDict(columns, batch_size=len(keys)))
    return of_keys(partition, list(zip(keys, tags, strict=True)))


def _unbound(column: Any, dtype: torch.dtype | None) -> list[Any]:
    """A column row by row, tensors in ``dtype``: views of one tensor."""
    if not isinstance(column, torch.Tensor):
        return [getattr(value, "data", value) for value in column]
    if not column.is_nested and column.ndim != 2:
        return list(column.unbind())
    rows = Rows.of(column)
    return list(converted(rows.flat, dtype or column.dtype).split_with_sizes(rows.lengths.tolist()))


def _as_stored(column: torch.Tensor) -> torch.Tensor:
    if column.dtype != torch.bool or column.ndim == 1:
        return column
    rows = Rows.of(column)
    return rows.holding(converted(rows.flat, torch.int64)).tensor


def _plain(column: Any) -> Any:
    if not isinstance(column, torch.Tensor):
        return [getattr(value, "data", value) for value in column]
    return [row.clone() for row in column.unbind()] if column.is_nested else column


def _column(values: Any) -> Any:
    if isinstance(values, torch.Tensor):
        return values
    return as_jagged(values) if isinstance(values[0], torch.Tensor) else NonTensorStack(*values)


def listed(partition: str) -> dict[str, dict[str, Any]]:
    """Key -> tag of all that is in a partition: rows, and the status of prompts."""
    return (tq.kv_list(partition) or {}).get(partition, {})


def put(partition: str, keys: list[str], tags: list[dict[str, Any]], fields: TensorDict | None = None) -> None:
    """Store rows: rollouts with their fields, or the status of prompts."""
    tq.kv_batch_put(keys=keys, partition_id=partition, tags=tags, **({} if fields is None else {"fields": fields}))


def clear(drawn: Iterable[Samples | None], but: Samples) -> None:
    """Drop all rows of ``drawn`` from the queue that are not in ``but``."""
    kept = set(but.meta.keys)
    for samples in drawn:
        if samples is not None:
            rest = sorted(set(samples.meta.keys) - kept)
            if rest:
                Samples(samples.meta.select_keys(rest)).clear()


def _in_order(key: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", key)]
