# SPDX-License-Identifier: Apache-2.0
"""``tempo-verl prepare`` and the forms in which sets publish their answers: a right label, or a clear refusal."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tempo_verl.cli.main import app
from tempo_verl.data.labels import Labels, UndecidedLabel, read_label
from tempo_verl.data.options import Options, by_letter
from tempo_verl.data.prepare import Settings, Summary, prepare
from tempo_verl.data.printed import unprinted
from tempo_verl.errors import UserError
from tempo_verl.rewards import score

CITIES = ["Rome", "Paris", "Oslo", "Bern"]
PARIS, ROME, OSLO, BERN = "(B) Paris", "(A) Rome", "(C) Oslo", "(D) Bern"


def numbered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row with a question of its own."""
    return [{"question": f"Which one, {number}?", **row} for number, row in enumerate(rows)]


def written(folder: Path, rows: list[dict[str, Any]], kind: str = "labeled", **options: Any) -> tuple[list, Summary]:
    """(rows, summary) of a prepared file."""
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbered(rows)))
    summary = prepare(Settings((str(folder / "a.jsonl"),), folder / "a.parquet", kind, overwrite=True, **options))
    return pq.read_table(folder / "a.parquet").to_pylist(), summary


def truths(folder: Path, rows: list[dict[str, Any]], **options: Any) -> list[str | None]:
    return [row["reward_model"]["ground_truth"] for row in written(folder, rows, **options)[0]]


def refusal(folder: Path, rows: list[dict[str, Any]], **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        written(folder, rows, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def choose(*labels: Any, options: Any = CITIES) -> list[dict[str, Any]]:
    return [{"choices": options, "answer": label} for label in labels]


# ---------------------------------------------------------------------- where counting begins


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (choose(0, 1), [ROME, PARIS]),
        (choose(1, 4), [ROME, BERN]),
        (choose("0", "1"), [ROME, PARIS]),
        (choose("2", "4"), [PARIS, BERN]),
        (choose(2.0, 4.0), [PARIS, BERN]),
        (choose("1.0", "0.0"), [PARIS, ROME]),
        (choose(1) + choose(2, options=CITIES[:2]), [ROME, PARIS]),  # the end of the shorter list
        # digits as the texts of options
        (choose("5", options=["3", "5", "7"]), ["(B) 5"]),
        (choose(5, options=[3, 5, 7]), ["(B) 5"]),
        (choose("5", options=["3", "5", "7"]) + choose("1", options=["2", "1", "0"]), ["(B) 5", "(B) 1"]),
        (choose("Rome") + choose("2", options=["1", "3", "2"]), [ROME, "(C) 2"]),
        (
            choose("0", "2", options=["0", "1", "2"]),
            ["(A) 0", "(C) 2"],
        ),  # counted from 0 or read as text, it is the same
        (choose(0, 1) + choose(2, options=["2", "1", "0"]), [ROME, PARIS, "(C) 0"]),
        # letters as the texts of options
        (choose("B") + choose("A", options=["B", "A"]), [PARIS, "(A) B"]),
        (choose("Rome") + choose("A", options=["B", "A"]), [ROME, "(B) A"]),
        # labels that were published with the options
        (choose("1", "2", options={"label": ["1", "2", "3", "4"], "text": CITIES}), [ROME, PARIS]),
        (choose(2, 3, options={"label": [1, 2, 3, 4], "text": CITIES}), [PARIS, OSLO]),
        (choose("2", options={"0": "Rome", "1": "Paris", "2": "Oslo"}), [OSLO]),
        (choose("2", options={"label": [*"123"], "text": [*"231"]}), ["(B) 3"]),
        (choose("Rome") + choose("2", options={"label": [*"123"], "text": [*"231"]}), [ROME, "(A) 2"]),
        (choose("F", "H", options={"label": [*"FGHJ"], "text": CITIES}), [ROME, OSLO]),
    ],
)
def test_a_whole_column_tells_what_its_labels_are(
    tmp_path: Path, rows: list[dict[str, Any]], expected: list[str]
) -> None:
    assert truths(tmp_path, rows) == expected


@pytest.mark.parametrize(
    ("rows", "fragments"),
    [
        (choose(1, 2), ["labels undecided (answer: ", "counted from 0 or", "--label-base 0 or --label-base 1"]),
        (choose("1", "3"), ["labels undecided", "a.jsonl line 1 has 1"]),
        (
            choose(0, 1, 4),
            [
                "labels contradict",
                "line 3 has 4, of 4 options",
                "line 1 has 0, of 4",
                "--label-base 0 or --label-base 1",
            ],
        ),
        (
            choose("1", options=["2", "1", "0"]),
            ["labels undecided", "may be the texts of options or", "--label-base text"],
        ),
        (choose("Rome", "4"), ["labels contradict", "line 2 has 4", "line 1 has Rome"]),
        (choose("A", options=["B", "A"]), ["labels undecided", "--label-base letter or --label-base text"]),
        (choose(0, 7), ["line 2: answer is no option (answer is '7', there are 4 options)"]),
        (choose("D", options={"A": "Rome", "C": "Paris", "F": "Oslo", "G": "Bern"}), ["answer is no option"]),
        (choose("Rome", options=["Rome", "Rome", "Oslo"]), ["two equal options"]),
        (choose("A or B"), ["answer is no option"]),
        (choose([0, 0, 1]), ["answer is no option"]),
        (choose([0, 0, 0, 0]), ["answer is no option"]),
    ],
)
def test_what_a_column_does_not_tell_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], fragments: list[str]
) -> None:
    message = refusal(tmp_path, rows)
    for fragment in fragments:
        assert fragment in message


def test_a_column_is_never_read_wrongly() -> None:
    draw, decided = random.Random(0), 0
    for _ in range(500):
        base, counts = draw.choice(["0", "1", "text"]), draw.choice([(2,), (4,), (2, 3, 4)])
        labels, rows = Labels(), []
        for number in range(draw.randint(1, 6)):
            count = draw.choice(counts)
            options = Options(by_letter(draw.sample([*map(str, range(9)), "x", "y"], count)))
            right = draw.randrange(count)
            value = [*options.texts.values()][right] if base == "text" else draw.choice([int, str])(right + int(base))
            label = read_label(value, options, "label")
            labels.add("label", f"row {number}", label)
            rows.append((label, "ABCD"[right]))
        for label, right in rows:
            try:
                assert labels.letters("label", label) == (right,)
                decided += 1
            except UndecidedLabel:
                continue
    assert decided > 500


def test_undecided_labels_stop_even_where_bad_rows_are_left_out(tmp_path: Path) -> None:
    assert "labels undecided" in refusal(tmp_path, choose(1, 2), bad_rows="skip")


def test_the_user_tells_where_counting_begins(tmp_path: Path) -> None:
    assert truths(tmp_path, choose(1, 2), label_base="0") == [PARIS, OSLO]
    assert truths(tmp_path, choose(1, 2), label_base="1") == [ROME, PARIS]
    assert truths(tmp_path, choose("1", options=["2", "1", "0"]), label_base="text") == ["(B) 1"]
    assert truths(tmp_path, choose("A", options=["B", "A"]), label_base="letter") == ["(A) B"]
    assert truths(tmp_path, choose("A", options=["B", "A"]), label_base="text") == ["(B) A"]
    assert truths(tmp_path, choose(0, 1, 4), label_base="0", bad_rows="skip") == [ROME, PARIS]
    message = refusal(tmp_path, choose(1, 4), label_base="0")
    assert "line 2: answer is no option (answer is '4', there are 4 options, counted from 0)" in message
    assert "--label-base 2: unknown" in refusal(tmp_path, choose(1), label_base="2")


def test_an_unlabeled_set_loses_no_question_to_undecided_labels(tmp_path: Path) -> None:
    rows, summary = written(tmp_path, choose(1, 2), "unlabeled")
    assert [row["reward_model"]["ground_truth"] for row in rows] == [None, None]
    note = "2 monitoring answers left out, the questions kept: labels undecided, which --label-base decides"
    assert note in summary.notes


# ---------------------------------------------------------------------- marks, several letters


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ([0, 0, 1, 0], OSLO),
        ([False, True, False, False], PARIS),
        ("[0 0 1 0]", OSLO),
        ("[0, 1, 0, 0]", PARIS),
        ("array([1, 0, 0, 0])", ROME),
        (["0", "0", "0", "1"], BERN),
        ([1, 0, 1, 0], "A, C"),
        ("A, C", "A, C"),
        ("AC", "A, C"),
        ("A and C", "A, C"),
        (["C", "A"], "A, C"),
        ("['A' 'C']", "A, C"),
        ('["A", "C"]', "A, C"),
        (["Rome", "Oslo"], "A, C"),
        (["B"], PARIS),
    ],
)
def test_marks_and_several_letters(tmp_path: Path, label: Any, expected: str) -> None:
    (row,), summary = written(tmp_path, choose(label))
    assert row["reward_model"] == {"style": "choice", "ground_truth": expected}
    letters = expected if ", " in expected else expected[1]
    assert score(f"\\boxed{{{letters}}}", **row["reward_model"]).correct
    assert not score("\\boxed{A, B}", **row["reward_model"]).correct
    if ", " in expected:
        assert any("several options are right" in guess for guess in summary.guesses)


def test_marks_beside_two_options(tmp_path: Path) -> None:
    assert truths(tmp_path, choose([0, 1], [1, 0], options=["no", "yes"])) == ["(B) yes", "(A) no"]


def test_several_numbers(tmp_path: Path) -> None:
    assert truths(tmp_path, choose([0, 2], [1])) == ["A, C", PARIS]
    assert truths(tmp_path, choose([1, 3], [4])) == ["A, C", BERN]
    assert truths(tmp_path, choose("0, 2", "3")) == ["A, C", BERN]
    assert "labels undecided" in refusal(tmp_path, choose([1, 2]))


def test_letters_that_are_an_options_text(tmp_path: Path) -> None:
    named = ["AB", "AC", "BC", "BD"]
    assert truths(tmp_path, choose("B", "A, C") + choose("AC", options=named)) == [PARIS, "A, C", "A, C"]
    assert truths(tmp_path, choose("Rome") + choose("AC", options=named)) == [ROME, "(B) AC"]
    assert "labels undecided" in refusal(tmp_path, choose("AC", options=named))


# ---------------------------------------------------------------------- options as text, and in columns


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("['Paris' 'Rome']", ["Paris", "Rome"]),
        ("['Paris'\n 'Rome'\n 'Oslo']", ["Paris", "Rome", "Oslo"]),
        ("[\"it's\" 'say \"x\"' 'it\\'s \"y\"']", ["it's", 'say "x"', 'it\'s "y"']),
        ("array(['a', 'b'], dtype=object)", ["a", "b"]),
        ("array(['a', 'b'], dtype='<U1')", ["a", "b"]),
        ("[np.str_('a'), np.int64(2)]", ["a", 2]),
        ("{'text': array(['a', 'b'],\n      dtype=object), 'label': array(['1', '2'], dtype=object)}",
         {"text": ["a", "b"], "label": ["1", "2"]}),
        ("('a', 'b')", ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ("[0 0 1]", [0, 0, 1]),
        ("[True, None]", [True, None]),
    ],
)  # fmt: skip
def test_printed_values(text: str, value: Any) -> None:
    assert unprinted(text) == value


@pytest.mark.parametrize(
    "text",
    ["['a', 'b' 'c']", "['it''s']", "['a' ... 'z']", "['a'", "Rome or Paris", "3", "'a'", "[x, y]", "f(['a'])",
     "[" * 9_000, "['a'] ['b']", "{'a'}"],
)  # fmt: skip
def test_what_is_not_clearly_printed(text: str) -> None:
    with pytest.raises(ValueError):
        unprinted(text)


def test_options_printed_by_pandas(tmp_path: Path) -> None:
    cells = [
        "['Rome' 'Paris' 'Oslo' 'Bern']",
        "array(['Rome', 'Paris', 'Oslo', 'Bern'], dtype=object)",
        "{'text': array(['Rome', 'Paris', 'Oslo', 'Bern'], dtype=object), 'label': array(['A', 'B', 'C', 'D'],\n"
        "      dtype=object)}",
        "a ) Rome , b ) Paris , c ) Oslo , d ) Bern",
    ]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(
            [["question", "choices", "answerKey"], *([f"Q{n}?", cell, "B"] for n, cell in enumerate(cells))]
        )
    summary = prepare(Settings((str(tmp_path / "a.csv"),), tmp_path / "a.parquet", "labeled"))
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert [row["reward_model"]["ground_truth"] for row in rows] == [PARIS] * len(cells)
    assert "(D) Bern" in rows[0]["prompt"][0]["content"]
    assert f"options in choices are read from printed text ({len(cells)} rows)" in summary.guesses


@pytest.mark.parametrize(
    "names",
    [
        [*"ABCDEFGHIJKL"],
        [*"abcdefgh"],
        [f"option_{letter}" for letter in "abcd"],
        [f"option{letter}" for letter in "ABCD"],
        [f"Option {letter}" for letter in "ABCDEF"],
        [f"op{letter}" for letter in "abcd"],
        [f"choice{number}" for number in range(1, 5)],
        [f"option_{number}" for number in range(12)],
        [f"ending{number}" for number in range(4)],
        [f"answer{number}" for number in range(4)],
        [f"answer{letter}" for letter in "ABC"],
        [f"sol{number}" for number in (1, 2)],
    ],
    ids=str,
)
def test_a_column_for_each_option(tmp_path: Path, names: list[str]) -> None:
    options = {name: f"text {number}" for number, name in enumerate(names)}
    row = {**options, "label": chr(ord("A") + len(names) - 1)}
    (made,), summary = written(tmp_path, [row])
    assert made["reward_model"]["ground_truth"] == f"({row['label']}) text {len(names) - 1}"
    assert f"options are taken from the columns {', '.join(names)} (1 rows)" in summary.guesses


def test_empty_option_columns(tmp_path: Path) -> None:
    row = {"A": "Rome", "B": "Paris", "C": "Oslo", "D": None, "E": "", "answer": "C"}
    assert truths(tmp_path, [row]) == [OSLO]
    assert "options missing (C is empty, E is not)" in refusal(tmp_path, [{**row, "C": None, "E": "Bern"}])


def test_numbered_columns_may_be_answers(tmp_path: Path) -> None:
    assert truths(tmp_path, [{"answer": "2", "answer1": "2", "answer2": "two"}]) == ["2"]
    assert truths(tmp_path, [{"answer": "2", "a": 1, "b": 2, "c": 3}, {"answer": "2", "op1": 4, "op2": 2}]) == [
        "2",
        "2",
    ]


# ---------------------------------------------------------------------- published sets

SHAPES: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "MMLU": ([{"choices": CITIES, "answer": n, "subject": "x"} for n in (0, 3)], [ROME, BERN]),
    "ARC": (
        [
            {"choices": {"text": CITIES, "label": [*"ABCD"]}, "answerKey": "B"},
            {"choices": {"text": CITIES, "label": [*"1234"]}, "answerKey": "3"},
        ],
        [PARIS, OSLO],
    ),
    "ARC in columns": ([{**dict(zip("ABCD", CITIES, strict=True)), "answer": a} for a in ("B", "4")], [PARIS, BERN]),
    "HellaSwag": (
        [{"ctx": f"A man {n}", "endings": CITIES, "label": n, "question": None} for n in ("3", "0")],
        [BERN, ROME],
    ),
    "CommonsenseQA": (
        [{"question_concept": "x", "choices": {"label": [*"ABCD"], "text": CITIES}, "answerKey": "C"}],
        [OSLO],
    ),
    "OpenBookQA": (
        [{"question": None, "question_stem": "q", "choices": {"text": CITIES, "label": [*"ABCD"]}, "answerKey": "D"}],
        [BERN],
    ),
    "SciQ": ([{"distractor1": "a", "distractor2": "b", "distractor3": "c", "correct_answer": "Paris"}], ["Paris"]),
    "TruthfulQA": (
        [
            {
                "mc1_targets": {"choices": CITIES, "labels": [1, 0, 0, 0]},
                "mc2_targets": {"choices": CITIES, "labels": [1, 1, 0, 0]},
            }
        ],
        [ROME],
    ),
    "LogiQA": ([{"context": "c", "query": "q", "options": CITIES, "correct_option": n} for n in (0, 2)], [ROME, OSLO]),
    "WinoGrande": (
        [{"question": None, "sentence": f"_ {n}", "option1": "x", "option2": "y", "answer": n} for n in "12"],
        ["(A) x", "(B) y"],
    ),
    "PIQA": ([{"goal": f"g{n}", "sol1": "x", "sol2": "y", "label": n} for n in (0, 1)], ["(A) x", "(B) y"]),
    "SIQA": (
        [{"context": "c", "answerA": "x", "answerB": "y", "answerC": "z", "label": n} for n in "123"],
        ["(A) x", "(B) y", "(C) z"],
    ),
    "CosmosQA": (
        [{"context": "c", **{f"answer{n}": CITIES[n] for n in range(4)}, "label": n} for n in (0, 3)],
        [ROME, BERN],
    ),
    "MedMCQA from 0": (
        [{**{f"op{c}": city for c, city in zip("abcd", CITIES, strict=True)}, "cop": n} for n in (0, 1)],
        [ROME, PARIS],
    ),
    "MedMCQA from 1": (
        [{**{f"op{c}": city for c, city in zip("abcd", CITIES, strict=True)}, "cop": n} for n in (1, 4)],
        [ROME, BERN],
    ),
    "MathQA": ([{"Problem": "q", "options": "a ) 38 , b ) 27.675 , c ) none", "correct": "b"}], ["(B) 27.675"]),
    "RACE": ([{"article": "text", "options": CITIES, "answer": "B"}], [PARIS]),
    "C-Eval": ([{**dict(zip("ABCD", CITIES, strict=True)), "answer": "B", "explanation": ""}], [PARIS]),
    "SWAG": ([{**{f"ending{n}": CITIES[n] for n in range(4)}, "label": n} for n in (0, 2)], [ROME, OSLO]),
    "BBQ": ([{"context": "c", "ans0": "x", "ans1": "y", "ans2": "z", "label": n} for n in (0, 2)], ["(A) x", "(C) z"]),
    "MedQA": ([{"options": dict(zip("ABCD", CITIES, strict=True)), "answer": "Oslo", "answer_idx": "C"}], [OSLO]),
    "BBH": ([{"input": "Which?\nOptions:\n(A) x\n(B) y", "target": "(B)"}], ["(B)"]),
    "AGIEval": ([{"options": [f"({c}){t}" for c, t in zip("ABCD", CITIES, strict=True)], "label": "B"}], [PARIS]),
}


@pytest.mark.parametrize(("rows", "expected"), SHAPES.values(), ids=SHAPES)
def test_a_published_shape(tmp_path: Path, rows: list[dict[str, Any]], expected: list[str]) -> None:
    made, _ = written(tmp_path, rows)
    assert [row["reward_model"]["ground_truth"] for row in made] == expected
    if expected[0].startswith("(") and "input" not in rows[0]:
        assert all(row["reward_model"]["style"] == "choice" for row in made)
        assert all("(A) " in row["prompt"][0]["content"] for row in made)


def test_gpqa(tmp_path: Path) -> None:
    row = {"Question": "q", "Correct Answer": "Paris", **{f"Incorrect Answer {n}": CITIES[n] for n in (2, 3)}}
    row = {"Incorrect Answer 1": "Rome", **row}
    (made,), _ = written(tmp_path, [row])
    assert made["reward_model"]["ground_truth"].endswith(") Paris")
    assert made["reward_model"]["ground_truth"] in made["prompt"][0]["content"]


def test_the_meaning_of_letters_is_told(tmp_path: Path) -> None:
    summary = written(tmp_path, choose("B") + choose("A", options=["B", "A"]))[1]
    assert "answers in answer that may be letters or texts are letters" in summary.guesses


def test_the_first_option_right_everywhere_is_told(tmp_path: Path) -> None:
    row = {"mc1_targets": {"choices": CITIES, "labels": [1, 0, 0, 0]}}
    notes = written(tmp_path, [row] * 20)[1].notes
    assert notes == ["the right option is A in all 20 rows with options: check the source"]


# ---------------------------------------------------------------------- tolerances, units, several answers


@pytest.mark.parametrize(
    ("row", "reward_model", "right", "wrong"),
    [
        (
            {"final_answer": ["$2.5$"], "error": "1e-1", "unit": None, "answer_type": "Numerical"},
            {"style": "number", "ground_truth": "2.5 ± 1e-1"},
            ["2.5", "2.58", "2.45 m"],
            ["2.7"],
        ),
        ({"answer": 3.14, "tolerance": 0.01}, {"style": "number", "ground_truth": "3.14 ± 0.01"}, ["3.145"], ["3.16"]),
        ({"answer": "50", "tolerance": "10%"}, {"style": "number", "ground_truth": "50 ± 10%"}, ["54"], ["56"]),
        (
            {"answer_number": "-87.8", "unit": " $\\mathrm{~kJ} \\mathrm{~mol}^{-1}$"},
            {"style": "number", "ground_truth": "-87.8"},
            ["-87.8", "-87.8 \\mathrm{~kJ} \\mathrm{~mol}^{-1}", "-87.8 \\text{ kJ/mol}", "-87.8 kJ/mol"],
            ["-8.78", "87.8"],
        ),
        (
            {"answer_number": "5.3", "unit": "$10^3 \\mathrm{~J}$"},
            {"style": "number", "ground_truth": "5.3 \\times 10^{3}"},
            ["5300", "5.3 \\times 10^3 \\mathrm{~J}", "5300 \\mathrm{~J}", "5300 J"],
            ["5.3", "53"],
        ),
        (
            {"answer_number": "2.4", "unit": "10^{-7} m", "error": "0.1"},
            {"style": "number", "ground_truth": "2.4 \\times 10^{-7} ± 0.1 \\times 10^{-7}"},
            ["2.45 \\times 10^{-7}", "2.45e-7 m"],
            ["2.4", "2.6 \\times 10^{-7}"],
        ),
        (
            {"answer": "5.3", "unit": "$10^{-3}$ J"},
            {"style": "number", "ground_truth": "5.3 \\times 10^{-3}"},
            ["0.0053 J", "5.3e-3"],
            ["5.3"],
        ),
        ({"final_answer": ["7"], "error": "timeout", "unit": ""}, {"style": "math", "ground_truth": "7"}, ["7"], ["8"]),
        (
            {"final_answer": ["$2$", "3"], "is_multiple_answer": True},
            {"style": "math", "ground_truth": "2, 3"},
            ["2, 3", "3,2", "2 \\text{ and } 3"],
            ["2", "3", "2, 4"],
        ),
        (
            {"final_answer": ["2,3"], "is_multiple_answer": True},
            {"style": "math", "ground_truth": "2, 3"},
            ["2, 3"],
            ["2", "2.3"],
        ),
        ({"answer": ["7", "7"]}, {"style": "math", "ground_truth": "7"}, ["7"], ["8"]),
    ],
)
def test_numbers_with_what_stands_beside_them(
    tmp_path: Path, row: dict[str, Any], reward_model: dict[str, str], right: list[str], wrong: list[str]
) -> None:
    (made,), _ = written(tmp_path, [row])
    assert made["reward_model"] == reward_model
    for response in right:
        assert score(f"\\boxed{{{response}}}", **reward_model).correct, response
    for response in wrong:
        assert not score(f"\\boxed{{{response}}}", **reward_model).correct, response


def test_the_question_asks_for_the_unit(tmp_path: Path) -> None:
    rows = [
        {"answer_number": "5", "unit": "$10^3 \\mathrm{~J}$"},
        {"answer_number": "5", "unit": "kJ", "problem": "In kJ?"},
    ]
    made, summary = written(tmp_path, rows, template="plain")
    assert made[0]["prompt"][0]["content"] == "Which one, 0?\n\nGive the answer in $\\mathrm{~J}$."
    assert made[1]["prompt"][0]["content"] == "In kJ?"
    assert "powers of ten in unit are multiplied into the answer (1 rows)" in summary.guesses
    assert "units in unit are left out of the answer, which is right with or without them (2 rows)" in summary.guesses
    assert "questions ask at their end for the answer in its unit (1 rows)" in summary.guesses
    assert "unit with a number" in refusal(tmp_path, [{"answer": "5", "unit": "100 km"}])


@pytest.mark.parametrize(
    ("row", "fragment"),
    [
        ({"answer": ["2", "3"]}, "--join-answers"),
        ({"final_answer": ["2", "3"], "is_multiple_answer": False}, "several answers (final_answer holds 2;"),
        ({"answer": ["NYC", "New York"]}, "several answers"),
        ({"answer": "['NYC' 'New York']"}, "several answers"),
        ({"final_answer": ["red", "blue"], "is_multiple_answer": True}, "only mathematical ones"),
        ({"answer": {"aliases": ["NYC", "New York"], "value": "NYC"}}, "name what is in it, like answer.value"),
        ({"answer": "{'value': 'NYC', 'aliases': array(['NYC'], dtype=object)}"}, "nested answer"),
        ({"final_answer": ["2", "3"], "is_multiple_answer": True, "error": "1e-1"}, "tolerance without a number"),
    ],
)
def test_several_answers_are_not_made_one(tmp_path: Path, row: dict[str, Any], fragment: str) -> None:
    assert fragment in refusal(tmp_path, [row])


def test_several_answers_are_joined_on_demand(tmp_path: Path) -> None:
    (made,), summary = written(tmp_path, [{"answer": ["2", "\\frac{1}{2}"]}], join_answers=True)
    assert made["reward_model"] == {"style": "math", "ground_truth": "2, \\frac{1}{2}"}
    assert "several answers in answer are one, as --join-answers says (1 rows)" in summary.guesses


# ---------------------------------------------------------------------- the data source, and what is told


def test_an_empty_name_is_refused(tmp_path: Path) -> None:
    assert "--name '': is empty" in refusal(tmp_path, [{"answer": "1"}], name="")
    assert "--name ' ': is empty" in refusal(tmp_path, [{"answer": "1"}], name=" ")


@pytest.mark.parametrize("own", ["", None, "  "])
def test_rows_with_an_empty_data_source_get_one(tmp_path: Path, own: str | None) -> None:
    (row,), summary = written(tmp_path, [{"answer": "1", "data_source": own}])
    assert row["data_source"] == "a"
    assert "data_source is 'a'; the row's own is empty (1 rows)" in summary.guesses


def test_a_hidden_folder_is_a_data_source_too(tmp_path: Path) -> None:
    folder = tmp_path / ".hidden"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    prepare(Settings((str(folder),), tmp_path / "a.parquet", "labeled"))
    assert pq.read_table(tmp_path / "a.parquet").to_pylist()[0]["data_source"] == "hidden"


def test_every_guess_is_told_in_the_meta_file_and_on_the_screen(tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    source.write_text("".join(json.dumps(row) + "\n" for row in numbered(choose(1, 4))))
    result = CliRunner(env={"COLUMNS": "200"}).invoke(
        app, ["prepare", str(source), "--out", str(out), "--as", "labeled"]
    )
    assert result.exit_code == 0, result.output
    guesses = json.loads((tmp_path / "a.meta.json").read_text())["guesses"]
    assert guesses == [
        "question is taken from question (2 rows)",
        "answer is taken from answer (2 rows)",
        "options are taken from choices (2 rows)",
        "verifier choice is told by the form of the row; --verifier names one for all (2 rows)",
        "data_source is 'a', the name of the source; --name gives another (2 rows)",
        "numbers in answer are options counted from 1: a.jsonl line 2 has 4, of 4 options",
    ]
    for guess in guesses:
        assert f"guess: {guess}" in result.output
    arguments = ["prepare", str(source), "--out", str(out), "--as", "labeled", "--overwrite", "--label-base", "1"]
    arguments += ["--name", "x", "--verifier", "choice"]
    arguments += ["--question", "question", "--answer", "answer", "--options", "choices"]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)
    assert result.exit_code == 0, result.output
    guesses = json.loads((tmp_path / "a.meta.json").read_text())["guesses"]
    assert guesses == ["numbers in answer are options counted from 1: --label-base says so"]
