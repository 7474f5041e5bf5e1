# SPDX-License-Identifier: Apache-2.0
"""No update is of synthetic rows alone: those that another phase needed are left out."""

from __future__ import annotations

from unittest.mock import MagicMock

import pytest

from tempo_verl.trainer.batch import Samples, of_keys
from tempo_verl.trainer.log import Log
from tempo_verl.trainer.port import Port


def mixed(real: int, synthetic: int) -> Samples:
    """Rows of both kinds, each spread over the whole."""
    rows = [(row / real, f"{row}_0_0", {"seq_len": 5}) for row in range(real)]
    rows += [(row / synthetic, f"pad_{row}_0", {"seq_len": 128, "is_padding": True}) for row in range(synthetic)]
    return of_keys("train", [(key, tag) for _, key, tag in sorted(rows, key=lambda row: row[0])])


def port(ranks: int) -> Port:
    trainer = MagicMock()
    trainer.actor_rollout_wg.world_size = ranks
    trainer.actor_rollout_wg._query_dispatch_info.return_value = list(range(ranks))
    trainer._balance_batch = lambda batch, _metrics, logging_prefix: batch
    return Port(trainer)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("real", "synthetic", "mini_batch", "left"),
    [(20, 12, 8, 4), (4, 12, 8, 4), (8, 8, 8, 0), (1, 15, 4, 3), (10, 6, 8, 6), (16, 0, 8, 0)],
)
def test_what_an_update_is_given(ranks: int, real: int, synthetic: int, mini_batch: int, left: int) -> None:
    samples = mixed(real, synthetic)
    rows = port(ranks).in_updates(samples, mini_batch, Log(), "global_seqlen")
    assert (rows.real.sum(), (~rows.real).sum()) == (real, left)
    assert left < mini_batch
    assert len(rows) % mini_batch == 0
    assert rows.meta.keys == [key for key in samples.meta.keys if key in set(rows.meta.keys)]  # in the same order
    assert len(samples) == real + synthetic
