# SPDX-License-Identifier: Apache-2.0
"""Laws of groups: an equivalence, whatever the order of the answers, on anything that a policy may write."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tempo_verl.rewards import groups, mathematics, numeric, reading
from tempo_verl.rewards.grouping import representatives

law = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

PIECES = [
    *"0123456789+-*/^_=<>,.;:!|()[]{}%$ xyzABeiπ√½∞≤≥≠∈∪", r"\frac", r"\sqrt", r"\pi", r"\le", r"\in", r"\cup",
    r"\infty", r"\text{ cm}", r"\text{", r"\mathrm{kg}", r"\left(", r"\right]", r"\{", r"\}", r"\ldots", r"\\", " or ",
    " and ",     "yes", "sqrt(", r"^\circ", "e-5", "10:30", r"\begin{cases}", r"\end{cases}", " km/h",
]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join)
forms = st.sampled_from(
    [
        "1/2",
        "0.5",
        r"50\%",
        r"\frac12",
        "2",
        "x=2",
        "(1,2)",
        r"\{1,2\}",
        "[1,2]",
        "1<x<2",
        "x+x",
        "2x",
        "yes",
        "Yes",
        "AB",
    ]
)


@pytest.fixture(autouse=True)
def _no_algebra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mathematics, "equivalent", lambda first, second, timeout: False)  # a process for each pair


@law
@given(st.lists(st.none() | texts | forms, max_size=8), st.randoms(use_true_random=False))
def test_groups_do_not_depend_on_the_order_of_answers(answers: list[str | None], random) -> None:
    order = list(range(len(answers)))
    random.shuffle(order)
    numbers, shuffled = groups(answers), groups([answers[place] for place in order])
    pairs = {(first, second): numbers[first] == numbers[second] for first in order for second in order}
    for one, first in enumerate(order):
        for other, second in enumerate(order):
            assert (shuffled[one] == shuffled[other]) is pairs[first, second]
    usual = representatives(answers, numbers)
    assert [usual[place] for place in order] == representatives([answers[place] for place in order], shuffled)


@law
@given(texts | forms, texts | forms)
def test_reading_is_symmetric_and_every_answer_is_its_own_equal(first: str, second: str) -> None:
    one, other = reading.read(first), reading.read(second)
    assert reading.same(one, other) == reading.same(other, one)
    assert numeric.agree(first, second) == numeric.agree(second, first)
    if one is not None:
        assert reading.same(one, one)
    assert groups([first, first]) == [0, 0]


@pytest.mark.parametrize(
    "unit",
    [r"\text{a}", "A", r"\text{", " km", " a/", r"\,", "x<", "1,", r"\cup", "(", r"\frac{\text{a}}{", "or ", "=", "∈"],
)
def test_no_answer_takes_long_to_read(unit: str) -> None:
    started = time.process_time()
    for length in (40, 195):
        for text in (
            (unit * length)[:length] + "1",
            "1" + (unit * length)[:length],
            "5 " + (unit * length)[:length] + "!",
        ):
            reading.read(text)
    assert time.process_time() - started < 5
