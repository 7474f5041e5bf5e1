# SPDX-License-Identifier: Apache-2.0
"""The question and the answer of a record, in the names and forms that published sets use."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from tempo_verl.data.columns import Columns, guess_style, read_answer, read_question
from tempo_verl.data.labels import Labels
from tempo_verl.data.overlap import normalised, question_hash
from tempo_verl.data.values import RowError, clean

CITIES = ["Rome", "Paris", "Oslo"]


def answer(fields: dict[str, Any], columns: Columns = Columns()) -> tuple[str, str | None]:  # noqa: B008
    """(ground truth, style it suggests); numbers that name options count from 0."""
    question = read_question(fields, columns)
    found = read_answer(fields, columns, question)
    truth = found.truth
    if found.label:
        labels = Labels("0")
        labels.add(found.column, "row 1", found.label)
        truth = question.chosen(labels.letters(found.column, found.label))
    return truth, found.style


def refused(fields: dict[str, Any], columns: Columns = Columns()) -> str:  # noqa: B008
    with pytest.raises(RowError) as caught:
        answer(fields, columns)
    return str(caught.value)


# ---------------------------------------------------------------------- questions


@pytest.mark.parametrize("name", ["problem", "Question", "PROMPT", "input", "query", "instruction", "puzzle"])
def test_the_question_is_guessed(name: str) -> None:
    assert read_question({"id": 1, name: " 1+1? "}, Columns()).text == "1+1?"


def test_the_first_column_with_a_value_counts() -> None:
    assert read_question({"problem": None, "question": " ", "prompt": "1+1?"}, Columns()).column == "prompt"


def test_a_named_column_may_be_nested() -> None:
    columns = replace(Columns(), question=("data.items.1.Text",), named=frozenset({"question"}))
    assert read_question({"problem": "no", "data": {"items": [{}, {"text": "1+1?"}]}}, columns).text == "1+1?"
    with pytest.raises(RowError, match=r"no column 'data.items.1.Text' \(found problem\)"):
        read_question({"problem": "1+1?"}, columns)


def test_the_users_last_message_is_the_question() -> None:
    system = {"role": "system", "content": "be brief"}
    chat = [system, {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    question = read_question({"messages": chat}, Columns())
    assert question.text == "1+1?"
    assert question.messages == (system, {"role": "user", "content": "1+1?"})  # and no answer after it
    shared = [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]
    assert read_question({"conversations": shared}, Columns()).messages == ({"role": "user", "content": "1+1?"},)
    parts = [{"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]}]
    assert read_question({"prompt": parts}, Columns()).text == "1+1?"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "no question (name its column with --question; found question)"),
        ("  ", "no question"),
        (["a", "b"], "nested question (question is a list, but not of messages)"),
        ({"text": "1+1?"}, "nested question (question is a dict; name what is in it, like question.text)"),
        ([{"role": "system", "content": "be brief"}], "no question (question has no message of the user)"),
        ([{"role": "user", "content": [{"type": "image", "image": "x"}]}], "has a message that is not text"),
    ],
)
def test_no_question(value: Any, message: str) -> None:
    with pytest.raises(RowError) as caught:
        read_question({"question": value}, Columns())
    assert message in str(caught.value)


def test_a_passage_is_kept_apart() -> None:
    question = read_question({"instruction": "Sum up.", "input": "Long text.", "output": "Text."}, Columns())
    assert (question.text, question.passage) == ("Sum up.", "Long text.")


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("value", "truth"),
    [
        (204, "204"),
        (204.0, "204"),
        (-0.5, "-0.5"),
        (0.1, "0.1"),
        (Decimal("3.14159265358979323846"), "3.14159265358979323846"),
        (Decimal("1E+999999"), "1E+999999"),
        (True, "True"),
        (["42"], "42"),
        ('["42"]', "42"),
        ("[0, 2]", "[0, 2]"),
        ("025", "025"),
        ("so 3+4=7\n#### 7", "7"),
        (r"thus \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"first \boxed{1}. No: it is \boxed{2}", "2"),
        ("A\0B\ud800", "AB\ufffd"),
    ],
)
def test_an_answer_becomes_text_without_loss(value: Any, truth: str) -> None:
    assert answer({"question": "q", "answer": value})[0] == truth


def test_the_answer_before_the_solution() -> None:
    assert answer({"Problem": "q", "Solution": r"\boxed{3}", "Answer": "2"})[0] == "2"
    assert answer({"problem": "q", "solution": r"Let x be 3. Then \boxed{3}"})[0] == "3"
    assert answer({"prompt": "q", "solution": "34"})[0] == "34"
    assert answer({"prompt": [{"role": "user", "content": "q"}], "reward_model": {"ground_truth": "5"}})[0] == "5"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "no answer (name its column with --answer; found question)"),
        ({"answer": None}, "no answer"),
        ({"answer": float("nan")}, "no answer"),
        ({"solution": "Let x be three. Then it is clear."}, "no answer (no final answer in solution)"),
        ({"answer": ["1", "2"]}, "several answers (answer holds 2;"),
        ({"answer": {"value": "1"}}, "nested answer (answer is a dict; name what is in it, like answer.value)"),
        ({"answer": "9" * 100_000}, "answer too long (100,000 characters, the limit is 10,000)"),
        ({"answer": "{" * 10_001}, "answer too long"),
        ({"solution": {"header": ["House"], "rows": [["___"]]}}, "masked answer"),
    ],
)
def test_no_answer(fields: dict[str, Any], message: str) -> None:
    assert message in refused({"question": "q", **fields})


@pytest.mark.parametrize(
    ("style", "answers"),
    [
        ("math", ["25", "-1.5", r"\frac{1}{2}", r"\text{Evelyn}", "p - q", "5 cm", "٣٤", "1/2", "$5$;$10$"]),
        ("text", ["Yes", "True", "Evelyn", "三组对面", "3 apples and two pears", "crew deploy"]),
        ("exact", ["] ) >", "{ }"]),
    ],
)
def test_the_verifier_is_guessed_by_the_answer(style: str, answers: list[str]) -> None:
    assert [guess_style(answer) for answer in answers] == [style] * len(answers)


def test_a_letter_in_parentheses_is_a_choice() -> None:
    assert answer({"input": "Which?\n(A) x\n(B) y", "target": "(B)"}) == ("(B)", "choice")


def test_a_grid() -> None:
    grid = {"header": ["House", "Name"], "rows": [["1", "Eric"], ["2", "Élodie"]]}
    truth = '{"header": ["House", "Name"], "rows": [["1", "Eric"], ["2", "Élodie"]]}'
    assert answer({"puzzle": "q", "solution": grid}) == (truth, "grid")
    assert answer({"puzzle": "q", "solution": truth}) == (truth, "grid")
    assert read_question({"puzzle": "q", "solution": grid}, Columns()).header == ("House", "Name")


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "fields",
    [
        {"options": CITIES, "answer": "B"},
        {"options": ["(A)Rome", "(B) Paris", "(C)Oslo"], "label": "B", "answer": None},
        {"options": ["A. Rome", "B. Paris", "C. Oslo"], "answer": "(B)"},
        {"choices": {"label": ["A", "B", "C"], "text": CITIES}, "answerKey": "B"},
        {"choices": {"label": ["1", "2", "3"], "text": CITIES}, "answerKey": "2"},
        {"choices": [{"label": str(number), "text": city} for number, city in enumerate(CITIES, 7)], "answerKey": "8"},
        {"options": {"A": "Rome", "B": "Paris", "C": "Oslo"}, "answer": "Paris"},
        {"choices": CITIES, "answer": 1},
        {"choices": CITIES, "gold": [1]},
        {"choices": CITIES, "answer": "1"},
        {"choices": str(CITIES), "answer": "b"},
        {"A": "Rome", "B": "Paris", "C": "Oslo", "answer": "B"},
        {"options": CITIES, "answer": "(B) Paris"},
        {"options": CITIES, "answer": r"\boxed{B}"},
    ],
)
def test_the_forms_of_options(fields: dict[str, Any]) -> None:
    question = read_question({"question": "Where?", **fields}, Columns())
    assert question.options == {"A": "Rome", "B": "Paris", "C": "Oslo"}
    assert answer({"question": "Where?", **fields}) == ("(B) Paris", "choice")


def test_several_right_options() -> None:
    assert answer({"question": "q", "options": CITIES, "label": ["C", "A"]}) == ("A, C", "choice")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"options": CITIES, "answer": "D"}, "answer is no option (answer is 'D', there are 3 options)"),
        ({"options": CITIES, "answer": 3}, "there are 3 options, counted from 0"),
        ({"options": CITIES, "answer": 4}, "there are 3 options"),
        ({"options": CITIES, "answer": "Berlin"}, "answer is no option"),
        ({"options": "Rome or Paris", "answer": "A"}, "options unreadable"),
        ({"options": [str(number) for number in range(27)], "answer": "A"}, "too many options"),
    ],
)
def test_options_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    assert message in refused({"question": "q", **fields})


def test_right_and_wrong_options_by_column_are_shuffled_by_the_seed() -> None:
    wrong = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    orders = set()
    for number in range(20):
        fields = {"Question": f"q{number}", "Correct Answer": "right", **{name: name[-1] for name in wrong}}
        question = read_question(fields, Columns(), seed=1)
        assert sorted(question.options.values()) == ["1", "2", "3", "right"]
        assert question == read_question(fields, Columns(), seed=1)
        (right,) = question.choices.right
        assert question.options[right] == "right"
        assert answer(fields)[1] == "choice"
        orders.add(right)
    assert orders == set("ABCD")


# ---------------------------------------------------------------------- equal questions


def test_looks_do_not_make_another_question() -> None:
    same = [
        r"Find $\left( x \right)$, if  $x=\dfrac{1}{2}\,.$",
        r"find ( x ) ,if x = \frac{1}{2} .",
        "FIND (x), if x=\\frac{1}{2}.",
        "Ｆｉｎｄ (x), if\u00a0x=\\displaystyle\\frac{1}{2}.",
    ]
    assert {normalised(text) for text in same} == {normalised(same[0])}


@pytest.mark.parametrize(("one", "other"), [("1 2/3?", "12/3?"), ("x + 1", "x - 1"), (r"a \leftarrow b", r"a arrow b")])
def test_another_question_stays_another(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


def test_passage_and_options_belong_to_a_question() -> None:
    assert question_hash("q", "p", ["a", "b"]) == question_hash("Q ", "p", ["b", "a"])
    assert len({question_hash("q", "p", ["a"]), question_hash("q", "r", ["a"]), question_hash("q", "p", ["b"])}) == 3


def test_text_is_made_fit_for_files() -> None:
    assert clean("a\0b \ud83d\ude00 \udc80").encode("utf-8").decode() == "ab 😀 \ufffd"


# ---------------------------------------------------------------------- sets that no preset knows

OTHERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "MMLU-Pro": (
        {"question_id": 70, "question": "q", "options": CITIES, "answer": "B", "answer_index": 1, "cot_content": ""},
        "q",
        "(B) Paris",
    ),
    "ARC": (
        {"id": "x", "question": "q", "choices": {"text": CITIES, "label": ["1", "2", "3"]}, "answerKey": "2"},
        "q",
        "(B) Paris",
    ),
    "MMLU": ({"question": "q", "subject": "geography", "choices": CITIES, "answer": 1}, "q", "(B) Paris"),
    "AQuA": (
        {"question": "q", "options": ["A)Rome", "B)Paris", "C)Oslo"], "rationale": "r", "correct": "B"},
        "q",
        "(B) Paris",
    ),
    "SuperGPQA": (
        {"uuid": "u", "question": "q", "options": CITIES, "answer": "Paris", "answer_letter": "B"},
        "q",
        "(B) Paris",
    ),
    "NuminaMath": ({"problem": "q", "solution": "So $\\boxed{7}$.", "messages": [], "source": "amc"}, "q", "7"),
    "OpenR1": (
        {"problem": "q", "solution": "long", "answer": "7", "messages": [{"role": "user", "content": "x"}]},
        "q",
        "7",
    ),
    "DeepMath": ({"question": "q", "final_answer": "7", "r1_solution_1": "long"}, "q", "7"),
    "SVAMP": ({"Body": "b", "Question": "q", "Equation": "(8-1)", "Answer": 7.0, "Type": "Subtraction"}, "q", "7"),
    "OlympiadBench": ({"question": "q", "solution": ["long"], "final_answer": ["$7$"], "context": None}, "q", "$7$"),
    "Skywork-OR1": (
        {"prompt": [{"role": "user", "content": "q"}], "reward_model": {"ground_truth": '["7"]', "style": "rule"}},
        "q",
        "7",
    ),
    "verl": (
        {
            "data_source": "openai/gsm8k",
            "prompt": [{"role": "user", "content": "q"}],
            "reward_model": {"ground_truth": "7", "style": "rule"},
            "extra_info": {"answer": "long #### 8", "question": "other", "index": 0},
        },
        "q",
        "7",
    ),
    "BoolQ": ({"question": "q", "answer": True, "passage": "p"}, "q", "True"),
}


@pytest.mark.parametrize(("fields", "text", "truth"), OTHERS.values(), ids=OTHERS)
def test_the_form_of_another_set(fields: dict[str, Any], text: str, truth: str) -> None:
    assert read_question(fields, Columns()).text == text
    assert answer(fields)[0] == truth


def test_a_lone_column_a_holds_an_answer_not_an_option() -> None:
    columns = replace(Columns(), question=("q",), answer=("a",), named=frozenset({"question", "answer"}))
    assert answer({"q": "1+1?", "a": "2"}, columns) == ("2", None)
