# SPDX-License-Identifier: Apache-2.0
"""Rows of agent-loop sessions, in whatever order balancing has left them; nothing is stored."""

from __future__ import annotations

import torch
from transfer_queue import KVBatchMeta

from tempo_verl.trainer.batch import Samples, select


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
    drawn = select(samples(["u-2_1_0", "u-10_0_0", "u-2_0_1", "l-0_0_0", "u-2_0_0"]).meta, {"u-2", "u-10"})
    assert drawn.meta.keys == ["u-2_0_0", "u-2_0_1", "u-2_1_0", "u-10_0_0"]
