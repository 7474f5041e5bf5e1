# SPDX-License-Identifier: Apache-2.0
"""The report of a made-up run folder: numbers worked out by hand, broken files, missing parts, a page on its own."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from rich.console import Console
from run_folders import UNLABELED, make_run, validation_rows, write_lines

from tempo_verl.algo.evaluation import majority_correct
from tempo_verl.algo.statistics import Estimate, bootstrap
from tempo_verl.evaluation.judged import Judged, write_judged
from tempo_verl.report import Results, build_comparison, build_report, print_table
from tempo_verl.report.compare import summarise
from tempo_verl.report.data import read_jsonl, read_run
from tempo_verl.report.methods import about
from tempo_verl.report.plots import FIGURES as DRAWN
from tempo_verl.report.results import Measured, Scores
from tempo_verl.report.style import png, with_symbols
from tempo_verl.report.words import NO_VALIDATION, duration, oracle_note, verdict_sentence
from tempo_verl.report.write import symbols

FIGURES = {"accuracy", "calibration", "coverage", "diversity", "reliability", "reward"}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "my-run")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """One report, for the tests that only look at it."""
    run = make_run(tmp_path_factory.mktemp("report") / "my-run")
    return run, build_report(run)


class Page(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


# ---------------------------------------------------------------------------------------------------------- numbers


def test_numbers_by_hand(built):
    _, results = built
    sets = results.groups[0].scores
    assert list(sets) == ["unlabeled", "heldout"]
    adapted = sets["unlabeled"]
    average = adapted["avg@8"]
    assert (average.rounds, average.questions) == ((0, 10), 2)
    assert average.start.value == pytest.approx((1 / 8 + 4 / 8) / 2)
    assert average.last.value == pytest.approx((3 / 8 + 8 / 8) / 2)
    # 1 - C(7, 4) / C(8, 4) and 1 - C(4, 4) / C(8, 4)
    assert adapted["pass@4"].start.value == pytest.approx(((1 - 35 / 70) + (1 - 1 / 70)) / 2)
    both = {name: (scores.start.value, scores.last.value) for name, scores in adapted.items() if scores.last}
    assert both["pass@8"] == (1.0, 1.0)
    assert both["maj@8"] == (0.5, 0.5)
    assert both["distinct answers"] == (2.0, 1.5)
    assert both["no answer found"] == (0.25, 0.0)
    # gains of 2/8 and 4/8: every resample of two questions has a mean in {2/8, 3/8, 4/8}
    change = average.change
    assert (change.value, change.low, change.high) == pytest.approx((0.375, 0.25, 0.5))
    assert average.verdict == "improved"
    assert sets["heldout"]["avg@8"].verdict == "no clear change"
    assert verdict_sentence(results).startswith("Unlabelled D_U: improved, avg@8 31.2 % → 68.8 % (+37.5 points")


def test_written_files_agree_with_results(built):
    run_dir, results = built
    saved = json.loads((run_dir / "results.json").read_text())
    (group,), (measured,) = saved["groups"], results.groups
    scores = group["scores"]["unlabeled"]
    assert scores["pass@4"]["start"]["value"] == measured.scores["unlabeled"]["pass@4"].start.value
    assert saved["verdict"] == verdict_sentence(results)
    assert group["rounds"] == {"first": [[1, 2, 3]], "last": [[6, 7, 8]]}
    assert sum(group["reliability"]["last"]["count"]) == 96
    table = (run_dir / "table.md").read_text()
    assert "| set | measure | before (round 0) | after (round 10) | change |" in table
    average = "31.2 % [12.5, 50.0] | 68.8 % [37.5, 100.0] | +37.5 points [+25.0, +50.0]"
    assert f"| Unlabelled D_U | avg@8 | {average} |" in table
    assert "| Unlabelled D_U | maj@8 | 50.0 % | 50.0 % | +0.0 points |" in table
    assert "| Unlabelled D_U | distinct answers | 2.00 | 1.50 | −0.50 |" in table
    assert "no answer of D_U reaches training" in table
    assert {path.stem for path in (run_dir / "plots").glob("*.png")} == FIGURES


def test_same_run_same_report(built, run_dir):
    build_report(run_dir)
    for name in ("report.html", "results.json", "table.md", "plots/reliability.png"):
        assert (run_dir / name).read_bytes() == (built[0] / name).read_bytes()


def test_print_table(built):
    _, results = built
    console = Console(width=120, file=io.StringIO())
    print_table(results, console)
    text = console.file.getvalue()
    assert "after (round 10)" in text and "Held out" in text and "no clear change" in text


def test_a_narrow_window_breaks_no_number(built):
    _, results = built
    print_table(results, console := Console(width=80, file=io.StringIO()))
    lines = console.file.getvalue().splitlines()
    heads = [[cell.strip() for cell in line.split("┃")[1:-1]] for line in lines if "┃" in line]
    assert [head[2:4] for head in heads] == [["before", "after"], ["(round 0)", "(round 10)"]]
    assert any("+37.5 points" in line for line in lines) and any("[+25.0, +50.0]" in line for line in lines)
    assert not any("…" in line for line in lines)


def test_majority_ties_and_empty_answers():
    assert majority_correct(["1", "2", None], [True, False, False])
    assert not majority_correct(["1", "2"], [False, True])
    assert not majority_correct([None, None], [False, False])


def test_bootstrap():
    assert bootstrap([0.5]) == Estimate(0.5)
    same = bootstrap([0.25] * 9)
    assert (same.low, same.high) == (0.25, 0.25)
    wide = bootstrap(np.random.default_rng(1).random(400))
    # 1.96 standard errors of a uniform variable's mean
    assert wide.high - wide.low == pytest.approx(2 * 1.96 / np.sqrt(12 * 400), rel=0.15)


@pytest.mark.parametrize(
    "low, high, verdict",
    [(0.01, 0.2, "improved"), (-0.2, -0.01, "got worse"), (-0.1, 0.1, "no clear change"), (None, None, None)],
)
def test_verdict(low, high, verdict):
    assert Scores((0, 1), None, None, Measured(0.0, low, high), 2, None).verdict == verdict


def test_duration_and_symbols():
    texts = [duration(seconds) for seconds in (0.349, 12.34, 59.97, 245, 7620)]
    assert texts == ["0.35 s", "12.3 s", "1 min 00 s", "4 min 05 s", "2 h 07 min"]
    assert symbols("D_U < D_L") == "<i>D</i><sub>U</sub> &lt; <i>D</i><sub>L</sub>"


# ---------------------------------------------------------------------------------------------------------- reading


def test_cut_off_last_line_is_ignored(run_dir):
    for path in (run_dir / "tempo" / "metrics.jsonl", run_dir / "tempo" / "validation" / "10.jsonl"):
        path.write_bytes(path.read_bytes() + '{"step": 9, "data": {"é'.encode()[:-1])
    results = summarise([read_run(run_dir)])
    assert "tempo/metrics.jsonl ends in a cut-off line, which is ignored." in results.missing
    assert results.groups[0].scores["unlabeled"]["avg@8"].last.value == pytest.approx(11 / 16)


@pytest.mark.parametrize("broken", ["{nonsense", "[1, 2]", '{"step": "3", "data": {}}', '{"step": 3}'])
def test_malformed_line_names_file_and_line(run_dir, broken):
    path = run_dir / "tempo" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], broken, *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match=r"tempo/metrics\.jsonl, line 3: "):
        build_report(run_dir)


def test_malformed_line_with_its_line_feed_is_no_cut_off_line(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(ValueError, match="line 2"):
        list(read_jsonl(tmp_path / "x.jsonl", []))


def test_text_with_other_line_separators(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": "\u2028\u0085"}\n', encoding="utf-8")
    assert [row for _, row in read_jsonl(tmp_path / "x.jsonl", [])] == [{"a": "\u2028\u0085"}]


def test_parts_of_a_resumed_run(run_dir):
    folder = run_dir / "tempo"
    write_lines(folder / "metrics.2.jsonl", [{"step": 1, "data": {"a": 2, "b": 2}}])
    write_lines(folder / "metrics.10.jsonl", [{"step": 1, "data": {"a": 10}}, {"step": 1, "data": {"c": None, "d": 1}}])
    write_lines(folder / "metrics.jsonl", [{"step": 1, "data": {"e": 0}}])
    assert read_run(run_dir).metrics["tempo"][1] == {"a": 10.0, "b": 2.0, "d": 1.0, "e": 0.0}


def test_no_folder_and_no_metrics(tmp_path):
    with pytest.raises(ValueError, match="no run folder"):
        build_report(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no metrics"):
        build_report(tmp_path)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("run.json", "{", "run.json: not valid JSON"),
        ("sets.json", "[]", "expected a JSON object"),
        ("sets.json", '{"a": "x"}', "must be a list"),
        ("sets.json", '{"a": ["x"], "b": ["x "]}', "in both 'a' and 'b'"),
        ("config.yaml", "a: [", "not valid YAML"),
        ("tempo/validation/0.jsonl", '{"input": "x"}\n', "line 1: a validation row needs"),
        ("tempo/rounds/round_000002.npz", "not a zip", "round_000002.npz: not a readable"),
    ],
)
def test_broken_files(run_dir, name, text, message):
    (run_dir / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        build_report(run_dir)


def test_rounds_without_labels_and_a_cut_off_round(run_dir):
    rounds = run_dir / "tempo" / "rounds"
    for step in (2, 4, 6):
        np.savez(rounds / f"round_{step:06d}.npz", unlabeled_reward=np.zeros(3))
    (rounds / "round_000008.npz").write_bytes((rounds / "round_000008.npz").read_bytes()[:200])
    run = read_run(run_dir)
    assert {which: pool.rounds for which, pool in run.pools.items()} == {"first": [1, 3], "last": [5, 7]}
    assert "tempo/rounds/round_000008.npz is cut off and ignored." in run.notes


# ---------------------------------------------------------------------------------------------------- missing parts


@pytest.mark.parametrize(
    "part, lost, note",
    [
        ("stage0", set(), "stage0/metrics.jsonl is missing"),
        ("tempo/metrics.jsonl", {"calibration", "diversity", "reward"}, "tempo/metrics.jsonl is missing"),
        ("tempo/validation", {"coverage"}, "no intervals over questions"),
        ("tempo/rounds", {"reliability"}, "no reliability diagram"),
    ],
)
def test_missing_part_is_left_out_and_said(run_dir, part, lost, note):
    (run_dir / "plots").mkdir()
    (run_dir / "plots" / "reliability.png").write_bytes(b"of an earlier report")
    path = run_dir / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    results = build_report(run_dir)
    assert {Path(plot).stem for plot in results.plots} == FIGURES - lost
    assert {path.stem for path in (run_dir / "plots").glob("*.png")} == FIGURES - lost
    assert any(note in line for line in results.missing)
    assert note in (run_dir / "report.html").read_text()


def test_only_a_few_metrics(tmp_path):
    """The least a run can leave behind; validation is then drawn from verl's own means."""
    write_lines(tmp_path / "tempo" / "metrics.jsonl", [{"step": 1, "data": {"val-core/sums/acc/mean@8": 0.5}}])
    results = build_report(tmp_path)
    assert results.plots == ["plots/accuracy.png"]
    assert results.groups[0].scores["sums"]["avg@8"].start == Measured(0.5)
    assert verdict_sentence(results).startswith("Only one round was validated")
    text = (tmp_path / "report.html").read_text()
    for note in (
        "run.json is missing",
        "config.yaml is missing",
        "Figure left out: calibration",
    ):
        assert note in text


def test_no_validation_names_the_remedy(tmp_path):
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "data": {"tempo/labeled/accuracy": 0.5}}])
    assert verdict_sentence(build_report(tmp_path)) == NO_VALIDATION
    assert "trainer.val_before_train=true" in (tmp_path / "report.html").read_text()


def test_one_validation_step(run_dir):
    for step in (8, 10):
        (run_dir / "tempo" / "validation" / f"{step}.jsonl").unlink()
    results = build_report(run_dir)
    assert results.groups[0].scores["unlabeled"]["avg@8"].last is None
    assert "Only one round was validated" in (run_dir / "report.html").read_text()


def test_rounds_whose_samples_are_gone_are_taken_from_the_log(run_dir):
    (run_dir / "tempo" / "validation" / "10.jsonl").unlink()
    with (run_dir / "tempo" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 10, "data": {"val-core/sums/heldout/acc/mean@8": 0.75}}) + "\n")
    (group,) = summarise([read_run(run_dir)]).groups
    assert list(group.scores) == ["unlabeled", "heldout"]
    heldout = group.scores["heldout"]["avg@8"]
    assert (heldout.rounds, heldout.last, heldout.change) == ((0, 10), Measured(0.75), Measured(0.25))
    assert heldout.verdict is None


def test_samples_that_failed_count_as_wrong(run_dir):
    """As in the run's own log: a question with one sample missing has 7 of 8, not 7 of 7."""
    path = run_dir / "tempo" / "validation" / "10.jsonl"
    rows = [row for row in validation_rows(10, 1) if not row["uid"].startswith("step10_prompt1_0_")]
    write_lines(path, rows)
    scores = summarise([read_run(run_dir)]).groups[0].scores["unlabeled"]
    assert scores["avg@8"].last.value == pytest.approx((3 / 8 + 7 / 8) / 2)
    assert scores["no answer found"].last.value == pytest.approx(1 / 16)


def test_two_samples_have_a_pass_at_two(run_dir):
    for step, which in ((0, 0), (8, 0), (10, 1)):
        rows = [row for row in validation_rows(step, which) if row["uid"].rsplit("_", 2)[1] in "01"]
        write_lines(run_dir / "tempo" / "validation" / f"{step}.jsonl", rows)
    results = build_report(run_dir)
    assert results.measures["heldout"] == ["avg@2", "pass@2", "maj@2", "distinct answers", "no answer found"]
    # the first two samples: "1" and "3", then "1" twice; "2" and "1", then "1" twice
    assert results.groups[0].scores["unlabeled"]["pass@2"].start.value == 1.0
    assert "| Unlabelled D_U | pass@2 | 100.0 % | 100.0 % | +0.0 points |" in (run_dir / "table.md").read_text()


def test_the_order_of_the_samples_has_no_say(run_dir, tmp_path):
    other = make_run(tmp_path / "other" / "my-run")
    for path in (other / "tempo" / "validation").glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        write_lines(path, sorted(rows, key=lambda row: row["input"], reverse=True))
    one, two = (summarise([read_run(run)]).groups[0].scores for run in (run_dir, other))
    for name in ("unlabeled", "heldout"):
        assert one[name]["avg@8"] == two[name]["avg@8"]


def test_dump_without_answers_and_sets(run_dir):
    """No ``pred``: what needs answers is absent. No ``sets.json``: ``data_source`` names the set."""
    (run_dir / "sets.json").unlink()
    for step, which in ((0, 0), (8, 0), (10, 1)):
        rows = [row | {"data_source": "a|b<i>"} for row in validation_rows(step, which)]
        write_lines(
            run_dir / "tempo" / "validation" / f"{step}.jsonl",
            [{k: row[k] for k in row if k != "pred"} for row in rows],
        )
    results = build_report(run_dir)
    assert list(results.measures) == ["a|b<i>"]
    assert results.groups[0].scores["a|b<i>"]["avg@8"].questions == 4
    scores = json.loads((run_dir / "results.json").read_text())["groups"][0]["scores"]
    assert list(scores["a|b<i>"]) == ["avg@8", "pass@4", "pass@8"]
    table = (run_dir / "table.md").read_text()
    assert "| a\\|b\\<i> | avg@8 | " in table and "maj@8" not in table
    assert "a|b&lt;i&gt;" in (run_dir / "report.html").read_text()


def test_questions_in_no_set(run_dir):
    (run_dir / "sets.json").write_text(json.dumps({"unlabeled": list(UNLABELED)}))
    results = summarise([read_run(run_dir)])
    assert list(results.measures) == ["unlabeled", "other"]
    assert any("2 questions are in no set" in note for note in results.missing)


# --------------------------------------------------------------------------------------------------------- the page


def test_page_is_self_contained(built):
    run_dir, results = built
    text = (run_dir / "report.html").read_text()
    tags = Page(text).tags
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(images) == len(results.plots) == len(FIGURES)
    assert all(image["alt"] for image in images)
    for tag, attributes in tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "srcset", "href"):
            if name in attributes:
                kind, data = attributes[name].split(",")
                assert kind == "data:image/png;base64"
                assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
    assert not re.search(r"https?:|url\(|@import", text)
    light = {base64.b64decode(image["src"].split(",")[1]) for image in images}
    assert light == {path.read_bytes() for path in (run_dir / "plots").glob("*.png")}


def test_symbols_are_set_alike_everywhere(built, tmp_path):
    """No raw D_U in the text of the page, nor in a figure of one run or of two."""
    run_dir, _ = built
    other = make_run(tmp_path / "other")
    (other / "config.yaml").write_text("tempo: {method: oracle}")
    for run in (run_dir, other):
        write_judged(run / "tempo" / "predictions_judged.json", Judged(True, [0.8, 0.3], [True, False]))
    build_comparison([run_dir, other], tmp_path / "out")
    for folder in (run_dir, tmp_path / "out"):
        page = re.sub(r"<pre.*?</pre>|<style>.*?</style>", "", (folder / "report.html").read_text(), flags=re.DOTALL)
        assert not re.search(r"\bD_[LU]", re.sub(r"<[^>]*>", "", page))
    for runs in ([run_dir], [run_dir, other]):
        results = summarise([read_run(run) for run in runs])
        for name, (function, _, _) in DRAWN.items():
            figures = []

            def kept(data, function=function, figures=figures):
                figures.append(function(data))
                return figures[-1]

            assert png(kept, results, results.stamp)
            texts = [text.get_text() for text in figures[0].findobj(Text)]
            assert any("$D_U$" in text or "$D_L$" in text for text in texts) or name in ("diversity", "reliability")
            assert not any(re.search(r"(?<!\$)\bD_[LU]", text) for text in texts)
    assert with_symbols("5 $ on D_U") == r"5 \$ on $D_U$"


def test_page_says_what_it_must(built):
    run_dir, _ = built
    text = (run_dir / "report.html").read_text()
    for words in ("Before and after", "What this run is", "Where the time went", "4 min 10 s", "whole round", "0.9.1"):
        assert words in text
    assert "tempo-verl train &#39;a b&#39;" in text
    assert "&lt;script&gt;" in text and "<script" not in text
    assert "no answer of <i>D</i><sub>U</sub> reaches training" in text
    assert "slowest" not in text


def test_only_known_methods_get_the_promise(run_dir):
    def method(config: str, info: dict) -> str | None:
        (run_dir / "config.yaml").write_text(config)
        (run_dir / "run.json").write_text(json.dumps(info))
        return read_run(run_dir).method

    assert method("tempo: {method: ttrl}", {"method": "ppo"}) == "ttrl"
    assert method("model: x", {"method": "ppo"}) == "ppo"
    assert method("", {}) is None
    for config, promised in (("ttrl", True), ("grpo", True), ("a.b:Mine", False), ("oracle", False)):
        (run_dir / "config.yaml").write_text(f"tempo: {{method: '{config}'}}")
        assert ("reaches training" in oracle_note(summarise([read_run(run_dir)]))) == promised
    (run_dir / "config.yaml").unlink()
    assert "reaches training" not in oracle_note(summarise([read_run(run_dir)]))


def test_what_a_method_learns_on_is_not_made_up():
    for name in ("ppo", "grpo"):
        assert about(name).learns_on == "labeled"
        assert "labelled questions D_L" in about(name).text and "unlabelled" not in about(name).text
    assert about("tempo").learns_on == "unlabeled" and about("oracle").uses_answers_of_d_u
    for name in ("my.module:Class", None):
        assert (about(name).learns_on, about(name).uses_answers_of_d_u) == (None, None)
        assert "labelled" not in about(name).text


@pytest.mark.parametrize("method", ["ppo", "grpo", "my.module:Class"])
def test_a_run_on_labelled_questions_is_no_test_time_training(run_dir, method):
    (run_dir / "config.yaml").write_text(f"tempo: {{method: '{method}'}}")
    results = build_report(run_dir)
    print_table(results, console := Console(width=120, file=io.StringIO()))
    for text in (*((run_dir / name).read_text() for name in ("report.html", "table.md")), console.file.getvalue()):
        assert "adapted on" not in text and "est-time training" not in text


def test_a_report_of_the_oracle_is_stamped_everywhere(run_dir, capsys):
    plain = build_report(run_dir)
    pictures = {path.name: path.read_bytes() for path in run_dir.rglob("*.png")}
    print_table(plain, Console())
    shown = [capsys.readouterr().out, *((run_dir / name).read_text() for name in ("report.html", "table.md"))]
    assert not any("ORACLE" in text for text in shown)

    (run_dir / "config.yaml").write_text("tempo: {method: oracle}")
    print_table(build_report(run_dir), Console())
    shown = [capsys.readouterr().out, *((run_dir / name).read_text() for name in ("report.html", "table.md"))]
    assert ["ORACLE: trained on the answers of" in " ".join(text.split()) for text in shown] == [True] * 3
    assert pictures
    assert [path.name for path in run_dir.rglob("*.png") if path.read_bytes() == pictures[path.name]] == []
