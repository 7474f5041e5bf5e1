# SPDX-License-Identifier: Apache-2.0
"""Is training worth it against sampling more: the cost, the votes and the words, worked out by hand."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fields import method_of
from run_folders import make_run

from tempo_verl.cli.main import main as tempo_verl_command
from tempo_verl.config.draws import equal_samples, samples_of_rounds
from tempo_verl.data.monitor import Monitor
from tempo_verl.data.streams import Answer
from tempo_verl.errors import UserError
from tempo_verl.evaluation.equal_cost import (
    before_file,
    compare,
    compare_folders,
    comparison_file,
    read_comparison,
    told,
    votes_at,
    write_comparison,
)
from tempo_verl.evaluation.samples import Sample, write_samples, written_samples
from tempo_verl.report import build_comparison, build_report


def group(index: int, answers: list[str | None], values: list[float] | None = None, right: str | None = "1"):
    """Samples of one question, right if they answer ``right``; without verdicts where there is none."""
    return [
        Sample(
            index,
            "",
            f"hash {index}",
            "set",
            number,
            None,
            "",
            answer,
            None if right is None else answer == right,
            True,
            5,
            False,
            None if values is None else values[number],
            style="exact",
        )
        for number, answer in enumerate(answers)
    ]


# ---------------------------------------------------------------------- how many samples cost as much


def test_the_samples_of_the_rounds_follow_the_schedule() -> None:
    method = method_of(labeled__batch_size=4, labeled__n=2, unlabeled__batch_size=3, calibration__interval=2)
    # D_L in rounds 1 and 3: 2 x 8; D_U in all 4: 4 x 3 x 8
    assert samples_of_rounds(method, 8, 4, has_labeled=True) == 16 + 96
    assert samples_of_rounds(method, 8, 4, has_labeled=False) == 96
    warming = method_of(labeled__batch_size=4, labeled__n=2, unlabeled__batch_size=3, calibration__warmup_rounds=3)
    assert samples_of_rounds(warming, 8, 4, has_labeled=True) == 4 * 8 + 24  # no D_U before the fourth


def test_a_method_that_draws_more_votes_costs_them() -> None:
    method = method_of("ttrl", unlabeled__batch_size=2, ttrl__n_votes=16, ttrl__n_train=8)
    assert samples_of_rounds(method, 8, 3, has_labeled=False) == 3 * 2 * 16


def test_equal_cost_spreads_the_rounds_over_d_u_and_adds_the_answers() -> None:
    assert equal_samples(12_800, 96, 8) == 133 + 8  # the miniature: 133.3
    assert equal_samples(0, 30, 16) == 16


def test_the_votes_of_a_curve() -> None:
    assert votes_at(141) == [8, 16, 32, 64, 128, 141]
    assert votes_at(16) == [8, 16]
    assert votes_at(8) == [8]
    assert votes_at(3) == [3]


# ---------------------------------------------------------------------- the comparison


def test_a_comparison_by_hand() -> None:
    before = [
        *group(0, ["1", "2", "2", None], [0.9, 0.1, 0.1, 0.9]),  # the majority is wrong, the weighted vote right
        *group(1, ["3", "3", "3", "1"], [0.5, 0.5, 0.5, 0.4]),  # both wrong
    ]
    after = [*group(0, ["1", "1"], [0.8, 0.6]), *group(1, ["1", "3"], [0.9, 0.1])]  # tied majorities: the smaller text
    found = compare(before, after, (4, 2))
    early, late = found["before"], found["after"]
    value = {name: of["value"] for name, of in early["measures"].items()}
    assert (found["questions"], found["judged"]) == (2, 2)
    assert (early["samples"], late["samples"]) == (4, 2)
    assert value["avg"] == 0.25
    assert (value["maj@4"], value["weighted_maj@4"], value["pass@4"]) == (0.0, 0.5, 1.0)
    assert value["share"] == (2 / 4 + 3 / 4) / 2
    assert value["weighted_share"] == pytest.approx((0.9 / 2.0 + 1.5 / 1.9) / 2)
    after_value = {name: of["value"] for name, of in late["measures"].items()}
    assert (after_value["avg"], after_value["maj@2"], after_value["weighted_maj@2"]) == (0.75, 1.0, 1.0)
    change = {name: of["value"] for name, of in found["difference"].items()}
    assert change == {"average": 0.5, "majority": 1.0, "weighted": 0.5}
    assert found["difference"]["weighted"]["questions"] == 2
    assert found["changed"] == {"majority": 2, "weighted": 1}


def test_fewer_samples_vote_among_all() -> None:
    found = compare(group(0, ["1"] * 9 + ["2"] * 8), group(0, ["1"] * 8), (17, 8))
    measures = {name: of["value"] for name, of in found["before"]["measures"].items()}
    assert {"maj@8", "maj@16", "maj@17", "pass@8"} <= measures.keys()
    assert measures["maj@17"] == measures["maj@16"] == 1.0  # a tie goes to "1"
    assert 0.5 < measures["maj@8"] < 1.0


def test_samples_that_failed_gave_no_answer() -> None:
    found = compare(group(0, ["1"], [1.0]), group(0, ["1", "1"], [1.0, 1.0]), (2, 2))
    measures = found["before"]["measures"]
    assert (measures["avg"]["value"], measures["share"]["value"]) == (0.5, 0.5)
    assert measures["maj@2"]["value"] == 1.0


def test_only_questions_that_both_were_asked_count() -> None:
    found = compare([*group(0, ["1"]), *group(1, ["1"])], [*group(1, ["1"]), *group(2, ["1"])], (1, 1))
    assert found["questions"] == 1


def test_spellings_of_one_answer_are_no_change() -> None:
    before, after = (
        [replace(one, style="math") for one in group(0, [text], right=None)] for text in ("\\frac{1}{2}", "1/2")
    )
    assert compare(before, after, (1, 1))["changed"] == {"majority": 0}


def test_without_ground_truths_the_votes_are_compared_and_nothing_is_said_of_right_and_wrong() -> None:
    found = compare(group(0, ["1", "1", "2"], right=None), group(0, ["2", "2"], right=None), (3, 2))
    assert (found["judged"], found["difference"], found["changed"]) == (0, {}, {"majority": 1})
    assert set(found["before"]["measures"]) == {"share"}
    lines = told({"equal": 9, **found})
    assert lines == [
        "1 questions; before, 3 samples of each (33% of the 9 that the whole run drew); after, 2 of each",
        "which answers are right is not known here",
        "majority vote: another answer to 1 of 1 questions; the winner's share is 66.7% before, 100.0% after",
    ]


def test_the_words_of_an_equal_cost() -> None:
    before = [*group(0, ["1", "2", "2"]), *group(1, ["1", "1", "1"])]
    found = {"equal": 3, **compare(before, [*group(0, ["1"]), *group(1, ["1"])], (3, 1))}
    assert told(found)[:3] == [
        "2 questions; before, 3 samples of each (as many as the whole run drew: equal cost); after, 1 of each",
        "one sample, on average: 66.7% right before, 100.0% after, +33.3 points [+0.0, +66.7]",
        "majority vote: 50.0% right before, 100.0% after, +50.0 points [+0.0, +100.0]",
    ]


# ---------------------------------------------------------------------- verdicts, files, command


def test_verdicts_for_the_report_are_the_monitors() -> None:
    monitor = Monitor([Answer("1", "exact"), None])
    texts = ["\\boxed{1}", "\\boxed{1}", "\\boxed{2}"]
    assert monitor.judge([0, 1, 0], texts) == [True, None, False]
    assert Monitor([]).judge([0, 1, 0], texts) == [None] * 3  # tempo.monitor_oracle=false


def test_samples_are_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    folder, samples = tmp_path / "new" / "samples", group(0, ["1", None])
    assert written_samples(folder) is None
    write_samples(folder, {"n": 2}, samples)
    assert written_samples(folder) == ({"n": 2}, samples)
    (folder / "settings.json").unlink()  # a write that was cut short
    assert written_samples(folder) is None


def test_the_files_of_a_run() -> None:
    assert before_file(Path("a/predictions.jsonl")) == Path("a/predictions_before.jsonl")
    assert comparison_file(Path("a/predictions.jsonl")) == Path("a/predictions_compared.json")


def test_a_file_that_is_no_comparison_is_named(tmp_path: Path) -> None:
    path = tmp_path / "predictions_compared.json"
    path.write_text('{"before": 1}')
    with pytest.raises(UserError, match=r"predictions_compared\.json: no comparison of a run's answers"):
        read_comparison(path)


def test_samples_of_other_questions_are_not_compared(tmp_path: Path) -> None:
    write_samples(tmp_path / "a", {"n": 1}, group(0, ["1"]))
    write_samples(tmp_path / "b", {"n": 1}, [replace(one, hash="other") for one in group(0, ["1"])])
    assert compare_folders(tmp_path / "a", tmp_path / "a")["judged"] == 0  # verdicts are not looked at
    with pytest.raises(UserError, match="samples of other questions"):
        compare_folders(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UserError, match="no samples in it"):
        compare_folders(tmp_path / "missing", tmp_path / "b")


def run_command(*arguments: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.setattr(sys, "argv", ["tempo-verl", *arguments])
    with pytest.raises(SystemExit):
        tempo_verl_command()
    return capsys.readouterr()


@pytest.mark.parametrize("inner", ["", "tempo"])
def test_answer_tells_of_a_finished_run(inner: str, tmp_path: Path, capsys, monkeypatch) -> None:
    predictions = tmp_path / inner / "predictions.jsonl"
    predictions.parent.mkdir(exist_ok=True)
    predictions.write_text(json.dumps({"answer": "1"}) + "\n")
    told_nothing = run_command("answer", str(tmp_path), capsys=capsys, monkeypatch=monkeypatch)
    assert "tempo.predictions.before" in told_nothing.err
    write_comparison(comparison_file(predictions), {"equal": 1, **compare(group(0, ["2"]), group(0, ["1"]), (1, 1))})
    out = run_command("answer", str(tmp_path), capsys=capsys, monkeypatch=monkeypatch).out
    assert "majority vote: 0.0% right before, 100.0% after, +100.0 points" in out
    assert f"predictions: {predictions}" in out


# ---------------------------------------------------------------------- the report


def test_the_report_has_votes_before_and_after(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    before = [*group(0, ["1"] * 4 + ["2"] * 6, [0.9] * 4 + [0.1] * 6), *group(1, ["1"] * 10, [0.5] * 10)]
    after = [*group(0, ["1"] * 8, [1.0] * 8), *group(1, ["1"] * 8, [1.0] * 8)]
    compared = {"equal": 40, **compare(before, after, (10, 8))}
    write_comparison(run / "tempo" / "predictions_compared.json", compared)
    build_report(run)
    table = (run / "table.md").read_text().partition("## Is training worth it against sampling more?")[2]
    heads, _, *rows = table.strip().splitlines()[:6]
    assert heads == (
        "| answers | samples | one sample | majority | weighted vote | any right | winner's votes | its weight |"
    )
    assert rows[1].startswith("| before | 10 | 70.0 % | 50.0 % | 100.0 % | 100.0 % | 80.0 % |")
    assert rows[2] == "| after | 8 | 100.0 % | 100.0 % | 100.0 % | 100.0 % | 100.0 % | 100.0 % |"
    assert rows[3].startswith(
        "| difference | 8 against 10 | +30.0 points [+0.0, +60.0] | +50.0 points [+0.0, +100.0] |"
    )
    assert "The whole run drew 40 samples for each question of D_U" in table
    assert "before it 10 were drawn, 25% of that." in table
    assert "Majority vote: another answer to 50.0 % of 2 questions." in table
    page = (run / "report.html").read_text()
    assert "Is training worth it against sampling more?" in page


def test_a_report_of_several_runs_has_their_means(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("one", "two")]
    for run, answers in zip(runs, (["2", "2"], ["1", "1"]), strict=True):
        compared = {"equal": 2, **compare(group(0, answers), group(0, ["1"]), (2, 1))}
        write_comparison(run / "tempo" / "predictions_compared.json", compared)
    results = build_comparison(runs, tmp_path / "report")
    (of,) = results.groups
    assert of.equal_cost.before["maj@2"].value == 0.5
    assert of.equal_cost.before["maj@2"].std == pytest.approx(0.5**0.5)
    assert "as many were drawn before it: equal cost." in (tmp_path / "report" / "table.md").read_text()
