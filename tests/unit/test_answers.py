# SPDX-License-Identifier: Apache-2.0
"""``tempo-verl answer``: votes and probabilities recomputed from the samples; ground truths change nothing."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tempo_verl.algo.calibration import calibration_metrics
from tempo_verl.cli.main import main as tempo_verl_command
from tempo_verl.errors import UserError
from tempo_verl.evaluation.answers import (
    Calibrator,
    answer,
    answer_from_samples,
    elect,
    predict,
    write_predictions,
)
from tempo_verl.evaluation.engines import Sampling
from tempo_verl.evaluation.evaluate import evaluate
from tempo_verl.evaluation.questions import Question
from tempo_verl.evaluation.samples import Sample

pytestmark = pytest.mark.usefixtures("one_thread")
N = 4


def quiet() -> Console:
    return Console(file=StringIO())


def sample(number: int, answer: str | None, value: float | None = None, *, index: int = 0, correct: bool | None = None):
    return Sample(
        index, "id", f"hash {index}", "set", number, 0, f"text {number}", answer, correct, True, 5, False, value
    )


def question(index: int = 0) -> Question:
    return Question(index, f"id {index}", "set", [], f"question {index}", f"hash {index}", "exact", None)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def sampling(skilled_policy: Path, tiny_critic: Path) -> Sampling:
    return Sampling(str(skilled_policy), str(tiny_critic), n=N, max_tokens=16, engine="transformers", batch_size=64)


# ---------------------------------------------------------------------- one question


def written(out: Path, *asked) -> list[str]:
    """What is said of the predictions in ``out``; ``asked``: as for ``predict``."""
    predictions, said = predict(*asked)
    write_predictions(out, predictions)
    return said


def test_an_election_by_hand() -> None:
    found = elect([sample(0, "a", 0.25), sample(1, "b", 1.5), sample(2, "a", 0.5), sample(3, None, 0.25)])
    assert (found.answer, found.majority) == ("b", "a")
    assert found.share == pytest.approx(1 / 2)  # 1.5 counts as 1; the sample without an answer weighs, too
    assert (found.value, found.score) == (1.0, 1.0)
    assert found.shown == sample(1, "b", 1.5)
    tied = elect([sample(0, "a", 0.5), sample(1, "a", 0.75), sample(2, "a", 0.75)])
    assert tied.shown == sample(1, "a", 0.75)
    assert tied.score == pytest.approx(2 / 3)


def test_an_election_without_a_critic_or_an_answer() -> None:
    plain = elect([sample(0, "a"), sample(1, "b"), sample(2, "b"), sample(3, None)])
    assert (plain.answer, plain.majority, plain.share, plain.value, plain.score) == ("b", "b", 0.5, None, 0.5)
    assert plain.shown == sample(1, "b")
    nothing = elect([sample(0, None, 0.9)])
    assert (nothing.answer, nothing.majority, nothing.votes, nothing.shown) == (None, None, {}, None)
    worthless = elect([sample(0, "a", -1.0), sample(1, "a", -0.5), sample(2, "b", -0.1)])
    assert (worthless.answer, worthless.share, worthless.score) == ("a", pytest.approx(2 / 3), 0.0)
    assert worthless.shown == sample(1, "a", -0.5)


def test_a_line_of_the_predictions(tmp_path: Path) -> None:
    out = tmp_path / "new" / "predictions.jsonl"
    samples = [sample(0, "a", 0.25), sample(1, "b", 0.75), sample(2, "a", 0.25), sample(0, None, 0.5, index=1)]
    said = written(out, [question(0), question(1)], samples)
    assert said == [
        "probabilities are not calibrated: no labelled questions were given.",
        "1 of 2 questions have no answer: no sample gave one.",
    ]
    first, second = lines(out)
    assert first == {
        "index": 0,
        "id": "id 0",
        "data_source": "set",
        "question": "question 0",
        "prompt": [],
        "style": "exact",
        "answer": "b",
        "majority": "a",
        "probability": 0.75,
        "calibrated": False,
        "basis": "critic value",
        "samples": 3,
        "votes": {"b": {"count": 1, "weight": 0.75}, "a": {"count": 2, "weight": 0.5}},
        "rationale": {"sample": 1, "value": 0.75, "response": "text 1"},
    }
    assert list(first["votes"]) == ["b", "a"]
    assert (second["answer"], second["probability"], second["rationale"]) == (None, None, None)
    written(out, [question(0), question(1)], samples[:3])
    assert [(row["answer"], row["samples"]) for row in lines(out)] == [("b", 3), (None, 0)]
    written(out, [question()], [sample(0, "a"), sample(1, "b")])
    assert lines(out)[0]["votes"] == {"a": {"count": 1}, "b": {"count": 1}}
    assert (lines(out)[0]["basis"], lines(out)[0]["probability"]) == ("vote share", 0.5)


def test_the_chat_is_kept_where_it_is_text(tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": "?"}], [{"role": "user", "content": [{"image": b"no text"}]}]]
    asked = [replace(question(index), messages=chat) for index, chat in enumerate(chats)]
    written(tmp_path / "predictions.jsonl", asked, [])
    assert [row["prompt"] for row in lines(tmp_path / "predictions.jsonl")] == [chats[0], None]


def test_what_cannot_be_written_leaves_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError):
        written(tmp_path / "out", [question()], [sample(0, "a")])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# ---------------------------------------------------------------------- calibration


def rollouts(questions: int, seed: int, bias: float) -> list[Sample]:
    """8 samples a question, of two answers; the critic is right about which is better, but too sure by ``bias``."""
    rng = np.random.default_rng(seed)
    drawn = []
    for index in range(questions):
        skill = rng.beta(2, 2)
        for number in range(8):
            right = bool(rng.random() < skill)
            value = float(np.clip(skill + bias + rng.normal(0, 0.1), 0, 1))
            drawn.append(sample(number, "right" if right else "wrong", value, index=index, correct=right))
    return drawn


def test_calibrated_probabilities_are_closer_to_the_truth(tmp_path: Path) -> None:
    asked, known = rollouts(400, seed=1, bias=0.3), rollouts(200, seed=2, bias=0.3)
    questions = [question(index) for index in range(400)]
    error = {}
    for name, labeled in (("plain", []), ("calibrated", known)):
        said = written(tmp_path / name, questions, asked, labeled)
        predictions = lines(tmp_path / name)
        assert {prediction["calibrated"] for prediction in predictions} == {name == "calibrated"}
        right = [prediction["answer"] == "right" for prediction in predictions]
        error[name] = calibration_metrics([prediction["probability"] for prediction in predictions], right)
    assert said == ["probabilities are calibrated on 200 labelled questions."]
    assert error["plain"]["ece"] > 0.15 > 0.1 > error["calibrated"]["ece"]
    assert error["calibrated"]["brier"] < error["plain"]["brier"]


def test_the_calibration_is_a_logistic_regression_on_share_and_value() -> None:
    known, asked = rollouts(60, seed=5, bias=0.2), rollouts(5, seed=4, bias=0.2)

    def features(group: list[Sample]) -> tuple[list[float], bool]:
        weight = {name: sum(s.value for s in group if s.answer == name) for name in ("right", "wrong")}
        winner = max(weight, key=weight.__getitem__)
        count = sum(s.answer == winner for s in group)
        return [weight[winner] / sum(weight.values()), weight[winner] / count], winner == "right"

    x, y = zip(*(features(known[start : start + 8]) for start in range(0, len(known), 8)), strict=True)
    scale = StandardScaler().fit(x)
    model = LogisticRegression().fit(scale.transform(x), y)
    assert (model.coef_ > 0).all()  # else one would be left out
    calibrator = Calibrator(known)
    for start in range(0, len(asked), 8):
        group = asked[start : start + 8]
        expected = model.predict_proba(scale.transform([features(group)[0]]))[0, 1]
        assert calibrator.probability(elect(group)) == pytest.approx(expected)


def test_what_seems_to_lower_the_probability_is_left_out() -> None:
    known = []
    for index in range(40):
        right = index % 2 == 0
        value = 0.8 if right == (index % 10 != 0) else 0.4  # goes with being right; the share of the vote does not
        known.append(sample(0, "a", value, index=index, correct=right))
        known.append(sample(1, "b" if right else "a", 0.3 if right else value, index=index, correct=False))
    calibrator = Calibrator(known)

    def probability(value: float, other: str) -> float:
        return calibrator.probability(elect([sample(0, "a", value), sample(1, other, value)]))

    assert probability(0.8, "b") == probability(0.8, "a") > 0.6 > 0.4 > probability(0.4, "a")


def test_what_cannot_be_calibrated_on(tmp_path: Path) -> None:
    few = [sample(0, "a", 0.5, index=index, correct=index % 2 == 0) for index in range(19)]
    alike = [sample(0, "a", 0.5, index=index, correct=True) for index in range(30)]
    unknown = [sample(0, "a", 0.5, index=index) for index in range(30)]
    contrary = [sample(0, "a", 0.4 if index % 2 else 0.9, index=index, correct=bool(index % 2)) for index in range(30)]
    contrary += [sample(1, "b" if index % 2 else "a", 0.3 if index % 2 else 0.9, index=index) for index in range(30)]
    for labeled, why in (
        (few, "only 19 labelled questions have an answer, 20 are needed"),
        (alike, "all 30 labelled questions were answered right"),
        (unknown, "only 0 labelled questions have an answer, 20 are needed"),
        (contrary, "the answers to 30 labelled questions are right the less, the surer the vote is"),
    ):
        said = written(tmp_path / "out", [question()], [sample(0, "a", 0.5)], labeled)
        assert said == [f"probabilities are not calibrated: {why}."]
        assert not lines(tmp_path / "out")[0]["calibrated"]


# ---------------------------------------------------------------------- a model


def test_the_predictions_follow_from_the_samples(sampling: Sampling, tiny_task: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.jsonl"
    files, labeled = [tiny_task / "unlabeled.parquet"], [tiny_task / "labeled.parquet"]
    said = answer(sampling, files, out, quiet(), labeled=labeled)
    assert said == ["probabilities are calibrated on 32 labelled questions."]
    drawn = lines(tmp_path / "predictions.samples" / "samples.jsonl")
    known = lines(tmp_path / "predictions.labeled" / "samples.jsonl")
    assert all(row["correct"] is None for row in drawn) and all(row["correct"] is not None for row in known)
    prompts = [row["prompt"][0]["content"] for row in pq.read_table(files[0]).to_pylist()]
    for prediction in lines(out):
        mine = [row for row in drawn if row["index"] == prediction["index"]]
        assert len(mine) == prediction["samples"] == N
        assert prediction["question"] == prompts[prediction["index"]]
        weight = {a: vote["weight"] for a, vote in prediction["votes"].items()}
        for a, vote in prediction["votes"].items():
            of = [min(max(row["value"], 0.0), 1.0) for row in mine if row["answer"] == a]
            assert (vote["count"], vote["weight"]) == (len(of), pytest.approx(sum(of)))
        assert weight[prediction["answer"]] == max(weight.values())
        shown = mine[prediction["rationale"]["sample"]]
        assert (shown["response"], shown["answer"]) == (prediction["rationale"]["response"], prediction["answer"])
        assert shown["value"] == max(row["value"] for row in mine if row["answer"] == prediction["answer"])
        assert 0 < prediction["probability"] < 1


def test_ground_truths_of_the_questions_change_nothing(sampling: Sampling, tiny_task: Path, tmp_path: Path) -> None:
    table = pq.read_table(tiny_task / "unlabeled.parquet").to_pylist()
    written = []
    for name, truth in (("a", "9"), ("b", None)):
        for row in table:
            row["reward_model"]["ground_truth"] = truth
        (tmp_path / name).mkdir()
        pq.write_table(pa.Table.from_pylist(table), tmp_path / name / "questions.parquet")
        answer(sampling, [tmp_path / name / "questions.parquet"], tmp_path / name / "out.jsonl", quiet())
        samples = (tmp_path / name / "out.samples" / "samples.jsonl").read_bytes()
        written.append((samples, (tmp_path / name / "out.jsonl").read_bytes()))
    assert written[0] == written[1]


def test_from_the_samples_of_evaluations(sampling: Sampling, tiny_task: Path, tmp_path: Path) -> None:
    files = {name: [tiny_task / f"{name}.parquet"] for name in ("unlabeled", "labeled")}
    for name, of in files.items():
        evaluate(sampling, of, tmp_path / name, quiet())
    answer_from_samples(tmp_path / "unlabeled", tmp_path / "one.jsonl", labeled=[tmp_path / "labeled"])
    answer(sampling, files["unlabeled"], tmp_path / "two.jsonl", quiet(), labeled=files["labeled"])
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    answer(sampling, files["unlabeled"], tmp_path / "two.jsonl", quiet(), labeled=[tmp_path / "labeled"])
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()

    def refused(message: str, **options: Any) -> None:
        with pytest.raises(UserError, match=message) as caught:
            answer_from_samples(tmp_path / "unlabeled", tmp_path / "three.jsonl", **options)
        assert len(str(caught.value).splitlines()) == 1 and not (tmp_path / "three.jsonl").exists()

    refused("not the questions that .* was sampled on", files=files["labeled"])
    refused("give one folder of tempo-verl evaluate", labeled=files["labeled"])
    refused("16 of its questions are among those to answer", labeled=[tmp_path / "unlabeled"])
    evaluate(replace(sampling, n=2), files["labeled"], tmp_path / "other", quiet())
    refused("sampled with n=2, not 4; sample both alike", labeled=[tmp_path / "other"])


def test_labelled_questions_that_are_asked(sampling: Sampling, tiny_task: Path, tmp_path: Path) -> None:
    files = [tiny_task / "unlabeled.parquet"]
    with pytest.raises(UserError, match="16 question"):
        answer(sampling, files, tmp_path / "out.jsonl", quiet(), labeled=files)
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_the_labelled_questions_is_spread_over_them(sampling: Sampling, tiny_task: Path, tmp_path: Path):
    files, labeled = [tiny_task / "unlabeled.parquet"], [tiny_task / "labeled.parquet"]
    answer(sampling, files, tmp_path / "out.jsonl", quiet(), labeled=labeled, limit=2, labeled_limit=8)
    drawn = lines(tmp_path / "out.labeled" / "samples.jsonl")
    assert [row["index"] for row in drawn[::N]] == list(range(0, 32, 4))
    assert len(lines(tmp_path / "out.jsonl")) == 2


def test_the_command(
    sampling: Sampling, tiny_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def command(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["tempo-verl", "answer", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            tempo_verl_command()
        return exit.value.code or 0

    out = tmp_path / "predictions.jsonl"
    data = tiny_task / "unlabeled.parquet"
    assert command(sampling.model, "--data", data, "--n", 2, "--max-tokens", 16, "--limit", 3, "--out", out) == 0
    assert len(lines(out)) == 3
    assert "not calibrated: no labelled questions" in capsys.readouterr().out
    assert command("--out", out) == 2
    assert command(sampling.model, "--samples", tmp_path, "--out", out) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("tempo-verl: name MODEL and --data") and "leave them out" in told[1] and len(told) == 2
