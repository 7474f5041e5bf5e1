# SPDX-License-Identifier: Apache-2.0
"""Verdicts by kind: what is the same however it is written, and what only looks alike."""

from __future__ import annotations

import time

import pytest

from tempo_verl.rewards import groups, score

SAME = [
    # numbers, exactly
    (r"e^{i\pi/4}", r"\frac{\sqrt2}{2}+\frac{\sqrt2}{2}i"),
    (r"(2+i)^2", "3+4i"),
    (r"-3+i\sqrt{5}", r"-3+\sqrt5 i"),
    (r"\tan^{-1}3", r"\arctan 3"),
    (r"\cos^{-1}\frac{1}{4}", "acos(1/4)"),
    ("sqrt 7", r"\sqrt{7}"),
    ("ln 5", r"\ln(5)"),
    (r"7 \text{ million}", "7000000"),
    ("2 dozen", "24"),
    (r"\text{seven}", "7"),
    ("forty-two", "42"),
    ("7:30 a.m.", "7:30 AM"),
    (r"\bm{9}", "9"),
    (r"\framebox{31}", "31"),
    (r"9\hspace{2mm}", "9"),
    (r"\text{The answer is }9", "9"),
    (r"\frac{5}{2} \text{ or } 2.5", "5/2"),
    (r"2{:}7", "2:7"),
    # units, with every spacing
    ("49 cm²", "49"),
    ("9.8 m/s²", "9.8"),
    ("12ft", "12"),
    ("20 N·m", "20"),
    ("31 °C", "31"),
    (r"8\pi\text{ cm}", r"8\pi"),
    (r"5\text{ hours and }10\text{ minutes}", "5 hours 10 minutes"),
    # bases, residues, orders
    (r"110_{\text{two}}", "110_2"),
    ("(110)_2", "110_2"),
    (r"x\equiv 4\pmod 9", r"4 \bmod 9"),
    (r"n \equiv 2, 5 \pmod 9", r"n\equiv 5,2\ (\text{mod }9)"),
    ("p<q<r", "r>q>p"),
    # sets of numbers
    (r"\{x \mid x > 5\}", r"(5,\infty)"),
    (r"\{x : -2 < x \le 6\}", "(-2,6]"),
    (r"x>2 \text{ and } x<8", "(2,8)"),
    (r"|x|>4", r"(-\infty,-4)\cup(4,\infty)"),
    (r"|x-1|<2", "(-1,3)"),
    (r"x=0 \text{ or } x \ge 9", r"\{0\}\cup[9,\infty)"),
    (r"\mathbb{R}\setminus\{4\}", r"x \ne 4"),
    (r"\text{all real numbers}", r"(-\infty,\infty)"),
    (r"[1,6]\cap(2,9)", "(2,6]"),
    (r"\text{No real solutions}", r"\text{no solution}"),
    (r"\text{DNE}", r"\text{does not exist}"),
    (r"\begin{aligned} x&=4\\ y&=7\end{aligned}", "x=4, y=7"),
    (r"2 \pm \sqrt3", r"2+\sqrt3, 2-\sqrt3"),
]
DIFFERENT = [
    (r"\frac{1}{1000!}", r"\frac{1}{1001!}"),
    (r"1-\frac{1}{3000!}", "1"),
    (r"\sqrt{10^{18}+1}", "10^9"),
    ("0.333334", r"\frac13"),
    (r"\sqrt{x^2}", "x"),
    (r"\tan^{-1}3", r"\frac{1}{\tan 3}"),
    (r"4\mathbf{i}+\mathbf{j}", r"4\mathbf{i}-\mathbf{j}"),
    ("110_2", "110_3"),
    (r"6\text{ hours and }20\text{ minutes}", "6"),
    (r"6\text{ boys and }9\text{ girls}", r"6\text{ boys and }8\text{ girls}"),
    (r"6\text{ cm}\times 4\text{ cm}", r"6\text{ cm}\times 5\text{ cm}"),
    (r"7 \text{ million}", "7"),
    ("7 squared", "7"),
    (r"7\text{ or more}", "7"),
    (r"9\text{ AM}", r"9\text{ PM}"),
    ("12 noon", "12 midnight"),
    ("4 meters north", "4 meters south"),
    (r"20\%\text{ profit}", r"20\%\text{ loss}"),
    ("p<q<r", "q<p<r"),
    (r"(5,\infty)", r"[5,\infty)"),
    (r"x\equiv 4\pmod 9", r"x\equiv 4\pmod 8"),
]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_the_same_whichever_is_the_truth(first: str, second: str) -> None:
    assert score(rf"\boxed{{{first}}}", second).correct
    assert score(rf"\boxed{{{second}}}", first).correct


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_different_whichever_is_the_truth(first: str, second: str) -> None:
    assert not score(rf"\boxed{{{first}}}", second).correct
    assert not score(rf"\boxed{{{second}}}", first).correct


@pytest.mark.parametrize(
    "spellings",
    [
        [r"\{4,7\}", r"x=4 \text{ or } x=7", r"\{7, 4\}"],
        [r"\pm 6", r"\{6,-6\}", "6, -6"],
        [r"3,\!456", "3456", "3,456"],
        ["ln 5", r"\ln 5", r"\ln(5)"],
        ["8:15", "8:15 AM", "8:15 a.m."],
    ],
)
def test_groups_agree_with_verdicts(spellings: list[str]) -> None:
    assert set(groups(spellings)) == set(groups(spellings[::-1])) == {0}


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["8:15 AM", "8:15 PM", "8:15"], [0, 1, 2]),  # the third may be either
        (["4 km north", "4 km south", "4 km north"], [0, 1, 0]),
        ([r"20\%\text{ increase}", r"20\%\text{ decrease}"], [0, 1]),
        ([r"\{1,2\}", "(1,2)", "(2,1)"], [0, 1, 2]),
    ],
)
def test_what_verdicts_tell_apart_groups_do_too(answers: list[str], expected: list[int]) -> None:
    assert groups(answers) == expected


def test_numbers_of_any_size_have_a_group() -> None:
    assert groups(["3000!", "3000!", "2999!", "10^{9000}"]) == [0, 0, 1, 2]


# ---------------------------------------------------------------------- what a text states


@pytest.mark.parametrize(
    ("response", "truth"),
    [
        ("The answer is not 8.", "8"),
        ("The answer isn't 8.", "8"),
        ("The answer is at least 8.", "8"),
        ("The answer is twice 8.", "8"),
        ("The answer is 8 or more.", "8"),
        ("The answer is negative 8.", "8"),
        ("The answer is the square root of 8.", "8"),
        ("So the minimum is $-2$ and the maximum is $8$.", "8"),
    ],
)
def test_a_number_is_not_all_that_is_said(response: str, truth: str) -> None:
    assert not score(response, truth).correct


@pytest.mark.parametrize(
    ("response", "truth"),
    [
        ("The answer is negative 8.", "-8"),
        ("The answer is therefore 8.", "8"),
        ("The answer is 8 because 2 + 6 = 8.", "8"),
        ("The answer is 2/5 of the cake.", r"\frac25"),
    ],
)
def test_an_answer_in_prose(response: str, truth: str) -> None:
    assert score(response, truth).correct


@pytest.mark.parametrize(
    "answer",
    ["6x", "6 x", "6xy", "6n", "6i", "6v_0", "6gh", "0.6mv^2", r"6\,\alpha", "6πr", "6RT", "6 Z^2",
     "6 hours 20 minutes", "6 out of 9", "1 in 6", "6 x 9", "6 million", "x = 2, y = 6", "x = 2 or x = 6",
     "6 and a half"],
)  # fmt: skip
def test_a_number_is_never_part_of_an_expression(answer: str) -> None:
    for truth in ("6", "0.6"):
        assert not score(rf"\boxed{{{answer}}}", truth, "number").correct


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("6 kg", "6"),
        (r"6 \, \mathrm{m/s^2}", "6 ± 0.1"),
        ("6 million", "6000000"),
        (r"\text{about } 6", "6"),
        ("6 apples out of 9", "6"),
        ("2.5 M", "2.5"),
    ],
)
def test_a_number_may_have_a_unit(answer: str, truth: str) -> None:
    assert score(rf"\boxed{{{answer}}}", truth, "number").correct


# ---------------------------------------------------------------------- choices


@pytest.mark.parametrize(
    ("response", "letters"),
    [
        (r"Thus the answer is \(C\).", "C"),
        (r"<answer>\(C\)</answer>", "C"),
        ("The answer is C rather than (B).", "C"),
        ("The answer is C due to the reason in (A).", "C"),
        ("I considered (A) but the answer is C with high confidence.", "C"),
        ("The answer is not B but C.", "C"),
        ("The answer is C; had x been 2, the answer would be A.", "C"),
        ("The answer is D. Options A, B, and C are all wrong.", "D"),
        ("The answers are B, C, and D.", "BCD"),
        ('{"answer": "C"}', "C"),
        ("Only C satisfies all the conditions.", "C"),
        ("Option B: it fails. Option C: it holds. Option D: it fails.", "C"),
        ("综上，A、B、D错误，C正确。", "C"),
        ("【答案】：C\n【解析】A错误。", "C"),
        ("Doğru cevap C'dir.", "C"),
        ("A or C, so I choose C", "C"),
        ("The answer is (B) Only I and II", "B"),
    ],
)
def test_a_choice_that_is_made(response: str, letters: str) -> None:
    assert score(response, ", ".join(letters), "choice").answer == letters


@pytest.mark.parametrize(
    "response",
    [
        "It looks plausible.\n\nNow consider option D",
        "First I check (D)",
        "Let's analyze option D.",
        "A: false\nB: true\nC: false\nD: false",
        "The answer is A or D.",
        "The answer is either (A) or (D).",
        "I'm torn between A and D.",
        "The answer is neither A nor D.",
        "Answer: none of A, B, C, D",
        "We can rule out D",
        "Both (A) and (D) look plausible. I can't decide.",
        "Option A is wrong. Option D is wrong too.",
    ],
)
def test_a_letter_that_is_not_chosen(response: str) -> None:
    assert not score(response, "D", "choice").correct
    assert not score(response, "A", "choice").correct


# ---------------------------------------------------------------------- no response raises, or takes long


@pytest.mark.parametrize(
    ("response", "style"),
    [
        (r"\boxed{7000!, 1}", "math"),
        (r"\boxed{" + "20000!+" * 17 + "1 1" + "°" * 40 + "}", "math"),
        (r"\boxed{(((1.5+i)^{200})^{200})^{200}}", "math"),
        ("x is 1 and " * 2000 + "z", "math"),
        (r"\boxed{\text{answer" + " " * 2000 + "}}", "math"),
        (("20000!+" * 12 + "1 1 " + "(" * 20 + " a ") * 2, "number"),
        ("A, " * 20_000, "choice"),
        ("(A) or (B), option C is not " * 2000, "choice"),
    ],
)
def test_our_own_readers_are_quick(response: str, style: str) -> None:
    """They run where no time limit holds. Measured: at most .2 s."""
    started = time.process_time()
    assert not score(response, "11", style).correct
    assert time.process_time() - started < 3
