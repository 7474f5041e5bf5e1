# SPDX-License-Identifier: Apache-2.0
"""Rows of agent-loop sessions, in whatever order balancing has left them; nothing is stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta

from tempo_verl.algo.jagged import of_rows
from tempo_verl.trainer.batch import Samples, concatenate, select


def samples(keys: list[str]) -> Samples:
    tags = [{"is_padding": True} if key.startswith("pad") else {} for key in keys]
    return Samples(KVBatchMeta(partition_id="train", keys=keys, tags=tags))


ROWS = samples(["u-0_0_10", "u-1_0_0", "u-0_0_9", "pad1_0_0", "u-0_1_0", "pad1_1_0"])


def test_the_last_output_of_a_session_stands_for_it() -> None:
    assert ROWS.sessions == ["u-0_0", "u-1_0", "u-0_0", "pad1_0", "u-0_1", "pad1_1"]
    assert ROWS.ends.tolist() == [True, True, False, False, True, False]
    assert ROWS.by_session().meta.keys == ["u-0_0_10", "u-1_0_0", "u-0_1_0"]
    alone = ROWS.by_session()
    assert alone.by_session() is alone  # what has been read of it stays read


def test_rows_are_found_and_aligned_by_session() -> None:
    part = samples(["u-0_0_9", "u-0_0_10", "u-1_0_0"])
    assert ROWS.find(part).tolist() == [0, 1, 2]
    assert ROWS.find(part.by_session()).tolist() == [0, 1, 2]
    assert ROWS.align(part, torch.tensor([1.0, 2.0, 3.0])).tolist() == [2.0, 3.0, 2.0, 0.0, 0.0, 0.0]
    assert ROWS.align(ROWS, torch.arange(6.0)).tolist() == [0.0, 1.0, 0.0, 0.0, 4.0, 0.0]


def test_a_stream_is_drawn_in_the_order_of_prompts_sessions_and_outputs() -> None:
    (drawn,) = select(samples(["u-2_1_0", "u-10_0_0", "u-2_0_1", "l-0_0_0", "u-2_0_0"]).meta, {"u-2", "u-10"})
    assert drawn.meta.keys == ["u-2_0_0", "u-2_0_1", "u-2_1_0", "u-10_0_0"]


def test_all_parts_of_a_round_know_whose_loss_mask_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = []
    monkeypatch.setattr(tq, "kv_batch_put", lambda **put: stored.append(put["fields"]["loss_mask"]))
    labeled, unlabeled = select(samples(["l-0_0_0", "u-0_0_0", "l-1_0_0"]).meta, {"l-0", "l-1"}, {"u-0"})
    both = concatenate(unlabeled, labeled)  # before the E-step
    assert both.remasked.isdisjoint(both.meta.keys)
    labeled.rows(np.array([1])).write(loss_mask=of_rows([torch.tensor([True, False])]))
    assert (stored[0].dtype, stored[0].values().tolist()) == (torch.int64, [1, 0])  # as verl's own masks
    assert both.remasked == labeled.remasked == {"l-1_0_0"}
    assert unlabeled.remasked.isdisjoint(unlabeled.meta.keys)
    assert concatenate(both, samples(["x-0_0_0"])).remasked == {"l-1_0_0"}  # of another round
