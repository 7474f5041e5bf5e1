# SPDX-License-Identifier: Apache-2.0
"""Mathematical answers, right and wrong, in the ways people and models write them; needs Math-Verify."""

from __future__ import annotations

import json
import random
import re
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tempo_verl.rewards import check_ground_truth, extract, score
from tempo_verl.rewards.mathematics import canonical
from tempo_verl.rewards.process import Workers

pytest.importorskip("math_verify", reason="the extra 'math' is not installed")
from tempo_verl.rewards.algebra import MEMORY, limited_memory

MATRIX = r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"

EQUAL = [  # ground truth, what stands in the box
    ("-3", "−3"),
    ("0", "-0"),
    ("7", "007"),
    ("1000", "1,000"),
    ("1,000", "1000"),
    ("10,000,000.5", r"10{,}000{,}000.5"),
    ("1000", r"1\,000"),
    ("0.5", ".5"),
    ("2", "2.0"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", r"\frac12"),
    (r"\frac{1}{2}", r"\dfrac{2}{4}"),
    (r"\frac{3}{2}", r"1\frac{1}{2}"),
    (r"\frac{1}{3}", "0.33333333"),
    ("-0.5", r"-\tfrac{1}{2}"),
    (r"5\%", "0.05"),
    (r"5\%", "5"),
    ("5", r"5\%"),
    ("12", r"12\text{ cm}"),
    (r"12 \text{ cm}^2", "12"),
    ("30", r"30^\circ"),
    ("30", "30°"),
    (r"\$18.90", "18.9"),
    ("18.90", r"\$18.90"),
    ("5", "€5"),
    (r"\sqrt{12}", r"2\sqrt3"),
    (r"\sqrt{2}", "√2"),
    (r"2\pi", "2π"),
    (r"\infty", "∞"),
    ("1024", "2^{10}"),
    ("1500", r"1.5 \times 10^3"),
    ("10", r"\binom{5}{2}"),
    ("3+4i", "4i + 3"),
    ("5", "x = 5"),
    ("x=5", "5"),
    ("y = 2x + 3", "y - 2x = 3"),
    ("(x+1)^2", "x^2+2x+1"),
    ("5, 6", "6,5"),
    ("5, 6", r"x = 5 \text{ or } x = 6"),
    ("3, -3", r"\pm 3"),
    (r"1 \pm \sqrt{2}", r"1+\sqrt2, 1-\sqrt2"),
    (r"\{1, 2\}", r"\{2, 1\}"),
    (r"\left(\frac{1}{2}, 3\right)", "(0.5,3)"),
    ("[2,5)", r"\left[2, 5\right)"),
    (r"(-\infty, 2) \cup (3, \infty)", r"(-\infty,2)\cup(3,\infty)"),
    ("x > 3", "3 < x"),
    (MATRIX, MATRIX.replace("pmatrix", "bmatrix")),
    ("1011_2", "1011_{2}"),
    (r"\text{Evelyn}", "evelyn"),
    (r"\text{no solution}", "No solution."),
    (r"\text{May 5}", "May 5"),
    (r"\text{(C)}", "C"),
    ("Yes", r"\text{Yes.}"),
    ("4", "$4$"),
    ("4", r"\(4\)"),
    ("4", r"\[ 4 \]"),
    ("4", r"\mathbf{4}"),
]

DIFFERENT = [
    ("3", "-3"),
    ("1000", "1,001"),
    (r"\frac{1}{3}", "0.333"),
    (r"\frac{1}{2}", r"\frac{1}{0}"),
    (r"5\%", r"6\%"),
    ("5", "50%"),
    ("(5, 6)", "(6, 5)"),
    ("5, 6", "5"),
    ("5, 6", "5, 6, 7"),
    ("[2,5]", "[2,5)"),
    ("x > 3", r"x \ge 3"),
    ("3", r"\pm 3"),
    (r"\infty", r"-\infty"),
    (MATRIX, MATRIX.replace("4", "5")),
    ("1011_2", "1010_2"),
    ("1011_2", "3"),
    ("12:30", "2:30"),
    (r"\text{(C)}", "D"),
    ("Yes", "No"),
    (r"\text{even}", "odd"),
    ("5", "1/0"),
    ("5", "nan"),
    ("5", "1e400"),
    ("5", "{"),
    ("9" * 5000, "9" * 4999 + "8"),
]


@pytest.mark.parametrize(("truth", "boxed"), EQUAL)
def test_equal(truth: str, boxed: str) -> None:
    result = score(rf"So it is $\boxed{{{boxed}}}$.", truth)
    assert result.correct and result.formatted and result.error is None


@pytest.mark.parametrize(("truth", "boxed"), DIFFERENT)
def test_different(truth: str, boxed: str) -> None:
    result = score(rf"So it is $\boxed{{{boxed}}}$.", truth)
    assert not result.correct and result.error is None


@pytest.mark.parametrize(
    ("response", "truth", "answer"),
    [
        ("The answer is 4.", "4", "4"),
        ("**Answer:** $x=4$", "4", "x=4"),
        (r"Therefore \(\frac{1}{2}\) is the answer.", "0.5", r"\frac{1}{2}"),
        ("The final answer is $4$. I hope it is correct.", "4", "4"),
        (r"\boxed{3} and \boxed{4}", "4, 3", "3,4"),
        (r"\boxed{5} percent", r"5\%", r"5\%"),
        ("#### 1,000", "1000", "1000"),
        (r"<think>\boxed{3}</think>The answer is 4.", "4", "4"),
        ("答案是 42", "42", "42"),
        ("The sum of $1$ and $3$.\n\n" + "And on. " * 2000 + "\n\nThe answer is $4$.", "4", "4"),
        ("costs $" + "a long way " * 1000 + "\n\n$$x$$ is $$4$$", "4", "4"),  # no formula is read inside out
    ],
)
def test_the_answer_is_found(response: str, truth: str, answer: str) -> None:
    result = score(response, truth)
    assert result.correct
    assert result.answer == answer


@pytest.mark.parametrize("response", ["", " ", "I do not know", r"\boxed{", r"\boxed{}", "$$", "（）"])
def test_no_answer(response: str) -> None:
    result = score(response, "4")
    assert not result.correct and result.answer is None and not result.formatted and result.error is None


@pytest.mark.parametrize(
    ("spellings", "expected"),
    [
        (
            ["1,000", "1000", r"1{,}000", "1 000", r"1\,000", "$1000$", "+1000", " 1000. ", r"\$1,000", "１０００"],
            "1000",
        ),
        ([r"\frac{1}{2}", r"\dfrac{1}{2}", r"\tfrac {1}{2}", r"\displaystyle\frac{1}{2}", "½"], r"\frac{1}{2}"),
        (["(1, 2)", r"\left(1,2\right)", r"\( (1, \; 2) \)", "( 1,2 ) ."], "(1,2)"),
        (["00", "-0", "0"], "0"),
        ([r"2\pi", "2π", r"2 \pi".replace(" ", "")], r"2\pi"),
    ],
)
def test_equal_layouts_are_one_vote(spellings: list[str], expected: str) -> None:
    assert [canonical(spelling) for spelling in spellings] == [expected] * len(spellings)
    assert extract(rf"\boxed{{{spellings[-1]}}}") == expected


@pytest.mark.parametrize(
    ("truth", "reason"),
    [
        ("4", None),
        (r"\frac{1}{2}", None),
        ("x>3", None),
        (r"\text{no}", None),
        (" ", "empty"),
        ("9^{9^{9^9}}", "timeout: "),
    ],
)
def test_ground_truths(truth: str, reason: str | None) -> None:
    told = check_ground_truth(truth, timeout=1)
    assert told is None if reason is None else str(told).startswith(reason)


@pytest.mark.parametrize("bomb", ["9^{9^{9^9}}", "(10^9)!", r"\sum_{k=1}^{10^9} k^k", "(" * 3000 + "1" + ")" * 3000])
def test_a_bomb_is_stopped_and_gives_no_verdict(bomb: str) -> None:
    result = score(rf"\boxed{{{bomb}}}", r"\pi", timeout=0.5)
    assert not result.correct
    assert result.error is not None and result.error.startswith("timeout")
    assert score(r"\boxed{\frac{2}{4}}", r"\frac{1}{2}").correct  # and the next one is judged


def greedy() -> tuple[bool, bool]:
    """In a child: is memory short within a comparison, and as it was behind it?"""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        with limited_memory():
            bytearray(MEMORY)
    except MemoryError:
        return True, resource.getrlimit(resource.RLIMIT_DATA) == before
    return False, False


def test_a_comparison_cannot_take_all_memory() -> None:
    assert Workers(1).call(f"{__name__}:greedy", timeout=10) == (True, True)


# ---------------------------------------------------------------------- published files


def truths_of(file: Path) -> list[str]:
    text = file.read_text()
    if file.suffix == ".json":
        return [row["answer"] for row in json.loads(text)]
    return [json.loads(line)["answer"].rpartition("####")[2].strip() for line in text.splitlines()]


SPELLINGS: dict[str, Callable[[str], str]] = {
    "boxed": lambda truth: rf"So it is \boxed{{{truth}}}.",
    "display": lambda truth: rf"\[\boxed{{{truth}}}\]",
    "dfrac": lambda truth: rf"\boxed{{{truth}}}".replace(r"\frac", r"\dfrac"),
    "full stop": lambda truth: rf"\boxed{{{truth}.}}",
    "dollars": lambda truth: rf"\boxed{{${truth}$}}",
    "tight": lambda truth: rf"\boxed{{{re.sub(r'(?<=[,+=]) | (?=[,+=])', '', truth)}}}",
    "tag": lambda truth: f"<answer>{truth}</answer>",
    "hope": lambda truth: f"Final Answer: The final answer is ${truth}$. I hope it is correct.",
}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("math500.json", 500),
        ("aime2024.json", 30),
        ("gsm8k_train_2000.jsonl", 2000),
        ("agieval/gaokao-mathcloze.jsonl", 118),
    ],
)
def test_published_answers(benchmarks: Path, name: str, count: int) -> None:
    truths = truths_of(benchmarks / name)
    assert len(truths) == count
    different = sorted(set(truths))  # a verdict depends on the two texts alone: each pair is looked at once
    with ThreadPoolExecutor(2) as pool:
        assert [
            truth for truth, reason in zip(different, pool.map(check_ground_truth, different), strict=True) if reason
        ] == []
        for spelling in SPELLINGS.values():
            responses = [spelling(truth) for truth in different]
            verdicts = pool.map(lambda pair: score(*pair).correct, zip(responses, different, strict=True))
            assert [pair for *pair, right in zip(responses, different, verdicts, strict=True) if not right] == []
        others = random.Random(0).sample(truths, len(truths))
        verdicts = pool.map(
            lambda pair: score(rf"\boxed{{{pair[0]}}}", pair[1]).correct, zip(others, truths, strict=True)
        )
        mistaken = [pair for *pair, right in zip(others, truths, verdicts, strict=True) if right and pair[0] != pair[1]]
    assert len(mistaken) <= count // 100  # "5" and "x = 5" are of different questions, and equal
