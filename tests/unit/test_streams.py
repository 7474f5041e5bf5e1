# SPDX-License-Identifier: Apache-2.0
"""The labelled and the unlabelled stream: batches, epochs, resuming, and no answer past an unlabelled one."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import Dataset
from transformers import AutoTokenizer
from verl.trainer.ppo.utils import create_rl_dataset

from tempo_verl.data.monitor import MonitorStore, oracle_metrics
from tempo_verl.data.streams import UNLABELED_FIELDS, Answer, Stream, Streams, WithoutAnswers
from tempo_verl.errors import UserError

ROWS = 16
EXACT, SUMS = "exact", "tempo_verl.tasks.running_sums:verify"


@pytest.fixture(scope="module")
def data_config(compose):
    return compose().data


@pytest.fixture(scope="module")
def tokenizer(tiny_policy: Path):
    return AutoTokenizer.from_pretrained(tiny_policy)


@pytest.fixture(scope="module")
def questions(tiny_task: Path, data_config, tokenizer) -> Dataset:
    """verl's own dataset over the 16 unlabelled questions (whose file holds monitoring answers)."""
    return create_rl_dataset(str(tiny_task / "unlabeled.parquet"), data_config, tokenizer, None)


def indices(batch: dict[str, Any]) -> list[int]:
    return list(batch["index"])


def drawn(stream: Stream, batches: int) -> list[list[int]]:
    return [indices(stream.next_batch()) for _ in range(batches)]


# ---------------------------------------------------------------------- batches and epochs


def test_a_batch_is_in_the_columns_of_verl_with_a_fresh_uid_each(questions: Dataset) -> None:
    stream = Stream(questions, batch_size=3, shuffle=False, seed=0)
    first, second = stream.next_batch(), stream.next_batch()
    assert indices(first) == [0, 1, 2]
    assert indices(second) == [3, 4, 5]
    for name in ("raw_prompt", "uid", "reward_model", "data_source"):
        assert isinstance(first[name], np.ndarray)
        assert first[name].dtype == object
        assert first[name].shape == (3,)
    assert isinstance(first["dummy_tensor"], torch.Tensor)
    assert first["raw_prompt"][0] == questions[0]["raw_prompt"]
    assert len({*first["uid"], *second["uid"]}) == 6
    assert not any("_" in uid for uid in first["uid"])  # keys are {uid}_{session}_{index}


def test_in_order_without_shuffling_and_the_incomplete_batch_is_dropped(questions: Dataset) -> None:
    stream = Stream(questions, batch_size=6, shuffle=False, seed=0)
    assert stream.epoch == 0
    assert drawn(stream, 2) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert stream.epoch == 1
    assert drawn(stream, 1) == [[0, 1, 2, 3, 4, 5]]  # rows 12 to 15 make no batch
    assert stream.epoch == 2


def test_a_batch_may_be_as_large_as_the_set(questions: Dataset) -> None:
    stream = Stream(questions, batch_size=ROWS, shuffle=True, seed=0)
    assert [sorted(batch) for batch in drawn(stream, 3)] == [list(range(ROWS))] * 3
    assert stream.epoch == 3


def test_a_set_that_verl_has_made_too_small_is_told(questions: Dataset) -> None:
    with pytest.raises(UserError, match=r"batch_size=17 .*16 questions now; lower it .*data\.filter_overlong_prompts"):
        Stream(questions, batch_size=ROWS + 1, shuffle=True, seed=0)


def test_the_seed_alone_decides_the_order(questions: Dataset) -> None:
    def order(seed: int) -> list[list[int]]:
        torch.manual_seed(random.randrange(1000))  # the global generator has no say
        return drawn(Stream(questions, batch_size=4, shuffle=True, seed=seed), 8)

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_an_epoch_holds_every_row_once_and_the_next_has_another_order(questions: Dataset) -> None:
    stream = Stream(questions, batch_size=4, shuffle=True, seed=3)
    epochs = [[index for batch in drawn(stream, 4) for index in batch] for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(ROWS))] * 3
    assert stream.epoch == 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != sorted(epochs[0])


# ---------------------------------------------------------------------- resuming


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [4, 5], ids=["whole epochs", "incomplete last batch"])
@pytest.mark.parametrize("taken", range(10))
def test_a_resumed_stream_goes_on_as_an_uninterrupted_one(
    questions: Dataset, shuffle: bool, batch_size: int, taken: int, tmp_path: Path
) -> None:
    def stream() -> Stream:
        return Stream(questions, batch_size=batch_size, shuffle=shuffle, seed=5)

    uninterrupted = stream()
    before = drawn(uninterrupted, taken)
    torch.save(uninterrupted.state_dict(), tmp_path / "data.pt")  # as verl saves it
    epochs, after = [], []
    for _ in range(9):
        after += drawn(uninterrupted, 1)
        epochs.append(uninterrupted.epoch)

    resumed = stream()
    resumed.load_state_dict(torch.load(tmp_path / "data.pt", weights_only=False))
    assert resumed.epoch == -(-taken // (ROWS // batch_size))
    for batch, epoch in zip(after, epochs, strict=True):
        assert drawn(resumed, 1) == [batch]
        assert resumed.epoch == epoch
    assert before + after == drawn(stream(), taken + 9)


def test_a_stream_can_be_resumed_again_and_again(questions: Dataset) -> None:
    expected = drawn(Stream(questions, batch_size=4, shuffle=True, seed=5), 12)
    state, got = Stream(questions, batch_size=4, shuffle=True, seed=5).state_dict(), []
    for _ in range(12):
        stream = Stream(questions, batch_size=4, shuffle=True, seed=5)
        stream.load_state_dict(state)
        got += drawn(stream, 1)
        state = stream.state_dict()
    assert got == expected
    assert stream.epoch == 3


def test_both_streams_are_saved_under_their_names(questions: Dataset) -> None:
    def streams(unlabeled: bool = True) -> Streams:
        return Streams(
            Stream(questions, batch_size=4, shuffle=True, seed=1),
            Stream(questions, batch_size=5, shuffle=True, seed=2) if unlabeled else None,
        )

    first = streams()
    drawn(first.labeled, 3)
    drawn(first.unlabeled, 1)
    state = first.state_dict()
    assert set(state) == {"labeled", "unlabeled"}

    second = streams()
    second.load_state_dict(state)
    assert drawn(second.labeled, 4) == drawn(first.labeled, 4)
    assert drawn(second.unlabeled, 4) == drawn(first.unlabeled, 4)

    stage0 = streams(unlabeled=False)
    assert set(stage0.state_dict()) == {"labeled"}
    stage0.load_state_dict(state)  # a run of one stream takes what it has a use for ...
    stage1 = streams()
    stage1.load_state_dict(stage0.state_dict())  # ... and a stream without a saved position starts anew
    assert stage1.labeled.epoch == 1
    assert stage1.unlabeled.epoch == 0


# ---------------------------------------------------------------------- no answer gets through

SECRET = "31337"


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory, data_config, tokenizer) -> WithoutAnswers:
    """Questions whose file holds the answer wherever datasets are known to keep it."""
    row = {
        "data_source": "test",
        "ability": "arithmetic",
        "agent_name": "tool_agent",
        "prompt": [{"role": "user", "content": "1+2="}],
        "reward_model": {"style": EXACT, "ground_truth": SECRET, "rubric": SECRET},
        "answer": SECRET,
        "solution": f"so it is {SECRET}",
        "label": int(SECRET),
        "extra_info": {
            "index": 7,
            "answer": SECRET,
            "solution": SECRET,
            "split": "test",
            "tools_kwargs": {"calc_reward": {"create_kwargs": {"ground_truth": SECRET}}},
            "interaction_kwargs": {"name": "tutor", "ground_truth": SECRET},
        },
    }
    path = tmp_path_factory.mktemp("leaky") / "unlabeled.parquet"
    pq.write_table(pa.Table.from_pylist([row] * 2), path)
    return WithoutAnswers(create_rl_dataset(str(path), data_config, tokenizer, None))


def test_no_answer_leaves_an_unlabeled_stream(leaky: WithoutAnswers) -> None:
    batch = Stream(leaky, batch_size=2, shuffle=False, seed=0).next_batch()
    told = json.dumps({name: np.asarray(value).tolist() for name, value in batch.items()})
    assert SECRET not in told
    assert set(batch) <= UNLABELED_FIELDS | {"reward_model", "extra_info", "row", "uid"}
    assert SECRET in json.dumps(leaky._rows[0], default=str)


def test_what_an_unlabeled_row_carries_on(leaky: WithoutAnswers, questions: Dataset) -> None:
    row = leaky[1]
    assert row["raw_prompt"] == [{"role": "user", "content": "1+2="}]
    assert row["agent_name"] == "tool_agent"
    assert row["reward_model"] == {"style": EXACT, "ground_truth": None}  # the style, for reading answers out
    assert row["extra_info"] == {"index": 7}
    assert row["row"].tolist() == [1]
    assert len(WithoutAnswers(questions)) == ROWS


def test_the_file_itself_is_not_touched(questions: Dataset) -> None:
    assert WithoutAnswers(questions)[0]["reward_model"]["ground_truth"] is None
    assert questions[0]["reward_model"]["ground_truth"] in "0123456789"


def test_monitoring_answers_are_kept_by_row() -> None:
    def row(reward_model: dict[str, Any] | None) -> dict[str, Any]:
        return {"raw_prompt": [], "index": 0, "reward_model": reward_model}

    rows = [
        row({"style": EXACT, "ground_truth": "1"}),
        row({"style": None, "ground_truth": 2}),
        row({"style": EXACT, "ground_truth": ""}),
        row({"style": EXACT}),
        row(None),
    ]
    assert WithoutAnswers(rows).monitoring_answers() == [Answer("1", EXACT), Answer("2", "math"), None, None, None]
    assert WithoutAnswers(rows)[4]["reward_model"] == {"style": None, "ground_truth": None}


# ---------------------------------------------------------------------- monitoring


def test_the_monitor_checks_responses_with_the_verifier_of_their_row() -> None:
    store = MonitorStore([Answer("5", EXACT), None, Answer("5", SUMS)])
    correct = store.correct([2, 0, 1, 0, 2], ["70y55y", "5", "5", "6", "70y5"])
    np.testing.assert_array_equal(correct, [1.0, 1.0, np.nan, 0.0, 0.0])


def test_oracle_metrics_on_numbers_worked_by_hand() -> None:
    # right rows score 0.9 and 0.4, wrong ones 0.6 and 0.1: three of the four pairs are in order
    reward, correct = np.array([0.9, 0.6, 0.4, 0.1, 0.5]), np.array([1.0, 0.0, 1.0, 0.0, np.nan])
    assert oracle_metrics(reward, correct) == {"accuracy": 0.5, "auroc": 0.75}


@pytest.mark.parametrize("only", [0.0, 1.0])
def test_an_auroc_of_one_class_is_absent(only: float) -> None:
    assert oracle_metrics(np.array([0.2, 0.8]), np.array([only, only])) == {"accuracy": only}


def test_without_monitoring_answers_there_are_no_oracle_metrics() -> None:
    assert oracle_metrics(np.array([0.2]), np.array([np.nan])) == {}
    assert oracle_metrics(np.array([]), np.array([])) == {}
