# SPDX-License-Identifier: Apache-2.0
"""The labelled and the unlabelled stream: batches, epochs, resuming, and no answer past an unlabelled one."""

from __future__ import annotations

import json
import os
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fields import method_of
from torch.utils.data import Dataset
from transformers import AutoTokenizer
from verl.trainer.ppo.utils import create_rl_dataset

import tempo_verl.data.monitor as monitor_module
from tempo_verl.data.aside import calibration_rows, rows_aside
from tempo_verl.data.monitor import Monitor, oracle_metrics, verdicts
from tempo_verl.data.streams import UNLABELED_FIELDS, Answer, Stream, Streams, WithoutAnswers, batch_of, row_of
from tempo_verl.errors import UserError
from tempo_verl.rewards import process, score

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


def settings_of(name: str = "tempo", /, **changes: Any):
    return method_of(name, **{"predictions__file": "predictions.jsonl", "predictions__labeled": 20} | changes)


def test_questions_that_calibrate_probabilities_are_kept_out_of_training() -> None:
    method = settings_of(predictions__aside=0.5)
    kept = rows_aside(method, 50)
    assert calibration_rows(method, 50) == sorted(kept)
    assert sorted(kept) == [row * 50 // 20 for row in range(20)]
    rows = [{"index": row} for row in range(50)]
    stream = Stream("labeled", rows, 10, True, 1, without=kept)  # type: ignore[arg-type]
    seen = {row_of(uid) for _ in range(6) for uid in stream.next_batch()["uid"]}
    assert seen == set(range(50)) - kept
    assert stream.epoch == 2.0
    with pytest.raises(UserError, match="larger than the set, which has 30 questions now"):
        Stream("labeled", rows, 31, True, 1, without=kept)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "changes", "size"),
    [
        ("tempo", {"predictions__aside": 0.0}, 500),
        ("tempo", {"predictions__aside": 0.1}, 199),  # 19 are too few
        ("tempo", {"predictions__file": None}, 500),
        ("ppo", {}, 500),  # it answers no D_U
    ],
)
def test_none_is_kept_out_where_it_would_be_too_few_or_in_vain(name: str, changes: dict[str, Any], size: int) -> None:
    method = settings_of(name, **changes)
    assert rows_aside(method, size) == frozenset()
    assert len(calibration_rows(method, size)) == 20


def test_at_most_a_share_of_the_labelled_questions_is_kept_out() -> None:
    assert len(rows_aside(settings_of(predictions__labeled=128), 500)) == 50
    assert len(rows_aside(settings_of(predictions__labeled=128), 5000)) == 128


def rows_of(batch: dict[str, Any]) -> list[int]:
    return [row_of(uid) for uid in batch["uid"]]


def make(questions: Dataset, **options: Any) -> Stream:
    return Stream("unlabeled", questions, **({"batch_size": 4, "shuffle": True, "seed": 5} | options))


# ---------------------------------------------------------------------- batches and epochs


def test_a_batch_is_in_the_columns_of_verl_with_a_uid_that_tells_the_row(questions: Dataset) -> None:
    stream = make(questions, batch_size=3, shuffle=False)
    first, second = stream.next_batch(), stream.next_batch()
    assert indices(first) == rows_of(first) == [0, 1, 2]
    assert indices(second) == rows_of(second) == [3, 4, 5]
    for name in ("raw_prompt", "uid", "reward_model", "data_source"):
        assert isinstance(first[name], np.ndarray)
        assert first[name].dtype == object
        assert first[name].shape == (3,)
    assert isinstance(first["dummy_tensor"], torch.Tensor)
    assert first["raw_prompt"][0] == questions[0]["raw_prompt"]
    assert first["uid"].tolist() == ["unlabeled-0-0", "unlabeled-1-1", "unlabeled-2-2"]
    assert len({*first["uid"], *second["uid"]}) == 6
    assert not any("_" in uid for uid in first["uid"])  # keys are {uid}_{session}_{index}


def test_a_batch_may_end_one_pass_and_begin_the_next(questions: Dataset) -> None:
    stream = make(questions, batch_size=6, shuffle=False)
    assert stream.epoch == 0
    assert drawn(stream, 3) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 0, 1]]
    assert stream.epoch == 18 / ROWS


@pytest.mark.parametrize("batch_size", [1, 5, 7, 15, ROWS])
def test_no_question_comes_back_before_all_others_had_their_turn(questions: Dataset, batch_size: int) -> None:
    stream = make(questions, batch_size=batch_size)
    batches = drawn(stream, 40)
    assert all(len(set(batch)) == batch_size for batch in batches)
    counts = np.zeros(ROWS, dtype=int)
    for batch in batches:
        counts[batch] += 1
        assert counts.max() - counts.min() <= 2  # of two passes that meet in a batch
    assert counts.sum() == 40 * batch_size
    assert stream.epoch == 40 * batch_size / ROWS


def test_a_small_set_is_repeated_within_a_batch(questions: Dataset) -> None:
    stream = make(questions, batch_size=40, repeat=3)
    for batch in drawn(stream, 6):
        counts = np.bincount(batch, minlength=ROWS)
        assert counts.sum() == 40
        assert counts.max() <= 3
    assert stream.epoch == 6 * 40 / ROWS
    assert len(set(stream.next_batch()["uid"])) == 40


def test_a_set_that_verl_has_made_too_small_is_told(questions: Dataset) -> None:
    with pytest.raises(UserError, match=r"batch_size=17 .*16 questions now; lower it .*data\.filter_overlong_prompts"):
        make(questions, batch_size=ROWS + 1)
    with pytest.raises(UserError, match=r"batch_size=33"):
        make(questions, batch_size=2 * ROWS + 1, repeat=2)


def test_the_seed_alone_decides_the_order(questions: Dataset) -> None:
    def order(seed: int, focus: float) -> list[list[int]]:
        torch.manual_seed(random.randrange(1000))  # the global generators have no say
        np.random.seed(random.randrange(1000))
        return drawn(make(questions, seed=seed, focus=focus), 8)

    for focus in (0.0, 0.5):
        assert order(1, focus) == order(1, focus)
        assert order(1, focus) != order(2, focus)


def test_an_epoch_holds_every_row_once_and_the_next_has_another_order(questions: Dataset) -> None:
    stream = make(questions, seed=3)
    epochs = [[index for batch in drawn(stream, 4) for index in batch] for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(ROWS))] * 3
    assert stream.epoch == 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != sorted(epochs[0])


# ---------------------------------------------------------------------- questions the critic is uncertain about


def test_with_focus_uncertain_questions_are_drawn_more_often(questions: Dataset) -> None:
    stream = make(questions, batch_size=2, focus=0.8)
    # the critic is sure of all but row 3, which it has judged twice, 0.2 and 0.8
    uids = [f"unlabeled-{row}-{row}" for row in range(ROWS) if row != 3] + ["unlabeled-90-3", "unlabeled-91-3"]
    stream.observe(uids, [1.0, 0.0] * 7 + [1.0] + [0.2, 0.8])
    counts = np.bincount([row for batch in drawn(stream, 400) for row in batch], minlength=ROWS)
    # drawn without replacement: the first of two is row 3 with probability 0.2 / 16 + 0.8
    assert counts[3] >= 0.75 * 400
    assert counts.min() > 0  # every question keeps some chance
    assert stream.epoch == 800 / ROWS


def test_with_focus_questions_not_judged_yet_are_as_uncertain_as_can_be(questions: Dataset) -> None:
    stream = make(questions, batch_size=1, focus=0.9)
    stream.observe([f"unlabeled-{row}-{row}" for row in range(8)], [0.99] * 8)
    counts = np.bincount([row for batch in drawn(stream, 400) for row in batch], minlength=ROWS)
    assert counts[8:].sum() > 4 * counts[:8].sum()


def test_when_the_critic_is_sure_of_everything_all_questions_are_alike(questions: Dataset) -> None:
    stream = make(questions, batch_size=4, focus=0.9)
    stream.observe([f"unlabeled-{row}-{row}" for row in range(ROWS)], [1.5] * ROWS)  # values need no range
    assert len(set(drawn(stream, 1)[0])) == 4


def test_without_focus_the_critic_has_no_say(questions: Dataset) -> None:
    told, untold = make(questions), make(questions)
    told.observe([f"unlabeled-{row}-{row}" for row in range(ROWS)], [0.5] + [1.0] * (ROWS - 1))
    assert drawn(told, 8) == drawn(untold, 8)


# ---------------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    "options",
    [{}, {"shuffle": False}, {"batch_size": 5}, {"batch_size": 20, "repeat": 2}, {"focus": 0.5}],
    ids=["whole epochs", "in order", "passes meet", "repeated", "focus"],
)
@pytest.mark.parametrize("taken", range(6))
def test_a_resumed_stream_goes_on_as_an_uninterrupted_one(
    questions: Dataset, options: dict[str, Any], taken: int, tmp_path: Path
) -> None:
    uninterrupted = make(questions, **options)
    before = drawn(uninterrupted, taken)
    uninterrupted.observe(["unlabeled-0-3"], [0.9])
    torch.save(uninterrupted.state_dict(), tmp_path / "data.pt")  # as verl saves it
    after = [uninterrupted.next_batch() for _ in range(9)]

    resumed = make(questions, **options)
    resumed.load_state_dict(torch.load(tmp_path / "data.pt", weights_only=False))
    for batch in after:
        again = resumed.next_batch()
        assert indices(again) == indices(batch)
        assert again["uid"].tolist() == batch["uid"].tolist()
    assert resumed.epoch == uninterrupted.epoch
    if not options.get("focus"):
        assert before + [indices(batch) for batch in after] == drawn(make(questions, **options), taken + 9)


def test_a_stream_can_be_resumed_again_and_again(questions: Dataset) -> None:
    expected = drawn(make(questions), 12)
    state, got = make(questions).state_dict(), []
    for _ in range(12):
        stream = make(questions)
        stream.load_state_dict(state)
        got += drawn(stream, 1)
        state = stream.state_dict()
    assert got == expected
    assert stream.epoch == 3


def test_resuming_with_another_set_is_refused(questions: Dataset) -> None:
    state = make(questions).state_dict()
    with pytest.raises(
        UserError, match=r"tempo\.unlabeled\.files: 15 questions, .* saved with 16; resume with the same"
    ):
        make([questions[row] for row in range(15)]).load_state_dict(state)


def test_both_streams_are_saved_under_their_names(questions: Dataset) -> None:
    def streams(unlabeled: bool = True) -> Streams:
        return Streams(make(questions, seed=1), make(questions, batch_size=5, seed=2) if unlabeled else None)

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
    assert stage1.labeled.epoch == 12 / ROWS
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
            "id": "q-7",
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
    batch = Stream("unlabeled", leaky, batch_size=2, shuffle=False, seed=0).next_batch()
    told = json.dumps({name: np.asarray(value).tolist() for name, value in batch.items()})
    assert SECRET not in told
    assert set(batch) <= UNLABELED_FIELDS | {"reward_model", "extra_info", "uid"}
    assert SECRET in json.dumps(leaky._rows[0], default=str)


def test_what_an_unlabeled_row_carries_on(leaky: WithoutAnswers, questions: Dataset) -> None:
    row = leaky[1]
    assert row["raw_prompt"] == [{"role": "user", "content": "1+2="}]
    assert row["agent_name"] == "tool_agent"
    assert row["reward_model"] == {"style": EXACT, "ground_truth": None}  # the style, for reading answers out
    assert row["extra_info"] == {"index": 7}
    assert len(WithoutAnswers(questions)) == ROWS


def test_any_rows_can_be_asked_for(leaky: WithoutAnswers) -> None:
    batch = batch_of(leaky, [1, 0], ["a-1", "a-0"])
    assert batch["uid"].tolist() == ["a-1", "a-0"]
    assert batch["raw_prompt"][0] == [{"role": "user", "content": "1+2="}]
    assert SECRET not in json.dumps({name: np.asarray(value).tolist() for name, value in batch.items()})


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


def check(monitor: Monitor, rows: list[int], texts: list[str]) -> np.ndarray:
    keys = [f"unlabeled-{number}-{row}_0_0" for number, row in enumerate(rows)]
    return verdicts(monitor.begin(keys, lambda: texts.__getitem__), keys)


def test_the_monitor_checks_responses_with_the_verifier_of_their_row() -> None:
    store = Monitor([Answer("5", EXACT), None, Answer("5", SUMS)])
    correct = check(store, [2, 0, 1, 0, 2], ["70y55y", "5", "5", "6", "70y5"])
    np.testing.assert_array_equal(correct, [1.0, 1.0, np.nan, 0.0, 0.0])


def test_rows_are_found_again_by_key_and_only_those_with_an_answer_are_decoded() -> None:
    decoded = []

    def text_of(row: int) -> str:
        decoded.append(row)
        return "5"

    keys = ["unlabeled-0-1_0_0", "unlabeled-1-0_0_0", "unlabeled-1-0_1_0"]
    checks = Monitor([Answer("5", EXACT), None]).begin(keys, lambda: text_of)
    np.testing.assert_array_equal(verdicts(checks, [keys[2], keys[0]]), [1.0, np.nan])
    assert sorted(decoded) == [1, 2]


def test_nothing_is_read_where_nothing_is_monitored() -> None:
    def reader() -> Any:
        raise AssertionError("nobody asked")

    for answers in ([], [None]):
        assert Monitor(answers).begin(["unlabeled-0-0_0_0"], reader) == {}


VERIFIERS = """
import os, time

def endless(response, truth):
    time.sleep(600)

def here(response, truth):
    return True, str(os.getpid())
"""


@pytest.fixture
def verifiers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "judges.py").write_text(VERIFIERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(process.PROCESSES, "1")
    monkeypatch.setattr(process, "_shared", process.Workers(1))


def test_checks_begin_at_once_take_no_longer_than_they_may_and_hold_no_other_verifier_up(verifiers: None) -> None:
    monitor, begun = Monitor([Answer("5", "judges:endless")], timeout=0.5), threading.Event()
    checks = monitor.begin(["unlabeled-0-0_0_0", "unlabeled-0-0_1_0"], lambda: lambda row: str(begun.set()))
    assert begun.wait(60)
    assert score("5", "5", "judges:here").correct
    assert not checks["unlabeled-0-0_1_0"].done()
    np.testing.assert_array_equal(verdicts(checks, list(checks)), [0.0, 0.0])


def test_checks_run_in_processes_of_their_own(verifiers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = []

    def noted(*args: Any, **options: Any) -> Any:
        judged.append(score(*args, **options))
        return judged[-1]

    monkeypatch.setattr(monitor_module, "score", noted)
    check(Monitor([Answer("5", "judges:here")]), [0, 0], ["5", "5"])
    (ours,) = {verdict.answer for verdict in judged}
    assert score("5", "5", "judges:here").answer not in (ours, str(os.getpid()))


def test_a_mistake_in_an_answer_is_told_when_the_verdict_is_read() -> None:
    checks = Monitor([Answer("many", "number")]).begin(["unlabeled-0-0_0_0"], lambda: lambda row: "answer: 5")
    with pytest.raises(UserError, match="ground_truth='many' is of no use to style=number"):
        verdicts(checks, ["unlabeled-0-0_0_0"])


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
