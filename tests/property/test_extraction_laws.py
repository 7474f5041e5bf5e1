# SPDX-License-Identifier: Apache-2.0
"""Laws of verifiers that hold for every response, whatever is in it."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tempo_verl.rewards import STYLES, extract, score
from tempo_verl.rewards.extraction import LONGEST_ANSWER, ascii_signs, cued_answer, final_answer, last_line, plain_text
from tempo_verl.rewards.mathematics import canonical
from tempo_verl.rewards.thinking import answer_part

law = settings(derandomize=True, deadline=None, max_examples=150, print_blob=True)
slow_law = settings(law, max_examples=50)

TRUTHS = {"grid": json.dumps({"House 1": {"Name": "Eric"}}), "number": "5 ± 0.1"}
SECONDS = 2.0  # for one verdict
PIECES = r"""
\boxed{ \boxed \fbox{ { } \{ \} \\ \\[ $ $$ \( \) \[ \] \frac{ \frac12 \sqrt{ \text{ \left( \right) ^{ _{ ^ _ &
\begin{pmatrix} \end{pmatrix} \begin{cases} \pi \infty \pm \le \cup \in \sum_{k=1}^ \int_0^1 \binom{ \log \sin ! 0 1
2 10 -3 1,000 .5 5. 1e400 x y i e nan = < > + - * / | % \% ° √ ² ½ − ， ５ ٥ 中 \, \! ~ , ; : . ? # #### <think>
</think> <answer> </answer> answer is final correct hope it I the and or (A) B **C** option choice { " : [ ]
{"House1":{"Name":"Eric"}} {"solution": ± null
"""
SPACES = ("", "", "", " ", " ", "\n", "\n\n", "\r\n", "\u200b", "\u202e", "\u00a0")

texts = st.text(max_size=300) | st.binary(max_size=300).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
soups = st.lists(st.tuples(st.sampled_from(PIECES.split()), st.sampled_from(SPACES)), max_size=60).map(
    lambda pieces: "".join(part for piece in pieces for part in piece)
)
repeats = st.builds(lambda soup, times: (soup * times)[:20_000], soups, st.integers(1, 2000))
responses = texts | soups | repeats

numbers = st.integers(-(10**6), 10**6).map(str) | st.decimals(-1000, 1000, places=2).map(str)
fractions = st.builds(r"\frac{{{}}}{{{}}}".format, st.integers(-99, 99), st.integers(1, 99))
terms = numbers | fractions | st.sampled_from(["x", r"\pi", r"\sqrt{2}", r"x^{2}", r"\text{no}"])
formulas = (
    terms
    | st.builds("{} + {}".format, terms, terms)
    | st.builds("({}, {})".format, terms, terms)
    | st.builds(r"\left[ {}, {} \right)".format, numbers, numbers)
    | st.builds("x = {}".format, terms)
    | st.builds(r"\{{{}, {}\}}".format, terms, terms)
)
# Prose without anything that marks an answer; "<" begins tags, "%" may follow a box.
prose = st.text(st.characters(exclude_characters="\\{}#<%$", exclude_categories=["Cs"]), max_size=200).filter(
    lambda text: "hope" not in text.casefold()
)


# ---------------------------------------------------------------------- every response


@law
@given(responses)
def test_reading_never_fails_and_never_takes_long(text: str) -> None:
    started = time.monotonic()
    for read in (final_answer, cued_answer, last_line):
        answer = read(text)
        assert answer is None or (answer == answer.strip() != "" and len(answer) <= LONGEST_ANSWER)
    for rewrite in (plain_text, ascii_signs, canonical):
        assert isinstance(rewrite(text), str)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("style", STYLES)
@slow_law
@given(responses)
def test_a_verdict_never_fails_and_never_takes_long(style: str, text: str) -> None:
    started = time.monotonic()
    result = score(text, TRUTHS.get(style, "5"), style, timeout=SECONDS)
    assert time.monotonic() - started < SECONDS + 10  # a child may have to start
    assert result.answer is None or result.answer
    assert result.error is None or (style == "math" and not result.correct)
    assert not (result.correct and result.answer is None)


@pytest.mark.parametrize("style", [style for style in STYLES if style != "math"])
@law
@given(responses)
def test_the_verdict_depends_on_the_answer_that_is_voted_on(style: str, text: str) -> None:
    truth = TRUTHS.get(style, "5")
    answer = extract(text, style)
    assert score(text, truth, style).answer == answer
    if answer is not None and style != "grid":
        assert score(f"<answer>{answer}</answer>", truth, style).correct or not score(text, truth, style).correct


@law
@given(responses)
def test_signs_become_ascii_once(text: str) -> None:
    once = ascii_signs(text)
    assert ascii_signs(once) == once
    assert len(once) <= len(text)


# ---------------------------------------------------------------------- marked answers


@law
@given(formulas)
def test_an_answer_in_a_box_is_the_answer(formula: str) -> None:
    assert final_answer(rf"\boxed{{{formula}}}") == formula
    assert canonical(canonical(formula)) == canonical(formula)
    assert extract(rf"\boxed{{{canonical(formula)}}}") == extract(rf"\boxed{{{formula}}}") == canonical(formula)


@law
@given(
    formulas, st.sampled_from([r"\boxed{%s}", r"$\boxed{ %s }$.", "<answer>%s</answer>", "#### %s", r"\boxed{$%s$.}"])
)
def test_an_answer_equals_itself(formula: str, mark: str) -> None:
    result = score(mark.replace("%s", formula), formula)
    assert result.correct and result.formatted and result.error is None
    assert result.answer == canonical(formula)


@law
@given(prose, formulas, prose)
def test_prose_around_a_box_does_not_matter(before: str, formula: str, after: str) -> None:
    assume("percent" not in after and "pct" not in after)
    assert final_answer(rf"{before}\boxed{{{formula}}}{after}") == formula
    assert final_answer(rf"\boxed{{0}} {before}<answer>{formula}</answer>{after}") == formula


@law
@given(prose, formulas, formulas)
def test_thinking_does_not_matter(thought: str, first: str, last: str) -> None:
    response = rf"<think>{thought}\boxed{{{first}}}</think>\boxed{{{last}}}"
    assert final_answer(answer_part(response)) == last


@law
@given(st.lists(formulas, min_size=1, max_size=4, unique=True))
def test_boxes_that_are_joined_are_one_answer(answers: list[str]) -> None:
    boxes = [rf"$\boxed{{{answer}}}$" for answer in answers]
    assert final_answer("So " + " and ".join(boxes)) == final_answer("So " + ", ".join(boxes)) == ", ".join(answers)
    assert final_answer(".\n\nBut then\n\n".join(boxes)) == answers[-1]


@law
@given(st.integers(-(10**30), 10**30), st.integers(-(10**30), 10**30))
def test_integers_are_equal_if_they_are(one: int, other: int) -> None:
    assert score(rf"\boxed{{{one:,}}}", str(one)).correct
    assert score(rf"\boxed{{{one}}}", str(other)).correct is (one == other)


@law
@given(st.floats(-1e9, 1e9), st.floats(1e-3, 10))
def test_a_number_is_right_within_its_tolerance(value: float, tolerance: float) -> None:
    truth = f"{value!r} ± {tolerance!r}"
    assert score(f"<answer>{value + tolerance / 2!r}</answer>", truth, "number").correct
    assert not score(f"<answer>{value + tolerance * 2 + abs(value) * 1e-9!r}</answer>", truth, "number").correct


@law
@given(
    st.sampled_from("ABCDEFGH"),
    st.sampled_from("ABCDEFGH"),
    st.sampled_from(["%s", "(%s)", "**%s**", r"\boxed{\text{%s}}"]),
)
def test_letters_are_equal_if_they_are(one: str, other: str, form: str) -> None:
    assert score(form.replace("%s", one), other, "choice").correct is (one == other)
    assert score(form.replace("%s", one), f"({other}) Paris", "choice").correct is (one == other)
