# SPDX-License-Identifier: Apache-2.0
"""Whether probabilities hold on D_U itself: the file, and what the report says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_folders import make_run

from tempo_verl.errors import UserError
from tempo_verl.evaluation.judged import Judged, judge, judged_file, read_judged, write_judged
from tempo_verl.report import build_comparison, build_report, print_table
from tempo_verl.report.words import trust_sentence


def prediction(index: int, answer: str | None, probability: float | None, calibrated: bool = True) -> dict:
    rationale = answer and {"response": f"so {answer}"}
    return {
        "index": index, "answer": answer, "probability": probability, "calibrated": calibrated, "rationale": rationale,
    }  # fmt: skip


def test_answers_are_judged_by_the_response_that_is_shown() -> None:
    asked = []

    def verdicts(indices, responses):
        asked.append((list(indices), list(responses)))
        return [True, None, False]

    predictions = [prediction(0, "1", 0.9), prediction(1, None, None), prediction(2, "2", 0.5), prediction(5, "3", 0.2)]
    assert judge(predictions, verdicts) == Judged(True, [0.9, 0.2], [True, False])
    assert asked == [([0, 2, 5], ["so 1", "so 2", "so 3"])]
    assert judge(predictions[:1], lambda indices, responses: [None]) is None
    assert judge(predictions[1:2], lambda indices, responses: []) is None
    assert not judge([prediction(0, "1", 0.9, calibrated=False)], lambda indices, responses: [True]).calibrated


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"calibrated": true, "probability": [2], "right": [true]}',
             '{"calibrated": true, "probability": [0.5], "right": []}'],
)  # fmt: skip
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    path = judged_file(tmp_path / "predictions.jsonl")
    path.write_text(text)
    with pytest.raises(UserError, match=r"predictions_judged\.json: no judged answers of a run"):
        read_judged(path)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Ten answers of probability .85, six of them right, and ten of .25, one of them right."""
    run = make_run(tmp_path / "run")
    judged = Judged(True, [0.85] * 10 + [0.25] * 10, [True] * 6 + [False] * 4 + [True] + [False] * 9)
    write_judged(run / "tempo" / "predictions_judged.json", judged)
    return run


def test_the_report_says_how_far_to_trust_the_probabilities(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = build_report(run)
    trust = results.groups[0].trust
    assert trust.questions == 20
    assert trust.measures["value_mean"].value == pytest.approx(0.55)
    assert trust.measures["accuracy"].value == pytest.approx(0.35)
    assert trust.measures["ece"].value == pytest.approx((0.25 + 0.15) / 2)
    # six right at .85: .15^2 each; four wrong: .85^2; one right at .25: .75^2; nine wrong: .25^2
    assert trust.measures["brier"].value == pytest.approx((6 * 0.0225 + 4 * 0.7225 + 0.5625 + 9 * 0.0625) / 20)
    table = (run / "table.md").read_text().partition("## How far to trust the probabilities (oracle monitoring)")[2]
    assert table.strip().splitlines()[2] == "| 20 | 55.0 % | 35.0 % | 0.207 | 0.200 | 0.775 |"
    assert "| 0.2 to 0.3 | 10 | 25 % | 10 % [2, 40] |\n| 0.8 to 0.9 | 10 | 85 % | 60 % [31, 83] |" in table
    assert (run / "plots" / "trust.png").read_bytes().startswith(b"\x89PNG")
    assert "Reliability of the answers to <i>D</i><sub>U</sub>" in (run / "report.html").read_text()
    sentence = "Answers to D_U: mean probability 55.0 %, right 35.0 % of 20 (oracle monitoring)."
    assert trust_sentence(results) == sentence
    from rich.console import Console

    print_table(results, Console(width=80))
    assert sentence in " ".join(capsys.readouterr().out.split())
    assert json.loads((run / "results.json").read_text())["groups"][0]["trust"]["questions"] == 20


def test_runs_are_taken_together(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other")
    write_judged(other / "tempo" / "predictions_judged.json", Judged(False, [0.5] * 4, [True] * 4))
    (group,) = build_comparison([run, other], tmp_path / "report").groups
    assert group.trust.questions == 24
    assert not group.trust.calibrated
    assert group.trust.measures["accuracy"].value == pytest.approx((0.35 + 1) / 2)
    assert "Those of some runs are not calibrated" not in (tmp_path / "report" / "table.md").read_text()
    assert "not calibrated on labelled questions" in (tmp_path / "report" / "table.md").read_text()


def test_nothing_is_said_where_nothing_is_known(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    results = build_report(run)
    assert results.groups[0].trust is None
    assert trust_sentence(results) == ""
    assert "trust" not in (run / "table.md").read_text()
    assert not any("D_U" in line for line in results.missing)
