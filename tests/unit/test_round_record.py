# SPDX-License-Identifier: Apache-2.0
"""What a round leaves: a few numbers of each row in a small file, and no field read twice on the way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transfer_queue as tq
from tensordict import NonTensorStack, TensorDict

from tempo_verl.algo.jagged import pad
from tempo_verl.methods import Trained
from tempo_verl.trainer import batch
from tempo_verl.trainer.batch import Samples, as_jagged, concatenate, of_keys
from tempo_verl.trainer.log import Log, peak_memory
from tempo_verl.trainer.metrics import measure_policy, row_summaries

MASK = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]])  # a tool turn in the first row; the last is synthetic
VALUES = torch.tensor([[0.1, 0.5, 0.3, 0.9, 0.7], [0.4, 0.2, 8.0, 8.0, 8.0], [9.0] * 5])
ADVANTAGES = torch.tensor([[1.0, 2.0, 7.0, 6.0], [-1.0, 7.0, 7.0, 7.0], [7.0] * 4])
REWARD = torch.tensor([0.7, 0.2, 0.0])


def test_a_row_in_a_few_numbers() -> None:
    found = {name: array.tolist() for name, array in row_summaries(REWARD, ADVANTAGES, MASK, VALUES).items()}
    # positions of the first row: before it, and after tokens 1, 2 and 4
    expected = {
        "reward": [0.7, 0.2, 0.0],
        "length": [3, 1, 0],
        "advantage": [3.0, -1.0, 0.0],
        "value_first": [0.1, 0.4, 0.0],
        "value_final": [0.7, 0.2, 0.0],
        "value_mean": [(0.1 + 0.5 + 0.3 + 0.7) / 4, 0.3, 0.0],
        "value_min": [0.1, 0.2, 0.0],
        "value_max": [0.7, 0.4, 0.0],
    }
    assert found.keys() == expected.keys()
    for name, column in expected.items():
        assert found[name] == pytest.approx(column), name


def test_without_a_critic_there_are_no_values() -> None:
    assert set(row_summaries(REWARD, ADVANTAGES, MASK, None)) == {"reward", "length", "advantage"}


# ---------------------------------------------------------------------- the queue


class Queue:
    """A partition in this process, which counts how often each field of a row is read."""

    def __init__(self, **fields: list[Any]):
        self.fields, self.reads = fields, Counter()

    def get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:
        self.reads.update((name, key) for name in select_fields for key in keys)
        found = {}
        for name in select_fields:
            values = [self.fields[name][int(key.rpartition("-")[2].split("_")[0])] for key in keys]
            found[name] = as_jagged(values) if isinstance(values[0], torch.Tensor) else NonTensorStack(*values)
        return TensorDict(found, batch_size=len(keys))

    def twice(self) -> dict[tuple[str, str], int]:
        return {read: times for read, times in self.reads.items() if times > 1}


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    """Three rows as in MASK, without padding, and what the reward manager found."""
    stored = Queue(
        response_mask=[MASK[0], MASK[1, :2], MASK[2, :1]],
        extra_fields=[{"reward_extra_info": {"pred": str(row), "style": "math"}} for row in range(3)],
        entropy=[torch.full((length,), 0.5) for length in (4, 2, 1)],
    )
    monkeypatch.setattr(tq, "kv_batch_get", stored.get)
    return stored


def samples() -> Samples:
    return of_keys("train", [(f"u-0-{row}_0_0", {"is_padding": row == 2}) for row in range(3)])


def test_parts_and_joined_batches_know_what_was_read(queue: Queue) -> None:
    drawn = samples()
    assert [info["pred"] for info in drawn.reward_info] == ["0", "1", "2"]
    assert pad(drawn.response_mask).tolist() == MASK.tolist()
    assert drawn.response_mask.dtype == torch.bool
    part = drawn.rows(np.array([1, 0]))
    assert [info["pred"] for info in part.reward_info] == ["1", "0"]
    assert [row.tolist() for row in part.response_mask.unbind()] == [[1, 0], [1, 1, 0, 1]]
    assert [row.tolist() for row in drawn.rows(np.array([1])).response_mask.unbind()] == [[1, 0]]
    whole = concatenate(drawn.rows(np.array([2])), part)
    assert [info["pred"] for info in whole.reward_info] == ["2", "1", "0"]
    assert whole.response_lengths == [1, 2, 4]
    reordered = whole.of(drawn.meta)  # as verl's balancing returns them
    assert [info["pred"] for info in reordered.reward_info] == ["0", "1", "2"]
    assert queue.twice() == {}


def test_answers_are_compared_once_and_synthetic_rows_have_none(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def one_spelling(answers: list[str], *_: list[str], timeout: float) -> list[str]:
        compared.append(answers)
        return ["same"] * len(answers)

    monkeypatch.setattr(batch, "one_spelling", one_spelling)
    drawn = samples().rows(np.array([0, 1]))
    assert drawn.answers == ["same", "same"]
    assert drawn.of(samples().meta).answers == ["same", "same", None]  # with a synthetic row of verl's
    assert drawn.rows(np.array([1])).answers == ["same"]
    assert compared == [["0", "1"]]
    assert samples().rows(np.array([0])).known["answers"] == {}  # other samples have not been asked


def test_only_rows_that_are_new_are_read(queue: Queue) -> None:
    drawn = samples().rows(np.array([0, 1]))
    assert [info["pred"] for info in drawn.reward_info] == ["0", "1"]
    assert len(drawn.of(samples().meta).reward_info) == 3  # with a synthetic row of verl's
    assert queue.reads == Counter({("extra_fields", f"u-0-{row}_0_0"): 1 for row in range(3)})


def test_fields_that_are_written_in_a_round_are_read_anew(queue: Queue) -> None:
    drawn = samples()
    first = drawn.read("entropy")["entropy"].to_padded_tensor(0.0)
    queue.fields["entropy"] = [torch.zeros(length) for length in (4, 2, 1)]
    assert first.sum() == 3.5
    assert drawn.read("entropy")["entropy"].to_padded_tensor(0.0).sum() == 0.0


# ---------------------------------------------------------------------- the file


def a_round(rows: list[int]) -> Trained:
    cut = [as_jagged([row[:length] for row, length in zip(of, lengths, strict=True)])
           for of, lengths in ((ADVANTAGES, (4, 2, 1)), (VALUES, (5, 3, 2)))]  # fmt: skip
    return Trained(samples(), np.array(rows), REWARD, *cut)


@pytest.mark.parametrize("rows", [[0, 1], [0, 1, 2]])
def test_the_file_of_a_round_is_about_the_rows_it_trained_on(queue: Queue, tmp_path: Path, rows: list[int]) -> None:
    log = Log(seconds={"gen": 2.0, "m_step": 3.0})
    measure_policy(a_round(rows), True, False, log)
    log.finish(7, str(tmp_path / "rounds"))
    with np.load(tmp_path / "rounds" / "round_000007.npz") as file:
        found = dict(file)
    assert found["unlabeled_key"].tolist() == [f"u-0-{row}_0_0" for row in rows]
    assert found["unlabeled_value_final"].tolist() == pytest.approx([0.7, 0.2, 0.0][: len(rows)])
    assert {array.shape for array in found.values()} == {(len(rows),)}
    assert log.metrics["tempo/unlabeled/reward_mean"] == pytest.approx(
        found["unlabeled_reward"][:2].mean()
    )  # no synthetic row
    assert log.metrics["tempo/unlabeled/entropy"] == 0.5
    assert (log.metrics["tempo/time/rollout_s"], log.metrics["tempo/time/m_step_s"]) == (2.0, 3.0)
    assert queue.twice() == {}


@pytest.mark.parametrize(
    ("rows", "has_tokens", "has_mean", "expected"),
    [
        ([0, 1], True, True, 0.25),  # all real rows: what verl has logged, and nothing is read
        ([1], True, True, 0.5),  # a labelled row is in the batch
        ([0, 1], True, False, 0.5),  # verl's is no mean over tokens
        ([0, 1], False, False, 0.75),  # no pass before the update: the actor's own
    ],
)
def test_the_entropy_is_read_only_where_its_mean_is_not_known(
    queue: Queue, rows: list[int], has_tokens: bool, has_mean: bool, expected: float
) -> None:
    log = Log(metrics={"actor/entropy": 0.25, "actor/entropy_loss": 0.75})
    queue.fields["entropy"] = [torch.full((4,), 0.5), torch.tensor([0.5, 9.0]), torch.tensor([9.0])]
    measure_policy(a_round(rows), has_tokens, has_mean, log)
    assert log.metrics["tempo/unlabeled/entropy"] == expected
    assert ("entropy" in {name for name, _ in queue.reads}) == (expected == 0.5)


def test_peak_memory_is_that_of_this_process() -> None:
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    assert peak_memory() == pytest.approx(peak / 1024**2, rel=0.05)
