# SPDX-License-Identifier: Apache-2.0
"""The report over several made-up runs: groups, means and bands worked out by hand, what is refused, what is said."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console
from run_folders import make_run, make_seed, write_lines
from typer.testing import CliRunner

from tempo_verl.cli.main import app
from tempo_verl.errors import UserError
from tempo_verl.report import Results, build_comparison, build_report, print_table
from tempo_verl.report.alarms import find_alarms, rounds_text
from tempo_verl.report.compare import over_runs, read_runs, summarise
from tempo_verl.report.data import read_run
from tempo_verl.report.groups import comparable, config_diff, group_runs, same_seeds, seeds
from tempo_verl.report.plots import _reliability_title
from tempo_verl.report.results import Measured

# accuracy on the held-out set by round, of three seeds
HELDOUT = ({0: 0.2, 3: 0.4}, {0: 0.3, 3: 0.6}, {0: 0.1, 2: 0.7, 3: 0.5})


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three seeds of one configuration, then two seeds of another."""
    same = [make_seed(tmp_path / f"run{seed}", seed, accuracy) for seed, accuracy in enumerate(HELDOUT, start=1)]
    faster = {"calibration": {"lr": 0.5}}
    others = [
        make_seed(tmp_path / f"fast{seed}", seed, {0: 0.2, 3: last}, **faster) for seed, last in ((1, 0.5), (3, 0.4))
    ]
    return [*same, *others]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """One comparison, for the tests that only look at it."""
    folder = tmp_path_factory.mktemp("comparison")
    runs = [make_seed(folder / f"run{seed}", seed, of, alarms=(2, 3)) for seed, of in enumerate(HELDOUT, start=1)]
    runs.append(make_seed(folder / "a|b<i>", 1, {0: 0.2, 3: 0.5}, calibration={"lr": 0.5}))
    return folder / "report", build_comparison(runs, folder / "report")


def approx(mean: float, std: float | None, runs: int) -> Measured:
    return Measured(pytest.approx(mean), std=None if std is None else pytest.approx(std), runs=runs)


# ---------------------------------------------------------------------------------------------------------- numbers


def test_means_and_bands_by_hand(runs):
    group, _ = summarise(read_runs(runs)).groups
    heldout = group.scores["heldout"]["avg@8"]
    assert heldout.start == approx(0.2, 0.1, 3)
    assert heldout.last == approx(0.5, 0.1, 3)
    assert heldout.change == approx(0.3, 0.1, 3)  # 0.2, 0.3, 0.4
    assert group.scores["unlabeled"]["avg@8"].last == approx(0.6, 0.1, 3)
    assert group.calibration["first"]["auroc"] == group.calibration["last"]["auroc"] == approx(0.7, 0.1, 3)
    assert group.seconds["gen"].median == approx(4, 2, 3)
    assert group.seconds["step"].total == approx(30, 0, 3)
    assert group.phases == {"training": approx(60, 0, 3)}
    curve = group.curves["heldout/avg@8"]
    assert curve.steps == [0, 3]  # the rounds that all three have
    assert curve.values == [approx(0.2, 0.1, 3), approx(0.5, 0.1, 3)]
    assert curve.runs[2] == {0: 0.1, 2: 0.7, 3: 0.5}


def test_the_best_round_is_chosen_by_the_held_out_set(runs):
    group, _ = summarise(read_runs(runs)).groups
    assert [member.best_round for member in group.members] == [3, 3, 2]
    assert group.scores["heldout"]["avg@8"].best.value == pytest.approx((0.4 + 0.6 + 0.7) / 3)
    assert group.scores["unlabeled"]["avg@8"].best.value == pytest.approx((0.5 + 0.7 + 0.8) / 3)


def test_pairs_have_the_same_seeds(runs):
    results = summarise(read_runs(runs))
    assert [(pair.set, pair.measure) for pair in results.paired] == [("unlabeled", "avg@8"), ("heldout", "avg@8")]
    for pair in results.paired:  # seed 1: 0.5 - 0.4; seed 3: 0.4 - 0.5
        assert (pair.difference, pair.rounds) == (approx(0, np.sqrt(0.02), 2), [3])


def test_a_method_without_one_of_the_streams_is_paired_by_the_seeds_it_has(tmp_path):
    def without_labeled(seed: int, name: str) -> Path:
        return make_seed(tmp_path / name, seed, {0: 0.2, 3: 0.1 * seed}, labeled={"seed": 1, "files": None})

    full = [make_seed(tmp_path / f"run{seed}", seed, {0: 0.2, 3: 0.5}) for seed in (2, 3)]
    results = summarise(read_runs([*full, without_labeled(2, "a"), without_labeled(3, "b")]))
    heldout = [pair.difference for pair in results.paired if pair.set == "heldout"]
    assert heldout == [approx(-0.25, np.sqrt(0.005), 2)]
    doubtful = summarise(read_runs([*full, without_labeled(2, "c"), without_labeled(2, "d")]))
    assert not doubtful.paired


def test_runs_of_unequal_length_are_compared_where_both_were_validated(tmp_path):
    long = make_seed(tmp_path / "long", 1, {0: 0.2, 2: 0.3, 3: 0.9})
    short = make_seed(tmp_path / "short", 1, {0: 0.2, 2: 0.4}, method="ttrl")
    results = build_comparison([long, short], tmp_path / "out")
    heldout = [pair for pair in results.paired if pair.set == "heldout"]
    assert [(pair.rounds, pair.difference) for pair in heldout] == [([2], approx(0.1, None, 1))]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| ttrl | avg@8, Held out | 2 | +10.0 points | 1 |" in table
    # what stands beside each other says which round it is of
    assert "| measure | group | before (round 0) | after | change |" in table
    assert "| 20.0 → 90.0 % (round 3) |" in table and "| 20.0 → 40.0 % (round 2) |" in table
    assert "| tempo | 20.0 % | 90.0 % (round 3) |" in table and "| ttrl | 20.0 % | 40.0 % (round 2) |" in table


def test_runs_of_one_group_are_averaged_in_the_last_round_that_all_have(tmp_path):
    runs = [make_seed(tmp_path / "a", 1, {0: 0.2, 2: 0.4, 3: 0.9}), make_seed(tmp_path / "b", 2, {0: 0.2, 2: 0.6})]
    (group,) = summarise(read_runs(runs)).groups
    scores = group.scores["heldout"]["avg@8"]
    assert (scores.rounds, scores.last) == ((0, 2), approx(0.5, np.sqrt(0.02), 2))
    assert scores.change == approx(0.3, np.sqrt(0.02), 2)


def test_runs_without_a_second_round_in_common_are_not_averaged(tmp_path):
    runs = [make_seed(tmp_path / "a", 1, {0: 0.2, 2: 0.4}), make_seed(tmp_path / "b", 2, {0: 0.2, 3: 0.6})]
    results = build_comparison(runs, tmp_path / "out")
    scores = results.groups[0].scores["heldout"]["avg@8"]
    assert (scores.rounds, scores.last, scores.change) == ((0, None), None, None)
    assert "tempo: Held out has no second round that was validated in all its runs." in results.notes
    assert "| 20.0 ± 0.0 % |" in (tmp_path / "out" / "table.md").read_text()


def test_the_critic_is_measured_in_one_way(tmp_path):
    """The mean over the rounds: in the summary, the table, and above the diagrams, of one run and of several."""
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    (runs[1] / "config.yaml").write_text("tempo: {method: ttrl}")
    expected = Measured(pytest.approx(np.mean([0.79, 0.78, 0.77])))
    results = build_comparison(runs, tmp_path / "out")
    assert [group.calibration["first"]["auroc"] for group in results.groups] == [expected, expected]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| 0.78 → 0.73 |" in table and "| tempo | first (1 to 3) | 0.780 |" in table
    (group,) = build_report(runs[0]).groups
    assert group.calibration["first"]["auroc"] == expected
    assert _reliability_title(group, "first").startswith("first rounds (1 to 3)\nAUROC 0.78\n")
    assert "| first (1 to 3) | 0.780 |" in (runs[0] / "table.md").read_text()


def test_single_runs_have_the_intervals_of_their_own_reports(tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    (runs[1] / "config.yaml").write_text("tempo: {method: ttrl}")
    results = summarise(read_runs(runs))
    (alone,) = summarise(read_runs(runs[:1])).groups
    assert [group.scores["heldout"] for group in results.groups] == [alone.scores["heldout"]] * 2
    # and against each other they are paired by question: here they are the same
    assert [pair.difference for pair in results.paired] == [Measured(0.0, 0.0, 0.0)] * 2


def test_one_value_has_no_deviation():
    assert over_runs([0.25]) == Measured(0.25, std=None, runs=1)


def test_one_validation_has_no_last(tmp_path):
    run = make_seed(tmp_path / "run", 1, {0: 0.2})
    (group,) = summarise(read_runs([run])).groups
    scores = group.scores["heldout"]["avg@8"]
    assert (scores.start.value, scores.last, scores.change) == (0.2, None, None)


def test_measures_that_are_shown(runs):
    results = summarise(read_runs(runs))
    assert results.measures["heldout"] == ["avg@8", "pass@4", "pass@8", "maj@8", "distinct answers"]
    assert list(results.measures) == ["unlabeled", "heldout"]


# ----------------------------------------------------------------------------------------------------------- groups


def test_seeds_and_places_do_not_split_a_group():
    one, other = (
        {
            "tempo.labeled.seed": seed,
            "critic.data_loader_seed": seed,
            "tempo.labeled.files": [f"/runs/{seed}/data/labeled.parquet"],
            "critic.model.path": f"/runs/{seed}/stage0/checkpoints/global_step_25/critic/huggingface",
            "trainer.default_local_dir": f"runs/quick/{seed}/checkpoints",
            "trainer.experiment_name": f"seed{seed}",
            "tempo.rounds": 20,
        }
        for seed in (1, 2)
    )
    assert comparable(one) == comparable(other)
    assert seeds(one) != seeds(other)
    assert same_seeds(one, one) and not same_seeds(one, other)
    for key, value in (
        ("tempo.rounds", 21),
        ("tempo.labeled.files", ["/runs/1/data/fewer.parquet"]),
        ("critic.model.path", "/runs/1/stage0/checkpoints/global_step_50/critic/huggingface"),
        ("critic.model.path", "org/model"),
    ):
        assert comparable(one) != comparable(one | {key: value})


def test_groups_are_named_by_what_tells_them_apart(tmp_path):
    def run(name: str, **config) -> Path:
        return make_seed(tmp_path / name, 1, HELDOUT[0], **config)

    folders = [
        run("a", rounds=3, calibration={"lr": 0.1, "epochs": 1}),
        run("b", rounds=5, calibration={"lr": 0.1, "epochs": 1}),
        run("c", rounds=5, calibration={"lr": 0.2, "epochs": 2}),
        run("d", method="ttrl", rounds=None),
    ]
    groups = group_runs(read_runs(folders), [])
    assert [group.name for group in groups] == [
        "tempo, calibration.epochs=1, tempo.rounds=3",
        "tempo, calibration.epochs=1, tempo.rounds=5",
        "tempo, calibration.epochs=2, tempo.rounds=5",
        "ttrl",
    ]
    differences = {", ".join(difference.keys): difference.values for difference in config_diff(groups)}
    assert differences == {
        "tempo.calibration.epochs": ["1", "1", "2", None],
        "tempo.calibration.lr": ["0.1", "0.1", "0.2", None],
        "tempo.method": ["tempo", "tempo", "tempo", "ttrl"],
        "tempo.rounds, trainer.total_training_steps": ["3", "5", "5", "null"],
    }


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [make_seed(tmp_path / parent / "run", seed, HELDOUT[0]) for seed, parent in enumerate("ab", start=1)]
    assert [run.name for run in read_runs(folders)] == ["a/run", "b/run"]


def test_a_run_of_two_stages_beside_a_single_one(tmp_path):
    two = make_run(tmp_path / "two")
    write_lines(two / "tempo" / "metrics.jsonl", [{"step": 0, "data": {"val-core/sums/heldout/acc/mean@8": 0.4}}])
    results = summarise(read_runs([two, make_seed(tmp_path / "one", 1, HELDOUT[0])]))
    assert [group.scores["heldout"]["avg@8"].start.value for group in results.groups] == [0.5, 0.2]


# ---------------------------------------------------------------------------------------------------------- writing


def test_written_files_agree_with_results(built):
    out, results = built
    saved = json.loads((out / "results.json").read_text())
    assert saved["groups"][0]["scores"]["heldout"]["avg@8"]["last"]["value"] == pytest.approx(0.5)
    assert saved["groups"][0]["curves"]["tempo/labeled/auroc"]["values"][0]["std"] == pytest.approx(0.1)
    table = (out / "table.md").read_text()
    row = "| 20.0 ± 10.0 % | 50.0 ± 10.0 % | +30.0 ± 10.0 points | 56.7 ± 15.3 % |"
    assert f"| Held out | avg@8 | tempo, calibration.lr=– {row}" in table
    assert "| tempo, calibration.lr=0.5 | avg@8, Held out | 3 | +10.0 points | 1 |" in table
    assert "| tempo.calibration.lr | – | 0.5 |" in table
    assert "| 3 of 3 runs |" in table and "rounds 2–3 (tempo/labeled/auroc 0.6 when first raised)" in table
    assert "a\\|b\\<i>" in table
    assert {path.stem for path in (out / "plots").glob("*.png")} == {Path(plot).stem for plot in results.plots}
    assert {"accuracy", "calibration", "coverage", "diversity", "reliability"} == {
        Path(plot).stem for plot in results.plots
    }


def test_page_is_self_contained(built):
    out, results = built
    text = (out / "report.html").read_text()
    assert text.count("<img ") == len(results.plots) == 5
    assert not re.search(r"https?:|url\(|@import|<script|<link", text)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src(?:set)?="([^"]*)', text))
    assert "a|b&lt;i&gt;" in text and "no answer of <i>D</i><sub>U</sub> reaches training" in text


def test_same_runs_same_report(built):
    out, _ = built
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    build_comparison([*(out.parent / f"run{seed}" for seed in (1, 2, 3)), out.parent / "a|b<i>"], out)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_comparison_with_the_oracle_is_stamped_everywhere(runs, tmp_path, capsys):
    build_comparison(runs, tmp_path / "out")
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*.png")}
    shown = [(tmp_path / "out" / name).read_text() for name in ("report.html", "table.md")]
    assert not any("ORACLE" in text for text in shown)

    settings = yaml.safe_load((runs[4] / "config.yaml").read_text())
    settings["tempo"]["method"] = "oracle"
    (runs[4] / "config.yaml").write_text(yaml.safe_dump(settings))
    results = build_comparison(runs, tmp_path / "out")
    print_table(results, Console(width=200))
    shown = [capsys.readouterr().out, *((tmp_path / "out" / name).read_text() for name in ("report.html", "table.md"))]
    assert [group.name for group in results.groups][2] == "oracle [ORACLE]"
    for text in shown:
        assert "oracle [ORACLE]" in text and "ORACLE: trained on the answers of" in text
    assert "reaches training" not in shown[1]
    assert [name for name, old in pictures.items() if (tmp_path / "out" / "plots" / name).read_bytes() == old] == []


def test_command(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["report", *map(str, runs)])
    assert done.exit_code == 0 and "5 runs in 2 groups" in done.output
    assert (tmp_path / "report" / "report.html").is_file()
    done = CliRunner().invoke(app, ["report", str(runs[0]), "--out", "single"])
    assert done.exit_code == 0 and (tmp_path / "single" / "report.html").is_file()
    assert not (runs[0] / "report.html").exists()


# ----------------------------------------------------------------------------------------------- refused, or noted


def test_what_cannot_be_compared(runs, tmp_path):
    def refused(folders: list[Path], message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            build_comparison(folders, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    refused([runs[0], tmp_path / "nowhere"], "no run folder at .*nowhere")
    (tmp_path / "empty").mkdir()
    refused([runs[0], tmp_path / "empty"], "no metrics in .*empty")
    refused([runs[0], runs[0]], "run1 is given twice")
    stage0 = make_run(tmp_path / "early")
    (stage0 / "tempo" / "metrics.jsonl").unlink()
    refused([runs[0], stage0], "early has no metrics of its training")
    write_lines(tmp_path / "math" / "metrics.jsonl", [{"step": 0, "data": {"val-core/math/acc/mean@8": 0.5}}])
    refused([runs[0], tmp_path / "math"], "math was validated on math, .*run1 on sums/heldout, sums/unlabeled")


def test_where_no_report_is_written(runs, tmp_path):
    kept = sorted(path for path in runs[1].rglob("*") if path.is_file())
    with pytest.raises(UserError, match="is a run folder"):
        build_comparison(runs, runs[1])
    assert sorted(path for path in runs[1].rglob("*") if path.is_file()) == kept
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "results.json").write_text("precious")
    with pytest.raises(UserError, match="holds files and no report"):
        build_comparison(runs, tmp_path / "mine")
    assert (tmp_path / "mine" / "results.json").read_text() == "precious"
    with pytest.raises(UserError, match="is a file"):
        build_comparison(runs, tmp_path / "mine" / "results.json")
    with pytest.raises(UserError, match="is a run folder"):
        build_report(runs[0], runs[1])


def test_what_a_reader_must_know(runs, tmp_path):
    (runs[4] / "config.yaml").unlink()
    (runs[1] / "run.json").write_text('{"versions": {"verl": "0.9.2"}}')
    metrics = runs[2] / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:3]) + '{"step": 3, "da')
    repeated = make_seed(tmp_path / "again", 1, HELDOUT[0])
    results = summarise(read_runs([*runs, repeated]))
    notes = "\n".join([*results.notes, *results.missing])
    for note in (
        "fast3 has no config.yaml: it is a group of its own",
        "its runs end at different rounds (2, 3)",
        "some of its runs have the same seeds",
        "different versions of verl 0.9.1 / 0.9.2",
        "run3: metrics.jsonl ends in a cut-off line",
    ):
        assert note in notes
    assert "sets.json" not in notes
    assert [len(group.members) for group in results.groups] == [4, 1, 1]


def test_without_a_held_out_set_no_round_is_best(tmp_path):
    for name in ("run", "again"):
        write_lines(tmp_path / name / "metrics.jsonl", [{"step": 0, "data": {"val-core/aime/acc/mean@4": 0.5}}])
    results = build_comparison([tmp_path / "run", tmp_path / "again"], tmp_path / "out")
    assert results.plots == ["plots/accuracy.png"]
    assert results.groups[0].members[0].best_round is None
    assert results.groups[0].scores["aime"]["avg@4"].best is None
    assert "No validation set is called heldout: no best round is chosen." in results.notes


# ----------------------------------------------------------------------------------------------------------- alarms


def test_alarms_of_a_run(tmp_path):
    rows = [
        {"tempo/labeled/auroc": 0.7, "tempo/alarm/auroc": 0.0, "tempo/gate_open": 1.0},
        {"tempo/labeled/auroc": 0.5, "tempo/alarm/auroc": 0.0, "tempo/gate_open": 1.0},
        {"tempo/labeled/auroc": 0.4, "tempo/alarm/auroc": 1.0, "tempo/gate_open": 0.0},
        {"tempo/labeled/auroc": 0.9, "tempo/alarm/auroc": 0.0, "tempo/gate_open": 1.0},
        {"tempo/labeled/auroc": 0.1, "tempo/alarm/auroc": 1.0, "tempo/alarm/gap": 0.0, "tempo/gate_open": 0.0},
    ]
    write_lines(tmp_path / "metrics.jsonl", [{"step": n, "data": row} for n, row in enumerate(rows, start=1)])
    (tmp_path / "config.yaml").write_text("tempo: {method: tempo, alarms: {window: 2}}")
    alarms = find_alarms(read_run(tmp_path))
    (alarm,) = alarms.raised
    assert (alarm.name, alarm.rounds, alarm.value) == ("auroc", [3, 5], pytest.approx(0.45))  # of rounds 2 and 3
    assert (alarms.watched, alarms.closed) == (["auroc", "gap"], [3, 5])
    build_report(tmp_path)
    for name in ("report.html", "table.md"):
        text = (tmp_path / name).read_text()
        assert (
            "the critic hardly tells right from wrong, rounds 3, 5 (tempo/labeled/auroc 0.45 when first raised)" in text
        )
        assert "closed after rounds 3, 5" in text


@pytest.mark.parametrize(
    "data, sentence",
    [
        ({}, "No alarms were logged: this run watched for none."),
        ({"tempo/alarm/gap": 0.0}, "No alarm in any round (watched: gap)."),
        ({"tempo/alarm/mine": 1.0}, "Alarm mine: mine, round 1."),
        ({"tempo/gate_open": 1.0}, "The gate was open in every round."),
    ],
)
def test_alarms_in_words(tmp_path, data, sentence):
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "data": data}])
    assert sentence in find_alarms(read_run(tmp_path)).sentences


def test_rounds_in_words():
    assert [rounds_text(rounds) for rounds in ([4], [1, 2], [1, 3, 4, 5, 9])] == [
        "round 4",
        "rounds 1–2",
        "rounds 1, 3–5, 9",
    ]
