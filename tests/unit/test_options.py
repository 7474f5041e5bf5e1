# SPDX-License-Identifier: Apache-2.0
"""The options of a row, ``extra_info.options``: the text of an option and its letter are one answer everywhere."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import Dataset
from verl import DataProto

from tempo_verl.data.monitor import Monitor, verdicts
from tempo_verl.data.prepare import Settings, prepare
from tempo_verl.data.streams import WithoutAnswers
from tempo_verl.evaluation.questions import load_questions
from tempo_verl.evaluation.samples import Sample, spelled
from tempo_verl.evaluation.summary import measure
from tempo_verl.rewards import extract, options_of, score
from tempo_verl.rewards.manager import TempoRewardManager

CITIES = ["Paris", "Rome", "New York", "1/2"]
ROW: dict[str, Any] = {
    "data_source": "cities",
    "prompt": [{"role": "user", "content": "Which city?"}],
    "reward_model": {"style": "choice", "ground_truth": "(B) Rome"},
    "extra_info": {"index": 0, "options": CITIES},
}


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{B}", "B"),
        (r"\boxed{Rome}", "B"),
        (r"\boxed{\text{rome}}", "B"),
        ("The answer is new york.", "C"),
        (r"\boxed{0.5}", "D"),
        (r"\boxed{\frac12}", "D"),
        (r"\boxed{Oslo}", "oslo"),
        ("", None),
    ],
)
def test_the_text_of_an_option_is_read_as_its_letter(response: str, answer: str | None) -> None:
    assert extract(response, "choice", options=CITIES) == answer


@pytest.mark.parametrize("truth", ["B", "(B)", "(B) Rome", "Rome"])
def test_letter_and_text_are_right_whichever_is_the_truth(truth: str) -> None:
    for response in ("B", r"\boxed{B}", r"\boxed{Rome}", "(B) Rome"):
        assert score(response, truth, "choice", options=CITIES).correct, response
    for response in ("A", r"\boxed{Paris}", r"\boxed{Oslo}"):
        assert not score(response, truth, "choice", options=CITIES).correct, response


def test_a_letter_is_always_that_of_an_option() -> None:
    assert extract(r"\boxed{A}", "choice", options=["C", "A", "B"]) == "A"
    assert score(r"\boxed{A}", "A", "choice", options=["C", "A", "B"]).correct


@pytest.mark.parametrize(
    "response",
    [
        r"\boxed{\text{Only I and II}}",
        "The answer is (B) Only I and II",
        "The answer is only I and II.",
        "Only I and II",
    ],
)
def test_a_letter_within_the_text_of_an_option_is_not_the_answer(response: str) -> None:
    assert extract(response, "choice", options=["Only I", "Only I and II", "II"]) == "B"


def test_a_text_that_two_options_have_names_neither() -> None:
    assert extract(r"\boxed{no}", "choice", options=["no", "yes", "No."]) == "no"


def test_options_that_come_with_their_letters() -> None:
    assert extract(r"\boxed{Rome}", "choice", options=["(A) Paris", "(B) Rome"]) == "B"
    assert extract(r"\boxed{Paris}", "choice", options=["A. Paris", "B. Rome"]) == "A"


@pytest.mark.parametrize("options", [None, [], "A, B", {"A": "Paris"}])
def test_a_row_that_does_not_tell_its_options(options: Any) -> None:
    assert options_of({"options": options}) is None


def test_options_may_be_an_array_of_anything() -> None:
    assert options_of({"options": np.array([3, 5])}) == ["3", "5"]


class Says:
    def decode(self, ids, skip_special_tokens: bool) -> str:
        return r"\boxed{Rome}"


@pytest.mark.parametrize("truth", ["B", None])
def test_the_reward_manager_gives_the_letter(truth: str | None) -> None:
    tensors = {"responses": torch.ones(1, 4, dtype=torch.long), "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    data = DataProto.from_dict(tensors)
    row = ROW | {"reward_model": {"style": "choice", "ground_truth": truth}}
    data.non_tensor_batch |= {name: np.array([row[name]], dtype=object) for name in ("reward_model", "extra_info")}
    info = asyncio.run(TempoRewardManager(None, Says()).run_single(data))["reward_extra_info"]
    assert info["pred"] == "B"
    assert info.get("acc") == (None if truth is None else 1.0)


class Rows(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        return ROW | {"raw_prompt": ROW["prompt"]}


def test_an_unlabelled_row_keeps_its_options_and_the_monitor_knows_them() -> None:
    rows = WithoutAnswers(Rows())
    assert rows[0]["extra_info"] == {"index": 0, "options": CITIES}
    assert rows[0]["reward_model"]["ground_truth"] is None
    keys = [f"unlabeled-0-0_{sample}_0" for sample in range(2)]
    checks = Monitor(rows.monitoring_answers()).begin(keys, lambda: [r"\boxed{Rome}", r"\boxed{Paris}"].__getitem__)
    assert verdicts(checks, keys).tolist() == [1.0, 0.0]


def test_prepared_rows_have_them(tmp_path: Path) -> None:
    source, out = tmp_path / "cities.jsonl", tmp_path / "cities.parquet"
    source.write_text(json.dumps({"question": "Which?", "options": CITIES, "answer": "C"}) + "\n")
    prepare(Settings(sources=(str(source),), out=out, kind="labeled"))
    (question,) = load_questions("--data", [out], with_answers=True)
    assert (question.options, question.ground_truth) == (CITIES, "(C) New York")
    assert score(r"\boxed{new york}", question.ground_truth, question.style, options=question.options).answer == "C"


def test_a_question_of_an_evaluation_has_them(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([ROW]), tmp_path / "cities.parquet")
    (question,) = load_questions("--data", [tmp_path / "cities.parquet"], with_answers=False)
    assert question.options == CITIES


def samples(style: str, *answers: str | None, correct: str) -> list[Sample]:
    return [
        Sample(0, "0", "hash", "set", number, 0, "text", answer, answer in correct.split(";"), True, 5, False, None)
        for number, answer in enumerate(answers)
    ]


def test_an_evaluation_counts_answers_not_spellings() -> None:
    """Three spellings of a half against two of a third: the vote is right, and there are two answers."""
    drawn = samples("math", "1/2", "0.5", "1/3", "1/3", r"\frac{1}{2}", None, correct=r"1/2;0.5;\frac{1}{2}")
    before, after = (measure(of, [6]) for of in (drawn, spelled(drawn)))
    assert (before["maj@6"], after["maj@6"]) == (0.0, 1.0)
    assert (before["distinct_answers"], after["distinct_answers"]) == (4.0, 2.0)
    assert after["no_answer"] == before["no_answer"] == pytest.approx(1 / 6)
    assert [sample.response for sample in spelled(drawn)] == ["text"] * 6


def test_the_answers_of_other_questions_are_left_alone() -> None:
    other = Sample(1, "1", "other", "set", 0, 0, "text", "1/2", True, True, 5, False, None)
    drawn = [*samples("math", "0.5", correct=""), other]
    assert [sample.answer for sample in spelled(drawn)] == ["0.5", "1/2"]
