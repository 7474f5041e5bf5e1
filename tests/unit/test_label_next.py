# SPDX-License-Identifier: Apache-2.0
"""``tempo-verl label-next``: the score by hand, the file, and the way from it to a larger labelled set."""

from __future__ import annotations

import json
import subprocess
import sys
from math import log2
from pathlib import Path
from typing import Any

import pytest
from test_cli import refused
from typer.testing import CliRunner

from tempo_verl.cli.main import app
from tempo_verl.data.prepare import Settings, prepare
from tempo_verl.data.validation import read_questions, shared_rows
from tempo_verl.evaluation.answers import predict, write_predictions
from tempo_verl.evaluation.disagreement import candidates, in_question, information, reason, score
from tempo_verl.evaluation.label_next import rank
from tempo_verl.evaluation.questions import Question, load_questions
from tempo_verl.evaluation.samples import Sample


def coin(p: float) -> float:
    """Entropy in bits."""
    return -p * log2(p) - (1 - p) * log2(1 - p)


# ---------------------------------------------------------------------- the score


@pytest.mark.parametrize(
    ("share", "critic", "bits"),
    [
        (0.0, 1.0, 1.0),  # each is sure of what the other rules out
        (1.0, 0.0, 1.0),
        (0.25, 0.25, 0.0),  # they agree, however unsure
        (1.0, 1.0, 0.0),
        (1.0, 0.5, coin(0.75) - 1 / 2),
        (0.5, 1.0, coin(0.75) - 1 / 2),
        (0.125, 0.875, 1 - coin(0.125)),
    ],
)
def test_what_a_verdict_tells_by_hand(share: float, critic: float, bits: float) -> None:
    assert information(share, critic) == pytest.approx(bits)
    assert information(share, critic) >= 0.0


def test_a_question_tells_as_much_as_its_most_telling_verdict() -> None:
    # 8 samples: 5 say "7" and the critic gives them 1.0 together, 2 say "12" with 1.75, 1 says nothing
    found = candidates([("12", 2, 1.75), ("7", 5, 1.0)], 8)
    assert [(one.answer, one.share, one.critic) for one in found] == [("7", 5 / 8, 0.2), ("12", 2 / 8, 0.875)]
    verdicts = [information(5 / 8, 0.2), information(2 / 8, 0.875)]
    assert verdicts[1] > verdicts[0]
    assert score(found) == verdicts[1]
    assert in_question(found) == found
    assert reason(found, 8) == ("the vote elects 7 (5 of 8, critic 0.20), the critic prefers 12 (2 of 8, critic 0.88)")


def test_where_both_prefer_the_same_answer() -> None:
    doubted = candidates([("7", 8, 0.8)], 8)
    assert (in_question(doubted), score(doubted)) == (doubted, pytest.approx(coin(0.55) - coin(0.1) / 2))
    assert reason(doubted, 8) == "the critic doubts 7 (8 of 8, critic 0.10)"
    # the verdict on "9" tells more than that on "7": its two votes are trusted as "7" is
    surer = candidates([("7", 6, 5.4), ("9", 2, 1.7)], 8)
    assert [one.answer for one in in_question(surer)] == ["9"]
    assert reason(surer, 8) == "the critic is surer than the vote of 9 (2 of 8, critic 0.85)"
    agreed = candidates([("7", 8, 8.0)], 8)
    assert (score(agreed), reason(agreed, 8)) == (0.0, "critic and vote agree on 7")


def test_without_a_critic_the_entropy_of_the_votes_counts() -> None:
    split = candidates([("b", 4, None), ("a", 4, None)], 8)
    assert score(split) == pytest.approx(1.0)
    assert [one.answer for one in in_question(split)] == ["a", "b"]
    # a quarter of the samples says nothing: one answer more, 1/2 * 1 + 2 * 1/4 * 2 bits
    assert score(candidates([("a", 4, None), ("b", 2, None)], 8)) == pytest.approx(1.5)
    assert score(candidates([("a", 8, None)], 8)) == 0.0
    assert reason(split, 8) == "the votes for a are 4 of 8"
    assert (score([]), reason([], 8), in_question([])) == (0.0, "no sample gave an answer", [])


# ---------------------------------------------------------------------- the file


def question(index: int, text: str = "") -> Question:
    text = text or f"question {index}"
    return Question(index, f"id {index}", "set", [{"role": "user", "content": text}], text, "hash", "math", None)


def samples(index: int, *given: tuple[str | None, float | None]) -> list[Sample]:
    return [
        Sample(index, f"id {index}", "hash", "set", number, 0, "text", answer, None, True, 5, False, value)
        for number, (answer, value) in enumerate(given)
    ]


def predictions(folder: Path, critic: bool = True) -> Path:
    """Of four questions: both agree, they elect different answers, the critic doubts the vote, no sample."""
    drawn = [
        *samples(0, ("7", 1.0), ("7", 1.0), ("7", 1.0)),
        *samples(1, ("7", 0.1), ("7", 0.1), ("12", 0.9)),
        *samples(2, ("3", 0.0), ("3", 0.0), ("3", 0.0)),
    ]
    if not critic:
        drawn = [Sample(**{**vars(sample), "value": None}) for sample in drawn]
    write_predictions(folder / "predictions.jsonl", predict([question(index) for index in range(4)], drawn)[0])
    return folder / "predictions.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def command(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["label-next", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_most_telling_question_comes_first(tmp_path: Path) -> None:
    predictions(tmp_path)
    said = command(tmp_path, "--count", 2)
    assert "2 of 4 questions, ranked by where critic and vote disagree most" in said
    assert "1 questions have no sample" in said
    first, second = lines(tmp_path / "label_next.jsonl")
    assert (first["index"], first["score"], first["answer"]) == (2, 1.0, None)
    assert first["prompt"] == [{"role": "user", "content": "question 2"}]
    assert first["reason"] == "the critic doubts 3 (3 of 3, critic 0.00)"
    assert second["candidates"] == [
        {"answer": "7", "votes": 2, "share": 0.6667, "critic": 0.1},
        {"answer": "12", "votes": 1, "share": 0.3333, "critic": 0.9},
    ]


def test_votes_alone_are_said_to_be_alone(tmp_path: Path) -> None:
    predictions(tmp_path, critic=False)
    assert "ranked by the entropy of the votes, for there is no critic" in command(tmp_path)
    written = lines(tmp_path / "label_next.jsonl")
    assert [line["index"] for line in written] == [1, 0, 2]
    assert written[0]["score"] == pytest.approx(coin(1 / 3), abs=1e-4)
    assert "critic" not in written[0]["candidates"][0]


def test_predictions_by_name_and_those_of_an_earlier_version(tmp_path: Path) -> None:
    file = predictions(tmp_path)
    rows = [{name: row[name] for name in row if name not in ("prompt", "style")} for row in lines(file)]
    file.write_text("".join(json.dumps(row | {"upper_bound": True}) + "\n" for row in rows))
    said = command(file, "--out", tmp_path / "new" / "some.jsonl")
    assert "trained on the answers" in said
    first = lines(tmp_path / "new" / "some.jsonl")[0]
    assert first["prompt"] == [{"role": "user", "content": "question 2"}]
    assert "reward_model" not in first


def test_bad_input_ends_in_one_line(tmp_path: Path) -> None:
    assert "no such folder" in refused("label-next", tmp_path / "nowhere")
    assert "no predictions.jsonl in it" in refused("label-next", tmp_path)
    file = predictions(tmp_path)
    assert "--count=0: give how many" in refused("label-next", tmp_path, "--count", 0)
    assert "is a folder; name a file" in refused("label-next", tmp_path, "--out", tmp_path)
    (tmp_path / "label_next.jsonl").write_text("mine")
    assert "answers may be in it" in refused("label-next", tmp_path)
    assert (tmp_path / "label_next.jsonl").read_text() == "mine"
    (tmp_path / "label_next.jsonl").unlink()
    good = lines(file)[1]
    for broken, why in (
        ("{nonsense", "line 2: no prediction"),
        ("[1]", "line 2: no prediction (without index"),
        ("3", "line 2: no prediction"),
        (json.dumps({**good, "votes": 3}), "line 2: no prediction"),
        (json.dumps({**good, "samples": 1}), "more votes than samples"),
        (json.dumps({**good, "votes": {"7": {"count": 1, "weight": 3.0}}}), "a critic value outside 0 to 1"),
        (json.dumps({**good, "votes": {"7": {"count": 0, "weight": 0.0}}}), "line 2: no prediction"),
    ):
        file.write_text(json.dumps(good) + "\n" + broken + "\n")
        assert why in refused("label-next", tmp_path), broken
    file.write_text("")
    assert "no question in it has a sample" in refused("label-next", tmp_path)
    assert not (tmp_path / "label_next.jsonl").exists()


def test_it_needs_no_torch(tmp_path: Path) -> None:
    predictions(tmp_path)
    code = f"""
import sys
from typer.testing import CliRunner
from tempo_verl.cli.main import app
assert CliRunner().invoke(app, ["label-next", {str(tmp_path)!r}]).exit_code == 0
print(sorted({{"torch", "transformers", "verl", "ray", "pyarrow", "sklearn", "numpy"}} & sys.modules.keys()))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (result.stdout, result.stderr) == ("[]\n", "")


# ---------------------------------------------------------------------- the loop


def test_filled_in_it_becomes_a_labelled_set_that_leaves_d_u(tmp_path: Path) -> None:
    """From D_U over predictions to a labelled set with the same prompts, and a D_U without its questions."""
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 + 2?"}]
    asked = [{"problem": chat}, {"problem": "What is 3 + 4?"}, {"problem": "What is 5 + 6?"}]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    prepare(Settings((str(tmp_path / "asked.jsonl"),), tmp_path / "unlabeled.parquet", "unlabeled"))
    questions = load_questions("--data", [tmp_path / "unlabeled.parquet"], with_answers=False)
    drawn = [one for index in range(3) for one in samples(index, ("3", 0.1 * index), ("3", 0.1 * index))]
    write_predictions(tmp_path / "predictions.jsonl", predict(questions, drawn)[0])
    assert [line["index"] for line in rank(tmp_path / "predictions.jsonl").lines] == [0, 1, 2]
    command(tmp_path, "--count", 2)

    given = zip(lines(tmp_path / "label_next.jsonl"), (3, None), strict=True)
    filled = [line | {"answer": answer} for line, answer in given]
    (tmp_path / "filled.jsonl").write_text("".join(json.dumps(line) + "\n" for line in filled))
    more = tmp_path / "more.parquet"
    prepare(Settings((str(tmp_path / "filled.jsonl"),), more, "labeled", bad_rows="skip"))
    (labeled,) = load_questions("--data", [more], with_answers=True)
    assert (labeled.messages, labeled.style, labeled.ground_truth) == (questions[0].messages, "math", "3")

    rest = tmp_path / "rest.parquet"
    prepare(Settings((str(tmp_path / "unlabeled.parquet"),), rest, "unlabeled", against=(more,)))
    left = load_questions("--data", [rest], with_answers=False)
    assert [one.messages for one in left] == [one.messages for one in questions[1:]]
    assert not shared_rows(*(read_questions("--data", [str(file)], needs_answers=False) for file in (rest, more)))
