# SPDX-License-Identifier: Apache-2.0
"""What a response marks as its answer."""

from __future__ import annotations

import time

import pytest

from tempo_verl.rewards.extraction import (
    LONGEST_ANSWER,
    ascii_signs,
    clean,
    cued_answer,
    final_answer,
    last_line,
    plain_text,
)

LONG = 100_000  # characters


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        # boxes
        (r"\boxed{5}", "5"),
        (r"\fbox{5}", "5"),
        (r"$\boxed {5}$", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{1 \\}", r"1 \\"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{x = \boxed{5}}", r"x = \boxed{5}"),
        ("\\boxed{\r\n5\r\n}\r\n", "5"),
        (r"first \boxed{3}, so in the end \boxed{4}", "4"),
        (r"\boxed{4} as {the} {text} goes on", "4"),
        (r"\boxed{4} \boxed{5", "4"),  # cut off
        (r"\boxed{4} \boxed{}", "4"),
        (r"\\boxed{5}", "5"),  # escaped twice
        # several boxes of one answer
        (r"\boxed{3} and \boxed{4}", "3, 4"),
        (r"$\boxed{3}$, $\boxed{4}$, or $\boxed{5}$", "3, 4, 5"),
        (r"\boxed{3}\quad\text{or}\quad\boxed{4}", "3, 4"),
        (r"\boxed{3} apples and \boxed{4} pears", "3, 4"),
        (r"\boxed{4}. So the answer is \boxed{4}", "4"),
        (r"\boxed{3} is wrong, and so it is \boxed{4}", "4"),
        ("\\boxed{3}\n\nWe check, and find\n\n\\boxed{4}", "4"),
        # a box without braces
        (r"\boxed 5", "5"),
        (r"$\boxed5$.", "5"),
        (r"\boxedness 5", None),
        # a per cent sign behind the box
        (r"\boxed{5}\%", r"5\%"),
        (r"$\boxed{5}$ percent", r"5\%"),
        # other marks
        ("<answer>5</answer>", "5"),
        ("<ANSWER> 5 </ANSWER>", "5"),
        ("<answer>3</answer> no, <answer>4</answer>", "4"),
        ("<answer><answer>4</answer></answer>", "4"),
        (r"<answer>\boxed{4}</answer>", "4"),
        (r"\boxed{3} <answer>4</answer>", "4"),
        ("<answer>4", None),
        ("<answer></answer>", None),
        ("The final answer is $4$. I hope it is correct.", "$4$"),
        ("Final Answer: The final answer is 4.5. I hope it is correct.", "4.5"),
        (r"The final answer is $\boxed{4}$. I hope it is correct.", "4"),
        ("Natalia sold 72 clips.\n#### 72", "72"),
        ("#### 3\n#### 1,000\r\n", "1,000"),
        (r"#### $\boxed{5}$", "5"),
        ("#### 5. We check\n\nIt is 6.", None),  # a heading
        ("##### 5", None),
        # none
        ("", None),
        ("the answer is 5", None),
        (r"\boxed{}", None),
        (r"\boxed{5", None),
        (r"}}}\boxed{5}", "5"),
        (r"{{{\boxed{5}", "5"),
        # signs of other scripts
        (r"\boxed{٤٢}", "42"),
        (r"\boxed{４２％}", "42%"),
        (r"\boxed{−4}", "-4"),
        ("\\boxed{\u200f4\u200b2\ufeff}", "42"),
        ("\\boxed{\u200b \u00a042}", "42"),
        ("\\boxed{\u200b}", None),
        ("答案：\\boxed{42}。", "42"),
    ],
)
def test_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_what_is_too_long_is_no_answer() -> None:
    assert final_answer(rf"\boxed{{{'1' * LONGEST_ANSWER}}}") == "1" * LONGEST_ANSWER
    assert final_answer(rf"\boxed{{{'1' * (LONGEST_ANSWER + 1)}}}") is None
    assert clean("1" * (LONGEST_ANSWER + 1)) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is Paris.", "Paris"),
        ("**Answer:** Paris", "Paris"),
        ("ANSWER : **Paris**\nand more", "Paris"),
        ("The answer is Rome. No, the answer is Paris.", "Paris"),
        ("Answering is hard", None),
        ("答案是：42。", "42"),
        ("答え：12", "12"),
        ("Antwort: C", "C"),
        ("La respuesta es 12.", "12"),
        ("Ответ: 12.", "12"),
        ("Final answer\n\nAnswer:\n**7**", "7"),
        ("the answer is", None),
    ],
)
def test_cued_answer(text: str, answer: str | None) -> None:
    assert cued_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"), [("one\r\n two \r\n\r\n", "two"), ("one", "one"), ("\n \n", None), ("", None)]
)
def test_last_line(text: str, answer: str | None) -> None:
    assert last_line(text) == answer


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        (r"\text{no solution}", "no solution"),
        (r"$\textbf{(\text{C})}$", "(C)"),
        ("**`C`**", "C"),
        ("“C”", "C"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
    ],
)
def test_plain_text(answer: str, plain: str) -> None:
    assert plain_text(answer) == plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("１２．５", "12.5"),
        ("٣٫١٤", "3.14"),
        ("४२ और ৪২", "42 और 42"),
        ("1\u00a0000", "1 000"),
        ("–5 − 3", "-5 - 3"),
        ("x² 三 café", "x² 三 café"),
    ],
)
def test_ascii_signs(text: str, expected: str) -> None:
    assert ascii_signs(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "\n" * LONG,
        "final answer is" + " " * LONG,
        "final answer is " * (LONG // 16),
        "#### a" + " " * LONG + "b",
        "answer" + " " * LONG + "!",
        "{" * (LONG // 2) + "}" * (LONG // 2),
        r"\boxed{" * (LONG // 7),
        r"\boxed{" * (LONG // 8) + "}" * (LONG // 8),
        r"\boxed{1}, " * (LONG // 11),
        r"\boxed{1}" + r"\quad" * (LONG // 5) + r"\boxed{2}",
        r"\boxed" + " " * LONG,
        r"\text{" * (LONG // 6) + "}" * (LONG // 6),
        "<answer>" * (LONG // 8),
        "</think>" * (LONG // 8),
    ],
    ids=lambda text: ascii(text[:16]),
)
def test_no_response_is_too_long_to_read(text: str) -> None:
    started = time.process_time()
    for read in (final_answer, cued_answer, last_line, plain_text, ascii_signs):
        assert isinstance(read(text), str | None)
    assert time.process_time() - started < 10  # each far below a second; hours where a pattern is quadratic
