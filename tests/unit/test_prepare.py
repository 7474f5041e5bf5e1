# SPDX-License-Identifier: Apache-2.0
"""``tempo-verl prepare``: from real and from broken files to parquet that verl, the checks and the verifiers accept."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner
from verl.trainer.ppo.utils import create_rl_dataset

from tempo_verl.cli.main import app
from tempo_verl.cli.main import main as tempo_verl_command
from tempo_verl.data.prepare import SCHEMA, Settings, Summary, prepare
from tempo_verl.data.sources import find_sources
from tempo_verl.data.streams import WithoutAnswers
from tempo_verl.data.templates import NAMES, load_template
from tempo_verl.data.validation import check_disjoint, read_questions
from tempo_verl.errors import UserError
from tempo_verl.rewards import check_ground_truth, score


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def question(number: int, **more: Any) -> dict[str, Any]:
    return {"question": f"What is {number} + 1?", "answer": str(number + 1), **more}


def questions(*numbers: int) -> list[dict[str, Any]]:
    return [question(number) for number in numbers]


class Folder:
    """Prepares files of a folder into it."""

    def __init__(self, path: Path):
        self.path = path

    def prepare(self, rows: list[Any], kind: str = "labeled", name: str = "a", **options: Any) -> Summary:
        source = jsonl(self.path / f"{name}.jsonl", rows)
        return prepare(Settings((str(source),), self.path / f"{name}.parquet", kind, **options))

    def rows(self, name: str = "a") -> list[dict[str, Any]]:
        return pq.read_table(self.path / f"{name}.parquet").to_pylist()

    def prompts(self, name: str = "a") -> list[str]:
        return [row["prompt"][-1]["content"] for row in self.rows(name)]

    def numbers(self, name: str = "a") -> list[int]:
        return [int(re.findall(r"\d+", prompt)[0]) for prompt in self.prompts(name)]

    def skipped(self, name: str = "a") -> list[dict[str, str]]:
        return [json.loads(line) for line in (self.path / f"{name}.skipped.jsonl").read_text().splitlines()]

    def meta(self, name: str = "a") -> dict[str, Any]:
        return json.loads((self.path / f"{name}.meta.json").read_text())

    def is_refused(self, rows: list[Any], *fragments: str, **options: Any) -> None:
        """One line that holds the fragments, and no file is left behind."""
        before = {path.name for path in self.path.iterdir()} | {f"{options.get('name', 'a')}.jsonl"}
        with pytest.raises(UserError) as caught:
            self.prepare(rows, **options)
        message = str(caught.value)
        assert message.splitlines() == [message]
        for fragment in fragments:
            assert fragment in message
        assert {path.name for path in self.path.iterdir()} <= before


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that never comes to an end is given up after one second, not ten."""
    monkeypatch.setattr("tempo_verl.data.prepare.check_ground_truth", partial(check_ground_truth, timeout=1))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


# ---------------------------------------------------------------------- what is written


def test_the_columns_of_verl(folder: Folder) -> None:
    summary = folder.prepare([question(1, id="q1"), question(2, id="q2")], name="sums")
    assert pq.read_schema(folder.path / "sums.parquet").equals(SCHEMA)
    first, second = folder.rows("sums")
    assert first == {
        "data_source": "sums",
        "prompt": [
            {
                "role": "user",
                "content": "What is 1 + 1?\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
            }
        ],
        "ability": "math",
        "reward_model": {"style": "math", "ground_truth": "2"},
        "extra_info": {
            "index": 0,
            "split": "labeled",
            "id": "q1",
            "origin": "sums.jsonl line 1",
            "question_hash": first["extra_info"]["question_hash"],
            "options": None,
        },
    }
    assert second["extra_info"]["index"] == 1
    assert (summary.read, summary.verifiers, summary.skipped) == (2, {"math": 2}, {})
    assert sorted(path.name for path in folder.path.iterdir()) == ["sums.jsonl", "sums.meta.json", "sums.parquet"]


def test_the_meta_file_says_what_it_was_made_from(folder: Folder) -> None:
    folder.prepare([*questions(1, 2, 1), "{"], bad_rows="skip", seed=7)
    meta = folder.meta()
    digest = hashlib.sha256((folder.path / "a.jsonl").read_bytes()).hexdigest()
    assert meta["sources"] == [{"file": "a.jsonl", "sha256": digest}]
    assert meta["read"] == 4
    assert list(meta["written"].values()) == [2]
    assert meta["skipped"] == {"duplicate": 1, "unreadable row": 1}
    assert meta["columns"] == {"question": {"question": 2}, "answer": {"answer": 2}}
    assert meta["settings"]["seed"] == 7
    assert meta["settings"]["dedup"] == "normalized"


def test_the_same_call_writes_the_same_bytes(folder: Folder) -> None:
    options = {"sample": 3, "seed": 5, "overwrite": True}
    folder.prepare(questions(*range(9)), **options)
    first = (folder.path / "a.parquet").read_bytes()
    folder.prepare(questions(*range(9)), **options)
    assert (folder.path / "a.parquet").read_bytes() == first


def test_verl_reads_it_and_training_sees_no_answer_of_an_unlabeled_set(
    folder: Folder, compose, tiny_policy: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    folder.prepare([question(1), {"question": "No answer?"}], kind="unlabeled")
    config = compose(["data.filter_overlong_prompts=false"]).data
    rows = create_rl_dataset(str(folder.path / "a.parquet"), config, tokenizer, None)
    assert len(rows) == 2
    assert rows[0]["raw_prompt"][0]["content"].startswith("What is 1 + 1?")
    unlabeled = WithoutAnswers(rows)
    assert [answer and answer.ground_truth for answer in unlabeled.monitoring_answers()] == ["2", None]
    assert unlabeled[0]["reward_model"]["ground_truth"] is None
    assert '"2"' not in json.dumps(folder.rows()[0]["extra_info"])


# ---------------------------------------------------------------------- templates


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_template_shows_all_there_is(name: str) -> None:
    text = load_template(name).render(
        question="Q?", passage="P.", options={"A": "x", "B": "y"}, header=["House", "Pet"]
    )
    assert text.startswith("P.\n\nQ?\n\n(A) x\n(B) y")
    assert ("Pet" in text) == (name == "grid")
    assert load_template(name).render(question="Q?", passage="", options={}, header=[]).startswith("Q?")


def test_a_template_of_the_user(folder: Folder) -> None:
    mine = folder.path / "mine.jinja"
    mine.write_text('Q: {{ question }}\n{% include "boxed.jinja" %}')
    folder.prepare(questions(1), template=str(mine))
    assert folder.prompts()[0].startswith("Q: What is 1 + 1?\nWhat is 1 + 1?\n\nPlease")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Solve {{ problem }}", "'problem' is undefined; it may use question"),
        ("Solve it", "does not show the question"),
        ("{{ question }", "line 1: "),
        ('{{ question }}{% include "none.jinja" %}', "none.jinja"),
    ],
)
def test_a_template_that_does_not_work(folder: Folder, text: str, message: str) -> None:
    mine = folder.path / "mine.jinja"
    mine.write_text(text)
    folder.is_refused(questions(1), f"--template {mine}", message, template=str(mine))


def test_an_unknown_template(folder: Folder) -> None:
    folder.is_refused(questions(1), "--template none: neither a file nor one of boxed, choice", template="none")


def test_messages_are_kept_in_a_file_of_verl_unless_a_template_is_named(folder: Folder) -> None:
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "1+1?"}]
    row = {"prompt": chat, "data_source": "x", "reward_model": {"style": "exact", "ground_truth": "2"}}
    folder.prepare([row])
    assert folder.rows()[0]["prompt"] == chat
    assert folder.rows()[0]["reward_model"] == {"style": "exact", "ground_truth": "2"}
    folder.prepare([{"prompt": chat, "data_source": "x"}], "unlabeled", name="d")
    assert folder.rows("d")[0]["prompt"] == chat
    folder.prepare([{"question": "Which?", "options": ["x", "y"], "answer": "A"}], template="keep", name="e")
    assert folder.prompts("e") == ["Which?\n\n(A) x\n(B) y"]
    folder.prepare([row], template="plain", name="b", verifier="math")
    assert folder.rows("b")[0]["prompt"] == chat
    assert folder.rows("b")[0]["reward_model"]["style"] == "math"
    folder.prepare([row], template="boxed", name="c")
    assert [message["role"] for message in folder.rows("c")[0]["prompt"]] == ["system", "user"]
    assert "boxed" in folder.prompts("c")[0]


def test_a_prepared_file_can_be_prepared_again(folder: Folder) -> None:
    folder.prepare([question(1, id="q1"), *questions(2, 3)])
    prepare(Settings((str(folder.path / "a.parquet"),), folder.path / "b.parquet", "heldout"))
    assert folder.prompts("b") == folder.prompts("a")
    assert folder.rows("b")[0]["extra_info"]["id"] == "q1"


# ---------------------------------------------------------------------- verifiers


def test_a_tolerance(folder: Folder) -> None:
    folder.prepare([{"question": "pi?", "answer": 3.14}], verifier="number", tolerance="1%")
    assert folder.rows()[0]["reward_model"] == {"style": "number", "ground_truth": "3.14 ± 1%"}
    assert score("It is \\boxed{3.15}", **folder.rows()[0]["reward_model"]).correct


def test_a_verifier_that_does_not_fit(folder: Folder) -> None:
    folder.is_refused(questions(1), "'mathh'", verifier="mathh")
    rows = [{"question": "pi?", "answer": "three"}]
    folder.is_refused(rows, "a.jsonl line 1: answer cannot be verified (as number: ", verifier="number")


# ---------------------------------------------------------------------- duplicates and overlaps


def test_duplicates_inside_a_set(folder: Folder) -> None:
    rows = [question(1), {"question": "what is  $1+1$?", "answer": "2"}, question(1, answer="3"), question(2)]
    summary = folder.prepare(rows)
    assert folder.numbers() == [1, 2]
    assert folder.rows()[0]["reward_model"]["ground_truth"] == "2"
    assert summary.skipped == {"duplicate": 1, "conflicting duplicate": 1}
    assert summary.notes == ["1 duplicates have another answer than the row that was kept: check the source"]
    assert folder.skipped() == [
        {"location": "a.jsonl line 2", "reason": "duplicate", "detail": "of a.jsonl line 1"},
        {"location": "a.jsonl line 3", "reason": "conflicting duplicate", "detail": "of a.jsonl line 1"},
    ]
    assert folder.prepare(rows, name="b", dedup="exact").skipped == {"conflicting duplicate": 1}
    assert folder.prepare(rows, name="c", dedup="off").skipped == {}


def test_the_same_question_about_another_passage_is_another(folder: Folder) -> None:
    rows = [{"passage": f"Text {n}.", "question": "What follows?", "options": ["a", "b"], "label": "A"} for n in (1, 2)]
    assert folder.prepare(rows).skipped == {}


def test_overlaps_are_dropped_whatever_the_template(folder: Folder) -> None:
    folder.prepare(questions(1, 2), name="labeled")
    against = (folder.path / "labeled.parquet",)
    summary = folder.prepare(questions(2, 3), "unlabeled", against=against, template="think_answer")
    assert folder.numbers() == [3]
    assert summary.skipped == {"overlap": 1}
    assert "labeled.parquet" in folder.skipped()[0]["detail"]
    folder.is_refused(
        questions(2, 3), "b.jsonl line 1: this question is also in", name="b", against=against, overlap="fail"
    )


def test_overlaps_are_found_in_unprepared_files_too(folder: Folder) -> None:
    other = jsonl(folder.path / "other.jsonl", [{"problem": "what is 2 + 1 ?", "solution": "x"}])
    folder.prepare(questions(1, 2), against=(other,))
    assert folder.numbers() == [1]


def test_the_checks_before_training_know_a_question_under_two_templates(folder: Folder) -> None:
    folder.prepare(questions(1, 2), name="labeled")
    folder.prepare(questions(2, 3), "unlabeled", name="unlabeled", template="think_answer")
    sets = [
        read_questions(f"tempo.{name}.files", str(folder.path / f"{name}.parquet"), needs_answers=name == "labeled")
        for name in ("labeled", "unlabeled")
    ]
    with pytest.raises(UserError, match=r"1 question\(s\) of .*unlabeled.parquet are also in"):
        check_disjoint(*sets)


def test_nothing_to_compare_with(folder: Folder) -> None:
    missing = folder.path / "missing.parquet"
    folder.is_refused(questions(1), f"--against {missing}: no such file", against=(missing,))
    broken = jsonl(folder.path / "broken.jsonl", ["{"])
    folder.is_refused(questions(1), f"--against {broken}: broken.jsonl line 1: unreadable row", against=(broken,))


# ---------------------------------------------------------------------- samples


def test_a_sample_and_the_rest_are_disjoint_and_seeded(folder: Folder) -> None:
    options = {"sample": 4, "rest": folder.path / "rest.parquet", "rest_as": "unlabeled", "overwrite": True}
    draws = []
    for seed in (1, 1, 2):
        folder.prepare(questions(*range(10)), seed=seed, **options)
        draws.append(folder.numbers())
        assert len(draws[-1]) == 4
        assert sorted(draws[-1] + folder.numbers("rest")) == list(range(10))
        assert draws[-1] == sorted(draws[-1])
    assert draws[0] == draws[1] != draws[2]
    assert [row["extra_info"]["index"] for row in folder.rows("rest")] == list(range(6))
    assert {row["extra_info"]["split"] for row in folder.rows("rest")} == {"unlabeled"}
    assert folder.meta("rest")["as"] == "unlabeled"
    assert list(folder.meta()["written"].values()) == list(folder.meta("rest")["written"].values()) == [4, 6]


def test_a_share(folder: Folder) -> None:
    summary = folder.prepare(questions(*range(10)), sample=0.3, seed=4)
    assert len(folder.rows()) == 3
    assert summary.notes == ["3 of 10 rows are in the sample, with seed 4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": 11}, "--sample 11: is 11 of 10 rows; choose fewer"),
        ({"sample": 1.5}, "--sample 1.5: give a whole number of rows, or a share between 0 and 1"),
        ({"sample": -1}, "--sample -1: give a whole number"),
        ({"sample": 0.01}, "is 0 of 10 rows"),
        ({"rest": Path("rest.parquet"), "rest_as": "heldout"}, "--rest FILE goes with --rest-as and --sample"),
        ({"sample": 5, "rest_as": "heldout"}, "--rest FILE goes with"),
        ({"max_prompt_tokens": 5}, "--max-prompt-tokens N goes with --tokenizer PATH"),
        ({"max_prompt_tokens": 5, "tokenizer": "/none"}, "--tokenizer /none: no tokenizer there"),
        ({"tolerance": "1"}, "only --verifier number has one"),
        ({"drop_answers": True}, "only --as unlabeled may be without answers"),
    ],
)
def test_options_that_do_not_go_together(folder: Folder, options: dict[str, Any], message: str) -> None:
    folder.is_refused(questions(*range(10)), message, **options)


def test_long_prompts_are_left_out_by_the_models_own_tokens(folder: Folder, tiny_policy: Path) -> None:
    rows = [{"question": "1+1?", "answer": "2"}, {"question": "1" * 40, "answer": "1"}]
    summary = folder.prepare(rows, max_prompt_tokens=20, tokenizer=str(tiny_policy), template="plain")
    assert folder.prompts() == ["1+1?"]
    assert summary.skipped == {"prompt too long": 1}


# ---------------------------------------------------------------------- answers of unlabeled sets


def test_a_label_column_in_an_unlabeled_file_is_told(folder: Folder) -> None:
    rows = [question(1), {"question": "Open?"}, {"question": "Long?", "answer": "x" * 100_000}]
    summary = folder.prepare(rows, "unlabeled")
    assert [row["reward_model"]["ground_truth"] for row in folder.rows()] == ["2", None, None]
    assert summary.notes == [
        "1 answers found in answer: unlabeled rows keep them for monitoring only (--drop-answers leaves them out)",
        "1 monitoring answers left out, the questions kept: answer too long",
    ]
    folder.prepare(rows, "unlabeled", name="b", drop_answers=True)
    assert [row["reward_model"]["ground_truth"] for row in folder.rows("b")] == [None] * 3


# ---------------------------------------------------------------------- bad rows

TOWER = "9^{9^{9^9}}"
BAD_ROWS = {
    '{"question": "1+1?", ': "unreadable row",
    '["not", "an", "object"]': "unreadable row",
    '{"question": null, "answer": "1"}': "no question",
    '{"question": "", "answer": "1"}': "no question",
    '{"question": {"text": "1+1?"}, "answer": "1"}': "nested question",
    '{"other": "1+1?", "answer": "1"}': "no question",
    '{"question": "Empty?", "answer": null}': "no answer",
    '{"question": "Missing?"}': "no answer",
    '{"question": "Several?", "answer": ["1", "2"]}': "several answers",
    '{"question": "Nested?", "answer": {"value": "1"}}': "nested answer",
    json.dumps({"question": "Long?", "answer": "1" * 100_000}): "answer too long",
    json.dumps({"question": "Deep?", "answer": "1" + "{" * 9_000}): "answer cannot be verified",
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("line", "reason"), BAD_ROWS.items(), ids=list(range(len(BAD_ROWS))))
def test_a_bad_row_stops_with_its_place_and_a_remedy(folder: Folder, line: str, reason: str) -> None:
    folder.is_refused([*questions(1), line], f"a.jsonl line 2: {reason} (", "--bad-rows skip leaves such rows out")


@pytest.mark.usefixtures("impatient")
def test_bad_rows_are_left_out_counted_and_listed(folder: Folder) -> None:
    summary = folder.prepare([*questions(1), *BAD_ROWS, *questions(2)], bad_rows="skip")
    assert folder.numbers() == [1, 2]
    reasons = list(BAD_ROWS.values())
    assert summary.skipped == {reason: reasons.count(reason) for reason in reasons}
    assert [line["reason"] for line in folder.skipped()] == reasons
    assert [line["location"] for line in folder.skipped()] == [f"a.jsonl line {2 + n}" for n in range(len(reasons))]
    assert summary.read == len(folder.rows()) + len(folder.skipped())


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "answer",
    [TOWER, "{" * 4_000 + "1" + "}" * 4_000, r"\frac{1}" * 1_000, r"\sqrt" * 1_500, "(" * 5_000, "1e999999999"],
)
def test_a_latex_bomb_is_kept_or_refused_and_never_hangs(folder: Folder, answer: str) -> None:
    summary = folder.prepare([*questions(1), {"question": "Boom?", "answer": answer}], bad_rows="skip", verifier="math")
    assert summary.read == len(folder.rows()) + sum(summary.skipped.values())
    assert set(summary.skipped) <= {"answer cannot be verified"}


def test_braces_and_signs_in_a_question_do_no_harm(folder: Folder) -> None:
    wild = ["{" * 10_000, "{% raw %} {{ 7 * 7 }} {# #}", "\ud800 lone \0 nul", "٣ + ٤ = ?", "🙂" * 1_000]
    folder.prepare([{"question": text, "answer": "7"} for text in wild])
    shown = folder.prompts()
    assert wild[0] in shown[0]
    assert "{{ 7 * 7 }}" in shown[1]
    assert shown[2].startswith("\ufffd lone  nul")
    assert wild[3] in shown[3]


def test_digits_of_any_script_are_verified(folder: Folder) -> None:
    folder.prepare([{"question": "٣٠ + ٤ = ?", "answer": "٣٤"}])
    reward_model = folder.rows()[0]["reward_model"]
    assert score("\\boxed{34}", **reward_model).correct
    assert score("\\boxed{٣٤}", **reward_model).correct
    assert not score("\\boxed{35}", **reward_model).correct


def test_ids_that_occur_twice_are_kept_and_told(folder: Folder) -> None:
    summary = folder.prepare([question(1, id=7), question(2, id=7), question(3, id=8)])
    assert [row["extra_info"]["id"] for row in folder.rows()] == ["7", "7", "8"]
    assert summary.notes == ["1 ids occur more than once; extra_info.index is unique"]


def test_no_row_left(folder: Folder) -> None:
    folder.is_refused([], "no rows left of 0 read; give a source with at least one row")
    folder.is_refused(["{"], "no rows left of 1 read (1 unreadable row)", bad_rows="skip")


def test_a_column_that_is_not_there(folder: Folder) -> None:
    columns = {"question": ("body",)}
    folder.is_refused(questions(1), "a.jsonl line 1: no column 'body' (found question, answer)", columns=columns)


def test_two_columns_that_may_be_meant_are_told_with_how_to_choose(folder: Folder) -> None:
    rows = [{"problem": f"{n}+1?", "prompt": f"{n}+2?", "answer": "1", "label": "2", "solution": "1"} for n in range(2)]
    same = {"problem": "5+1?", "prompt": "5+1?", "answer": "6"}  # either may be taken
    summary = folder.prepare([*rows, same], template="plain")
    assert folder.prompts() == ["0+1?", "1+1?", "5+1?"]
    assert summary.notes == [
        "question is taken from problem; 2 rows have something else in prompt, which --question prompt would take",
        "answer is taken from answer; 2 rows have something else in label, which --answer label would take",
    ]
    chosen = folder.prepare(rows, name="b", template="plain", columns={"question": ("prompt",), "answer": ("label",)})
    assert (folder.prompts("b"), chosen.notes) == (["0+2?", "1+2?"], [])
    told = [{"instruction": "Add.", "input": "1+1", "output": "x", "answer": "2"}]  # a passage is no other question
    assert folder.prepare(told, name="c").notes == []


def test_what_is_read_from_a_file_is_not_said_to_be_from_the_hub(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert folder.prepare(questions(1), preset="gsm8k").notes == []
    local = find_sources([str(folder.path / "a.jsonl")])
    monkeypatch.setattr("tempo_verl.data.prepare.find_sources", lambda sources, **options: local)  # for the hub's
    told = prepare(Settings((), folder.path / "b.parquet", "labeled", preset="gsm8k"))
    assert told.notes == ["from the hub, the training split; --hub-split test is the other"]
    assert prepare(Settings((), folder.path / "c.parquet", "labeled", preset="gsm8k", hub_split="test")).notes == []


# ---------------------------------------------------------------------- files that are there


def test_nothing_is_overwritten_unasked(folder: Folder) -> None:
    folder.prepare(questions(1, 1))
    before = (folder.path / "a.parquet").read_bytes()
    folder.is_refused(questions(2), "a.parquet: exists already; choose another name, or --overwrite")
    assert (folder.path / "a.parquet").read_bytes() == before
    folder.is_refused([*questions(2), "{"], "unreadable row", overwrite=True)
    assert (folder.path / "a.parquet").read_bytes() == before
    assert folder.skipped()
    folder.prepare(questions(2), overwrite=True)
    assert folder.numbers() == [2]
    assert not (folder.path / "a.skipped.jsonl").exists()  # of the run before


def test_the_source_is_never_the_output(folder: Folder) -> None:
    folder.prepare(questions(1))
    path = folder.path / "a.parquet"
    with pytest.raises(UserError, match=r"is the source itself"):
        prepare(Settings((str(path),), path, "heldout", overwrite=True))
    with pytest.raises(UserError, match=r"must end in .parquet"):
        prepare(Settings((str(path),), folder.path / "b.json", "heldout"))
    (folder.path / "c.parquet").mkdir()
    with pytest.raises(UserError, match=r"c.parquet: is a folder"):
        prepare(Settings((str(path),), folder.path / "c.parquet", "heldout", overwrite=True))
    with pytest.raises(UserError, match=r"a.jsonl/d.skipped.jsonl: cannot be written .*choose another place"):
        prepare(Settings((str(path),), folder.path / "a.jsonl/d.parquet", "heldout"))


# ---------------------------------------------------------------------- the command


def test_the_command(folder: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    source = jsonl(folder.path / "in.jsonl", [*questions(1, 2, 2), {"q": "none"}])
    out = folder.path / "new/a.parquet"
    arguments = ["prepare", str(source), "--out", str(out), "--as", "labeled"]
    monkeypatch.setattr("sys.argv", ["tempo-verl", *arguments])
    with pytest.raises(SystemExit) as exit_status:
        tempo_verl_command()
    assert exit_status.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("tempo-verl: in.jsonl line 4: no question (name its column with --question; found q)")
    assert error.count("\n") == 1

    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*arguments, "--bad-rows", "skip"])
    assert result.exit_code == 0, result.output
    for text in ("4 rows read", "left out: duplicate", "left out: no question", "verifier: math", "a.skipped.jsonl"):
        assert text in result.output
    assert len(pq.read_table(out)) == 2


def test_the_help_names_every_option() -> None:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["prepare", "--help"])
    assert result.exit_code == 0
    for option in (
        "--as",
        "--preset",
        "--against",
        "--bad-rows",
        "--rest-as",
        "--max-prompt-tokens",
        "--drop-answers",
        "olymmath",
    ):
        assert option in result.output


# ---------------------------------------------------------------------- real files

REAL = [
    ("aime2024.json", "aime24", 30, 0),
    ("math500.json", "math500", 500, 0),
    ("gsm8k_train_2000.jsonl", "gsm8k", 2000, 0),
    ("bbh", "bbh", 1000, 0),
    ("agieval", "agieval", 602, 2),
]


# thousands of answers that several tests read: each is looked at once
checked_once = lru_cache(maxsize=None)(check_ground_truth)


@cache
def gold_answer_is_right(truth: str, style: str) -> bool:
    letter = re.match(r"\(([A-Z])\)", truth)
    answer = letter[1] if letter and style == "choice" else truth
    return score(f"So the answer is \\boxed{{{answer}}}.", truth, style).correct


@pytest.mark.parametrize(("name", "preset", "read", "duplicates"), REAL, ids=[case[1] for case in REAL])
def test_a_real_file_is_prepared_whole_and_its_gold_answers_are_right(
    benchmarks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    preset: str,
    read: int,
    duplicates: int,
) -> None:
    monkeypatch.setattr("tempo_verl.data.prepare.check_ground_truth", checked_once)
    for how, chosen in (("preset", preset), ("guessed", None)):
        out = tmp_path / f"{how}.parquet"
        summary = prepare(Settings((str(benchmarks / name),), out, "heldout", preset=chosen))
        assert (summary.read, sum(summary.skipped.values())) == (read, duplicates), how
        rows = pq.read_table(out).to_pylist()
        assert len(rows) == read - duplicates, how
        assert len(read_questions("data.val_files", str(out), needs_answers=True)) == len(rows), how
        models = [row["reward_model"] for row in rows]
        wrong = [one for one in models if not gold_answer_is_right(one["ground_truth"], one["style"])]
        assert wrong == [], how


def test_real_sets_share_no_question_but_with_themselves(
    benchmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempo_verl.data.prepare.check_ground_truth", checked_once)
    first, second = tmp_path / "first.parquet", tmp_path / "second.parquet"
    prepare(Settings((str(benchmarks / "aime2024.json"),), first, "labeled"))
    summary = prepare(Settings((str(benchmarks / "math500.json"),), second, "unlabeled", against=(first,)))
    assert summary.skipped == {}
    with pytest.raises(UserError, match=r"no rows left of 30 read \(30 overlap\)"):
        prepare(Settings((str(benchmarks / "aime2024.json"),), tmp_path / "third.parquet", "heldout", against=(first,)))
