# SPDX-License-Identifier: Apache-2.0
"""Thinking marks of the models in use: an answer stands behind them."""

from __future__ import annotations

import json
import time

import pytest

from tempo_verl.rewards import STYLES, extract, score
from tempo_verl.rewards.thinking import answer_part

GRID = json.dumps({"header": ["House", "Name"], "rows": [["1", "Ann"]]})
RIGHT = {
    "math": r"\boxed{B}",
    "choice": "B",
    "text": "b",
    "exact": "B",
    "number": "7",
    "grid": '{"House 1": {"Name": "Ann"}}',
}
WRONG = RIGHT | {
    "math": r"\boxed{C}",
    "choice": "C",
    "text": "c",
    "exact": "C",
    "number": "8",
    "grid": '{"House 1": {"Name": "Bob"}}',
}
TRUTH = {"math": "B", "choice": "B", "text": "b", "exact": "B", "number": "7", "grid": GRID}
MARKS = [
    "<think>{}</think>",
    "<thinking>{}</thinking>",
    "<thought>{}</thought>",
    "<reasoning>{}</reasoning>",
    "[THINK]{}[/THINK]",
    "<|begin_of_thought|>{}<|end_of_thought|>",
    "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
    "{}</think>",  # the template has opened it
]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("marks", MARKS)
def test_what_stands_behind_the_thinking_is_the_answer(marks: str, style: str) -> None:
    assert score(marks.format(WRONG[style]) + "\n" + RIGHT[style], TRUTH[style], style).correct
    assert not score(marks.format(RIGHT[style]) + "\n" + WRONG[style], TRUTH[style], style).correct


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("begin", [marks.split("{}")[0] for marks in MARKS[:-1]])
def test_unfinished_thinking_is_no_answer_unless_it_is_asked_for(begin: str, style: str) -> None:
    response = begin + RIGHT[style]
    assert extract(response, style) is None
    assert not score(response, TRUTH[style], style).correct
    if begin == "<think>" and style != "exact":
        assert score(response, TRUTH[style], style, read_unfinished=True).answer is not None


@pytest.mark.parametrize(
    ("response", "part"),
    [
        ("<think>a</think>\nb", "\nb"),
        ("<think>a</think>\n", "<think>a</think>\n"),  # some models put their answer there
        ("a", "a"),
        ("<think>a</think>b<think>c", ""),
        ("a</think>b</think>c", "c"),
        ("analysisWe try 5. No.assistantfinalIt is 6.", "It is 6."),
        ("analysisWe try 5", ""),
        ("analysis of the data", "analysis of the data"),
        ("<|channel|>final<|message|>6<|return|>", "6"),
        ("<|begin_of_solution|>6<|end_of_solution|>", "6"),
    ],
)
def test_the_part_with_the_answer(response: str, part: str) -> None:
    assert answer_part(response) == part


@pytest.mark.parametrize(
    "unit", ["<think>", "</think>", "[THINK]", "<|channel|>final", "assistantfinal", "<|", "analysis"]
)
def test_many_marks_take_no_time(unit: str) -> None:
    started = time.process_time()
    answer_part(unit * (100_000 // len(unit)))
    assert time.process_time() - started < 5
