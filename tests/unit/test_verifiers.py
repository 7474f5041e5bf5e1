# SPDX-License-Identifier: Apache-2.0
"""Verifiers that need no algebra: choice, text, exact, number, grid."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tempo_verl.errors import UserError
from tempo_verl.rewards import check_ground_truth, extract, score

# ---------------------------------------------------------------------- choice


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("Ｂ", "B"),
        (r"\boxed{B}", "B"),
        (r"\boxed{\text{(B)}}", "B"),
        (r"\boxed{\textbf{B.}}", "B"),
        (r"\boxed{\text{(B)}\ 42}", "B"),
        (r"\boxed{B: 42}", "B"),
        ("<answer>b</answer>", "B"),
        ("B) Paris", "B"),
        ("So the answer is (B).", "B"),
        ("The correct answer is (b).", "B"),
        ("The answer is: \n\n**B**", "B"),
        ("The answer is option B", "B"),
        ("**Answer:** B", "B"),
        ("The answer is B because A is wrong.", "B"),
        ("Option B is correct, as shown above.", "B"),
        ("The answer is B, not option C.", "B"),
        ("Answer: B. Option C is tempting.", "B"),
        ("It must be **B**, I think", "B"),
        ("<think>The answer is A.</think> The answer is B.", "B"),
        ("<think>The answer is B", None),
        ("the answer is a mystery", "a mystery"),
        ("The answer is Paris.", "paris"),
        (r"\boxed{\text{Paris}}", "paris"),
        (r"\boxed{AC}", "AC"),
        (r"\boxed{C, A}", "AC"),
        (r"\boxed{A and C}", "AC"),
        (r"\boxed{(A)(C)}", "AC"),
        ("", None),
        (r"\boxed{$}", None),
    ],
)
def test_a_choice_is_read(response: str, answer: str | None) -> None:
    assert extract(response, "choice") == answer


@pytest.mark.parametrize(
    ("response", "truth", "correct"),
    [
        ("B", "B", True),
        ("B", "(B)", True),
        ("B", "(B) Paris", True),
        ("B", "B. Paris", True),
        ("Paris", "(B) Paris", True),
        ("The answer is paris", "Paris", True),
        (r"\boxed{\text{(B) Paris}}", "B", True),
        (r"\boxed{−5}", "(C) −5", True),
        (r"\boxed{A, C}", "CA", True),
        ("C", "(B) Paris", False),
        ("Rome", "(B) Paris", False),
        (r"\boxed{A}", "AC", False),
        ("A cat", "(A) dog", False),
        ("", "A", False),
    ],
)
def test_a_choice_is_compared(response: str, truth: str, correct: bool) -> None:
    assert score(response, truth, "choice").correct is correct


# ---------------------------------------------------------------------- text and exact


@pytest.mark.parametrize(
    ("response", "truth", "correct"),
    [
        ("The answer is Paris.", "paris", True),
        (r"\boxed{\text{New  York}}", "New York", True),
        ("I think so.\r\nParis\r\n", "Paris", True),
        ("So the answer is True.", "True", True),
        ("So the answer is (A).", "(A)", True),
        (r"\boxed{A}", "(A)", True),
        (r"\boxed{−9}", "-9", True),
        ("<answer> the CAT </answer>", "The cat", True),
        ("] ) }", "] ) }", True),
        ("Café", "Cafe\u0301", True),
        ("Rome", "Paris", False),
        ("Paris, France", "Paris", False),
        ("", "Paris", False),
    ],
)
def test_text(response: str, truth: str, correct: bool) -> None:
    assert score(response, truth, "text").correct is correct


@pytest.mark.parametrize(
    ("response", "truth", "correct"),
    [
        ("Paris", "Paris", True),
        ("  Paris\n", " Paris ", True),
        (r"\boxed{Paris}", "Paris", True),
        ("<think>Rome</think>Paris", "Paris", True),
        (r"\boxed{٤٢}", "٤٢", True),
        ("你好！", "你好！", True),
        ("paris", "Paris", False),
        ("Paris.", "Paris", False),
        ("", "Paris", False),
    ],
)
def test_exact(response: str, truth: str, correct: bool) -> None:
    assert score(response, truth, "exact").correct is correct


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("3.14", 3.14),
        ("-3", -3),
        ("−3", -3),
        (".5", 0.5),
        ("5.", 5),
        ("$1,234.50", 1234.5),
        ("50%", 50),
        ("1e3", 1000),
        (r"\boxed{1.5 \times 10^{-3}}", 0.0015),
        ("1.5 * 10^3", 1500),
        (r"\boxed{-\frac{1}{2}}", -0.5),
        (r"\boxed{2\dfrac{1}{2}}", 2.5),
        ("2 1/2", 2.5),
        ("-1/2", -0.5),
        ("٣٫١٤", 3.14),
        ("The answer is 10 apples out of 12", 10),
        ("first 3, then 4", 4),
        (r"\boxed{x = 5}", 5),
        ("<think>The answer is 3.</think> I get 4", 4),
        ("1/0", None),
        ("1e400", None),
        ("none", None),
        ("", None),
    ],
)
def test_a_number_is_read(response: str, value: float | None) -> None:
    answer = extract(response, "number")
    assert answer == (None if value is None else repr(float(value)))


@pytest.mark.parametrize(
    ("response", "truth", "correct"),
    [
        ("3.14", "3.14", True),
        ("3.1400001", "3.14", True),
        ("3.15", "3.14", False),
        ("3.15", "3.14 ± 0.01", True),
        ("3.16", "3.14 ± 0.01", False),
        ("3.15", r"3.14 \pm 1\%", True),
        ("3.2", "3.14 +/- 1%", False),
        ("0.3333333", r"\frac{1}{3}", True),
        ("1000", "1,000", True),
        ("5", "-5", False),
        ("no idea", "5", False),
    ],
)
def test_a_number_is_compared(response: str, truth: str, correct: bool) -> None:
    assert score(response, truth, "number").correct is correct


# ---------------------------------------------------------------------- grids

SOLUTION = json.dumps({"header": ["House", "Name", "Pet"], "rows": [["1", "Eric", "dog"], ["2", "Ann", "cat"]]})


def houses(*rows: Any) -> str:
    return json.dumps({f"House {number}": row for number, row in enumerate(rows, 1)})


ERIC, ANN = {"Name": "Eric", "Pet": "Dog"}, {"Name": "ann", "Pet": " cat "}


@pytest.mark.parametrize(
    ("response", "correct"),
    [
        (SOLUTION, True),
        (houses(ERIC, ANN), True),
        (json.dumps({"reasoning": "so", "solution": json.loads(houses(ERIC, ANN))}), True),
        (f"I find\n```json\n{houses(ERIC, ANN)}\n```\nas you see {{}}", True),
        (houses(ANN, ERIC) + " no: " + houses(ERIC, ANN), True),
        (houses(ERIC | {"Colour": "red"}, ANN, {"Name": "Bob"}), True),
        (houses(ERIC, ANN) + " no: " + houses(ANN, ERIC), False),
        (houses(ERIC), False),
        (houses(ERIC, ANN)[:-1], False),
        (houses(ERIC, ANN | {"Pet": ["cat"]}), False),
        ("no table", False),
        ("", False),
    ],
)
def test_a_grid(response: str, correct: bool) -> None:
    result = score(response, SOLUTION, "grid")
    assert result.correct is correct
    assert result.formatted is (result.answer is not None)


@pytest.mark.parametrize("reordered", [houses(ERIC, ANN), json.dumps({"House 2": ANN, "House 1": ERIC})])
def test_equal_grids_are_one_vote(reordered: str) -> None:
    assert extract(reordered, "grid") == extract(SOLUTION, "grid")


@pytest.mark.parametrize(
    "response",
    [
        '{"header": ["House", ["Name"]], "rows": [["1", "Eric"]]}',
        '{"header": ["House"], "rows": [[], 5, null, [{}]]}',
        '{"solution": ' * 400 + "1" + "}" * 400,
        '{"House 1": {"Name": ' + "[" * 900 + "]" * 900 + "}}",
        '{"House 1": {"Name": ' + "9" * 5000 + "}}",
        r'{"House 1": {"Name": "\ud800"}}',
        '{"House 1": {"Name": "' + r"\\text{" * 6000 + "}" * 6000 + '"}}',
        '{"a":' * 10_000,
    ],
    ids=lambda response: response[:24],
)
def test_a_strange_grid_is_wrong_and_harms_nobody(response: str) -> None:
    started = time.process_time()
    result = score(response, SOLUTION, "grid")
    assert not result.correct and result.error is None
    assert (result.answer or "").encode().decode() == (result.answer or "")
    assert time.process_time() - started < 10


# ---------------------------------------------------------------------- ground truths


@pytest.mark.parametrize(
    ("style", "truth", "reason"),
    [
        ("choice", "B", None),
        ("number", "3.14 ± 0.01", None),
        ("number", "1/3", None),
        ("grid", SOLUTION, None),
        ("text", " \n", "empty"),
        ("number", "many", "no number"),
        ("number", "1/0", "no number"),
        ("number", "3 ± few", "no number"),
        ("grid", "House 1", "Expecting value"),
        ("grid", "{}", "no table"),
    ],
)
def test_a_ground_truth_of_no_use_is_told(style: str, truth: str, reason: str | None) -> None:
    told = check_ground_truth(truth, style)
    assert told is None if reason is None else reason in str(told)


@pytest.mark.parametrize(("style", "truth"), [("number", "many"), ("grid", "{}")])
def test_scoring_with_such_a_ground_truth_is_a_users_mistake(style: str, truth: str) -> None:
    with pytest.raises(UserError, match=f"ground_truth='{truth}' is of no use to style={style}") as caught:
        score(SOLUTION + " 5", truth, style)
    assert len(str(caught.value).splitlines()) == 1


# ---------------------------------------------------------------------- time

LONG = 100_000


@pytest.mark.parametrize("style", ["choice", "exact", "grid", "number", "text"])
@pytest.mark.parametrize(
    "unit",
    ["\n", " ", "7", "7 ", "1/2 ", "1,", "{", '{"a":', "(", "*", "answer ", "option  is ", "±", r"\frac{1}", "$"],
    ids=ascii,
)
def test_no_response_holds_a_verifier_up(style: str, unit: str) -> None:
    truth = SOLUTION if style == "grid" else "5"
    started = time.process_time()
    assert score(unit * (LONG // len(unit)), truth, style).error is None
    assert score("answer" + unit * (LONG // len(unit)) + "!", truth, style).error is None
    assert time.process_time() - started < 10  # around a tenth of a second; hours where a pattern is quadratic


# ---------------------------------------------------------------------- published files


@pytest.mark.parametrize("task", ["boolean_expressions", "logical_deduction_three_objects", "object_counting"])
def test_big_bench_hard(benchmarks: Path, task: str) -> None:
    truths = [example["target"] for example in json.loads((benchmarks / f"bbh/{task}.json").read_text())["examples"]]
    for truth in truths:
        for response in (
            truth,
            f"So the answer is {truth}.",
            rf"\boxed{{\text{{{truth}}}}}",
            f"<answer>{truth}</answer>",
        ):
            assert score(response, truth, "text").correct, (response, truth)
    wrong = next(truth for truth in truths if truth != truths[0])
    assert not score(f"So the answer is {wrong}.", truths[0], "text").correct


@pytest.mark.parametrize("task", ["aqua-rat", "lsat-ar"])
def test_agieval(benchmarks: Path, task: str) -> None:
    rows = [json.loads(line) for line in (benchmarks / f"agieval/{task}.jsonl").read_text().splitlines()]
    assert len(rows) > 200
    for row in rows:
        label, options = row["label"], row["options"]
        right = next(option for option in options if option.startswith(f"({label})"))
        for response in (label, f"({label})", f"The answer is {label}.", rf"\boxed{{{label}}}", right):
            assert score(response, label, "choice").correct, (response, label)
            assert score(response, right, "choice").correct, (response, right)
        for option in options:
            if option != right:
                assert not score(option, label, "choice").correct, (option, label)
