# SPDX-License-Identifier: Apache-2.0
"""Which answers say the same: one vote for all spellings of an answer."""

from __future__ import annotations

import random

import pytest

from tempo_verl.rewards import equivalent, grouping, groups, mathematics


@pytest.mark.parametrize(
    ("style", "spellings"),
    [
        ("math", ["3/4", r"\frac34", "0.75", r"75\%", r"\dfrac{3}{4}", ".75", "x=3/4", r"\frac{6}{8}"]),
        ("math", ["2,500", "2500", r"2{,}500", "2500.00", "2 500"]),
        ("math", [r"[0,3)", r"0 \le x < 3", r"x \in [0, 3)", "3 > x >= 0"]),
        ("math", ["No", "no", r"\text{No}", "NO."]),
        ("math", [r"\{1, 2\}", r"\{2,1\}"]),
        ("math", ["(1, 2)", r"\left(1,2\right)"]),
        ("math", ["a^2-b^2", "(a+b)(a-b)", "a^2 - b^2"]),
        ("math", [r"\sin(2x)", r"2\sin x\cos x"]),
        ("choice", ["B", "(B)", "b", r"\text{B}", "B. Rome", "Rome"]),
        ("number", ["1,000", "1000", "1e3", "1000 m"]),
        ("text", ["Paris", "paris.", r"\text{Paris}"]),
    ],
)
def test_spellings_of_one_answer_are_one_group(style: str, spellings: list[str]) -> None:
    for order in range(3):
        shuffled = random.Random(order).sample(spellings, len(spellings))
        assert groups(shuffled, style) == [0] * len(spellings)


@pytest.mark.parametrize(
    ("style", "answers"),
    [
        ("math", ["1/3", "0.33", "3", "1/2"]),
        ("math", ["(1,2)", r"\{1,2\}", "[1,2]", "12"]),
        ("math", ["x", "y", "x^2", "2x"]),
        ("math", ["BAC", "ABC", "yes", "no"]),
        ("math", [r"2^{-2025}", r"2^{-2024}", "0"]),
        ("choice", ["A", "B", "AB", "Rome"]),
        ("exact", ["Paris", "paris"]),
        ("own:verifier", ["1", "1.0"]),
    ],
)
def test_different_answers_are_different_groups(style: str, answers: list[str]) -> None:
    assert groups(answers, style) == list(range(len(answers)))


def test_no_answer_is_in_no_group() -> None:
    assert groups([None, "1", None, "2", "1"]) == [None, 0, None, 1, 0]
    assert groups([]) == []


def test_the_options_of_a_row_tell_which_text_is_which_letter() -> None:
    assert groups(["A", "Paris", "B", "rome", "Oslo"], "choice", options=["Paris", "Rome"]) == [0, 0, 1, 1, 2]
    assert groups(["B", "Rome"], "choice", options=["(A) Paris", "(B) Rome"]) == [0, 0]
    assert groups(["B", "Rome"], "choice") == [0, 1]


def test_comparisons_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(mathematics, "equivalent", lambda *pair: calls.append(pair))
    answers = [rf"f_{{{number}}}(x) = y" for number in range(64)]  # nothing but algebra tells these apart
    assert groups(answers) == list(range(64))
    assert len(calls) == grouping.MOST_COMPARISONS < 64 * 63 // 2


@pytest.mark.parametrize("verdict", [None, True, False])
def test_two_answers_are_equivalent_different_or_without_a_verdict(monkeypatch: pytest.MonkeyPatch, verdict) -> None:
    monkeypatch.setattr(mathematics, "equivalent", lambda *pair: verdict)
    assert equivalent(r"\heartsuit", r"\spadesuit") is verdict
    assert equivalent("7", "7.0") is True
