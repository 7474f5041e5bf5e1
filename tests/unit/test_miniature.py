# SPDX-License-Identifier: Apache-2.0
"""The miniature: what its settings ask for, and what it makes of its metrics."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from rich.console import Console

from tempo_verl.config.preflight import check
from tempo_verl.config.schema import read_settings
from tempo_verl.errors import UserError
from tempo_verl.launch import resolve_config
from tempo_verl.methods import known

if TYPE_CHECKING:
    from omegaconf import DictConfig

MINIATURE = Path(__file__).parents[2] / "recipes" / "miniature"
SETTINGS = OmegaConf.load(MINIATURE / "settings.yaml")
NOT_IN_THE_TABLE_YET = {"tempo_pp", "trapo"}
SAMPLES = 128  # that every method draws in a round; stage 0 draws twice as many


@pytest.fixture
def miniature(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``recipes/miniature/run.py``."""
    monkeypatch.syspath_prepend(MINIATURE)
    return importlib.import_module("run")


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``recipes/miniature/results.py``."""
    monkeypatch.syspath_prepend(MINIATURE)
    return importlib.import_module("results")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path, tiny_critic: Path) -> Path:
    """A folder in which seed 1 has had its stage 0."""
    from tempo_verl.tasks.running_sums import RunningSums, write_parquet

    folder = tmp_path_factory.mktemp("miniature") / "seed_1"
    for split, rows in RunningSums(seed=1, n_labeled=64).make_sets().items():
        write_parquet(folder / "data" / f"{split}.parquet", rows, split)
    checkpoint = folder / "stage0" / "checkpoints" / f"global_step_{SETTINGS.stage0_rounds}"
    for model, place in (
        (tiny_policy, folder / "policy"),
        (tiny_policy, folder / "critic_start"),
        (tiny_policy, checkpoint / "actor" / "huggingface"),
        (tiny_critic, checkpoint / "critic" / "huggingface"),
    ):
        shutil.copytree(model, place)
    (checkpoint.parent / "latest_checkpointed_iteration.txt").write_text(str(SETTINGS.stage0_rounds))
    return folder.parent


def drawn(config: DictConfig) -> int:
    """Samples that the first round rolls out."""
    method = read_settings(config)
    settings, plan = method.settings, method.plan(method.settings.calibration.warmup_rounds + 1)
    labeled = settings.labeled.batch_size * settings.labeled.n if plan.label and settings.labeled.files else 0
    responses = method.responses() or config.actor_rollout_ref.rollout.n
    return labeled + (settings.unlabeled.batch_size * responses if method.needs.unlabeled else 0)


@pytest.mark.parametrize("name", ["stage0", *SETTINGS.methods, *SETTINGS.variants])
def test_every_training_passes_the_checks_and_draws_as_many_samples(
    miniature: ModuleType, out: Path, name: str
) -> None:
    config = resolve_config(miniature.overrides(SETTINGS, out / "seed_1", 1, name))
    check(config)
    of = {**SETTINGS.methods, **SETTINGS.variants, "stage0": {"overrides": SETTINGS.stage0}}[name]
    asked = of["overrides"]
    assert f"method={config.tempo.method}" in asked
    assert name not in known() or config.tempo.method == name
    assert drawn(config) == (2 * SAMPLES if name == "stage0" else SAMPLES)
    assert config.tempo.labeled.seed == 1 or not config.tempo.labeled.files
    assert config.tempo.rounds == (SETTINGS.stage0_rounds if name == "stage0" else SETTINGS.rounds)
    started = [config.actor_rollout_ref.model.path, config.critic.model.path]
    places = ["policy", "critic_start"]
    if name != "stage0":
        saved = f"stage0/checkpoints/global_step_{SETTINGS.stage0_rounds}"
        places = [f"{saved}/{role}/huggingface" for role in ("actor", "critic")]
    assert started == [str(out / "seed_1" / place) for place in places]


def test_all_methods_are_compared() -> None:
    assert set(SETTINGS.methods) == set(known())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("1,x", "not whole numbers"), ("1,1", "give each seed once"), ("-1", "none below 0"), ("", "not whole numbers")],
)
def test_bad_seeds_are_refused(miniature: ModuleType, text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        miniature.numbers(text)


def test_unknown_methods_are_refused(miniature: ModuleType) -> None:
    with pytest.raises(UserError, match="tempoo is unknown; choose from tempo, "):
        miniature.chosen("tempoo", SETTINGS)
    assert miniature.chosen("ttrl,tempo,ttrl", SETTINGS) == ["ttrl", "tempo"]


def test_a_setting_can_be_changed(miniature: ModuleType) -> None:
    settings = miniature.changed(SETTINGS.copy(), True, ["rounds=7", "task.n_labeled=99"])
    assert (settings.rounds, settings.stage0_rounds, settings.task.n_labeled) == (7, SETTINGS.fast.stage0_rounds, 99)
    assert "tempo.rounds=7" in miniature.overrides(settings, Path("seed_1"), 1, "tempo")
    for change in ("round=7", "rounds", "rounds=", "task.x=1"):
        with pytest.raises(UserError, match=f"--set {change}: give NAME=VALUE with a name from settings.yaml"):
            miniature.changed(SETTINGS.copy(), False, [change])
    for change, told in (
        ("task.variant=C", "--set task.variant='C': expected one of B, W0"),
        ("task.n_labeled=0", "--set task.n_labeled=0: expected a number from 1 to 10000"),
        ("critic.width=100", "--set critic.width=100 critic.layers=4: expected a multiple of 16, and 1 or more"),
        ("rounds=abc", "--set rounds=abc: settings.yaml has 100 there; expected a whole number, 0 or more"),
        ("rounds=2.5", "expected a whole number"),
        ("rounds=-1", "expected a whole number, 0 or more"),
        ("rounds=true", "expected a whole number"),
        ("actor_lr=abc", "expected a number, 0 or more"),
        ("critic=5", "has {'width': 96, 'layers': 4} there; expected its like"),
    ):
        with pytest.raises(UserError, match=told):
            miniature.changed(SETTINGS.copy(), False, [change])
    assert miniature.changed(SETTINGS.copy(), False, ["actor_lr=1"]).actor_lr == 1


def test_what_no_training_accepts_is_found_before_the_first(miniature: ModuleType, tmp_path: Path) -> None:
    settings = miniature.changed(SETTINGS.copy(), True, ["replay_window=0"])
    with pytest.raises(UserError, match=r"replay.window=0 must be at least 1"):
        miniature.run_all(tmp_path, settings, [1], ["tempo"], 1, Console(quiet=True))
    assert not list(tmp_path.iterdir())


def test_a_training_is_done_once_and_not_taken_for_another(miniature: ModuleType, tmp_path: Path) -> None:
    training = miniature.Training(1, "tempo", tmp_path / "tempo", (), "tempo-verl train method=tempo")
    assert not training.done
    training.claim()
    training.claim()  # to go on
    other = miniature.Training(1, "tempo", tmp_path / "tempo", (), "tempo-verl train method=tempo tempo.rounds=3")
    with pytest.raises(UserError, match="was begun with other settings"):
        other.claim()
    (tmp_path / "tempo" / "run.json").touch()
    assert training.done


# begun with SIGINT ignored, as by `nohup ... &` in a script
WORKING = """
import os, signal, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, sys.argv[2])
from run import end_with_parent, work


def train(told):
    Path(told).write_text(str(os.getpid()))
    time.sleep(60)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        pool.submit(work, train, sys.argv[1]).result()
"""


def test_no_worker_outlives_the_command(tmp_path: Path) -> None:
    script, told = tmp_path / "working.py", tmp_path / "pid"
    script.write_text(WORKING)
    command = subprocess.Popen([sys.executable, str(script), str(told), str(MINIATURE)])
    try:
        worker = int(_soon(lambda: told.is_file() and told.read_text()))
    finally:
        command.kill()
        command.wait()
    assert _soon(lambda: not _runs(worker))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path(f"/proc/{pid}/stat").is_file() or Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def _soon(condition):
    """What ``condition`` returns as soon as that is true; within 40 seconds."""
    end = time.monotonic() + 40
    while not (found := condition()):
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.1)
    return found


def test_a_critic_that_reads_marks_alone_knows_nothing_besides(
    monkeypatch: pytest.MonkeyPatch, out: Path, tmp_path: Path
) -> None:
    from tempo_verl.tasks.running_sums import VOCABULARY

    class ReadsMarks:
        def __init__(self, path: str):
            assert path.endswith(f"global_step_{SETTINGS.stage0_rounds}/critic/huggingface")

        def final_values(self, prompts, responses):
            return [-float(response.count(VOCABULARY.index("n"))) for response in responses]

    monkeypatch.syspath_prepend(MINIATURE)
    probe = importlib.import_module("probe")
    monkeypatch.setattr(probe, "Critic", ReadsMarks)
    found = probe.probe(out / "seed_1" / "stage0")
    assert [name for name, _, _ in found] == ["labeled", "unlabeled"]
    for _, honest, blind in found:
        assert honest > 0.8  # nine wrong steps in ten are marked n
        assert blind == 0.5
    (tmp_path / "seed_1" / "tempo").mkdir(parents=True)
    with pytest.raises(UserError, match="no last checkpoint there yet"):
        probe.probe(tmp_path / "seed_1" / "tempo")
    with pytest.raises(UserError, match="name the folder of one of the miniature's trainings"):
        probe.probe(tmp_path)


def made_up(seeds: int = 3) -> pd.DataFrame:
    """TEMPO gains 0.3 give or take 0.01 a seed and keeps its critic; TTRL gains nothing and loses pass@8."""
    rows = []
    for seed in range(seeds):
        noise = 0.01 * (seed - (seeds - 1) / 2)
        for number, share in ((0, 0.0), (10, 0.5), (20, 1.0)):
            critic = {"auroc_unlabeled": 0.8, "auroc_labeled": 0.9, "gap_labeled": 0.0} if number else {}
            common = {"seed": seed, "round": number, "distinct": 3.0, "heldout": 0.5, "wrong_marked_y": 0.25}
            tempo = {"accuracy": 0.3 + share * (0.3 + noise), "pass@8": 0.8}
            ttrl = {"accuracy": 0.3 + share * noise, "pass@8": 0.8 - share * (0.2 + noise)}
            rows += [common | {"method": "tempo"} | tempo | critic, common | {"method": "ttrl"} | ttrl]
    return pd.DataFrame(rows)


def test_the_table_shows_means_and_deviations(results: ModuleType) -> None:
    lines = results.table(made_up()).splitlines()
    assert (
        lines[2]
        == "| start (stage 0) | 30.0 ± 0.0 % | 80.0 ± 0.0 % | 3.00 ± 0.00 | 50.0 ± 0.0 % | 0.25 ± 0.00 | – | – |"
    )
    cells = "60.0 ± 1.0 % | 80.0 ± 0.0 % | 3.00 ± 0.00 | 50.0 ± 0.0 % | 0.25 ± 0.00 | 0.80 ± 0.00 | 0.90 ± 0.00"
    assert lines[3] == f"| `tempo` | {cells} |"
    assert lines[4].startswith("| `ttrl` | 30.0 ± 1.0 % | 60.0 ± 1.0 % |")
    assert lines[-1] == "Round 20; mean ± standard deviation over the seeds 0, 1, 2."
    assert "±" not in results.table(made_up(seeds=1)).splitlines()[3]


def test_wrong_steps_that_are_marked_right_are_counted(results: ModuleType, tmp_path: Path) -> None:
    validation = tmp_path / "20.jsonl"
    rows = (  # two wrong steps, one of them marked y; that of another set does not count
        {"data_source": "running_sums/unlabeled", "input": "3+7+5=", "output": "71y57n"},
        {"data_source": "running_sums/unlabeled", "input": "3+7+5=", "output": "70n55y"},
        {"data_source": "running_sums/heldout", "input": "3+7=", "output": "71y"},
    )
    validation.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert results._wrong_marked_y(validation) == 0.5
    validation.write_text(json.dumps(rows[1]) + "\n", encoding="utf-8")
    assert results._wrong_marked_y(validation) is None


def test_claims_are_judged_by_their_interval_over_seeds(results: ModuleType) -> None:
    found = {claim.text: claim for claim in results.claims(made_up())}
    gain = found["TEMPO gains over its start"]
    np.testing.assert_allclose(np.sort(gain.differences), [0.29, 0.30, 0.31])
    # Student's t with two degrees of freedom: 0.3 +- 4.30265 * 0.01 / sqrt(3)
    np.testing.assert_allclose(gain.interval, [0.3 - 0.024842, 0.3 + 0.024842], atol=1e-5)
    assert gain.verdict == "holds"
    assert found["TEMPO ends above `ttrl`"].verdict == "holds"
    assert found["`ttrl` loses pass@8"].verdict == "holds"
    assert found["`ttrl` loses distinct answers"].verdict == "does not hold"
    assert not any("frozen" in text or "oracle" in text for text in found)
    assert results.claims(made_up(seeds=1)) == []


def test_a_seed_that_a_method_lacks_is_left_out_of_its_claims(results: ModuleType) -> None:
    metrics = made_up()
    short = metrics[~((metrics["method"] == "ttrl") & (metrics["seed"] == 2))]
    found = {claim.text: claim for claim in results.claims(short)}
    assert len(found["TEMPO ends above `ttrl`"].differences) == 2
    assert len(found["TEMPO gains over its start"].differences) == 3
    assert results.table(short).endswith("over the seeds 0, 1, 2. `ttrl`: seeds 0, 1 only.")
    shorter = short[~((short["method"] == "ttrl") & (short["seed"] == 1))]
    assert not any("`ttrl`" in claim.text for claim in results.claims(shorter))


def test_an_interval_on_both_sides_leaves_a_claim_undecided(results: ModuleType) -> None:
    claims = importlib.import_module("claims")
    assert claims.Claim("", np.array([-0.1, 0.0, 0.2])).verdict == "undecided"
    assert claims.Claim("", np.array([-0.2, -0.2, -0.2])).verdict == "does not hold"


def test_a_method_with_labels_is_held_against_its_goals(results: ModuleType) -> None:
    tempo = made_up()[lambda rows: rows["method"] == "tempo"]
    ppo = tempo.assign(method="ppo", accuracy=tempo["accuracy"] - 0.04, heldout=0.53)
    better = tempo.assign(method="tempo_pp", accuracy=tempo["accuracy"] + 0.03, wrong_marked_y=0.12)
    better.loc[better["seed"] == 0, "auroc_unlabeled"] = 0.95
    found = {claim.text: claim for claim in results.claims(pd.concat([tempo, ppo, better]))}
    above = found["`tempo_pp` ends 5 points above `ppo`"]
    np.testing.assert_allclose(above.differences, 0.07)
    assert above.verdict == "holds"
    assert dataclasses.replace(above, differences=above.differences - 0.03).verdict == "does not hold"  # 4 points
    assert found["`tempo_pp` ends above TEMPO"].verdict == "holds"
    assert found["`tempo_pp` ends less than 2 points below `ppo` on held-out questions"].verdict == "does not hold"
    np.testing.assert_allclose(
        found["`tempo_pp` marks y at most half as many wrong steps as TEMPO"].differences, 0.5 * 0.25 - 0.12
    )
    assert found["`tempo_pp` has an AUROC on D_U above .85 at the end"].verdict == "undecided"


def test_two_tables_are_compared_by_their_order(results: ModuleType) -> None:
    one = made_up()
    assert results.agreement(one, one).startswith("2 methods and the seeds 0, 1, 2 are in both; Kendall's tau of the")
    other = one.copy()
    other.loc[other["method"] == "ttrl", "accuracy"] += 0.5
    assert "means -1.00; difference -25.0 points in the mean, 50.0 at most (`ttrl`)" in results.agreement(one, other)


@pytest.fixture
def trust(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``recipes/miniature/trust.py``."""
    monkeypatch.syspath_prepend(MINIATURE)
    return importlib.import_module("trust")


def test_an_election_of_rehearsed_samples(trust: ModuleType) -> None:
    group = [("4", True, 0.9)] * 2 + [("5", False, 0.1)] * 5 + [(None, False, 0.3)]
    nothing = [(None, False, 0.5)] * 8
    samples = [{"answer": a, "correct": c, "value": v} for a, c, v in (*group, *nothing)]
    (row,) = trust.elections(samples).to_dict("records")
    assert row == {"share": pytest.approx(1.8 / 2.6), "value": 0.9, "plain": 0.25, "agree": 0.0, "right": True}


def test_the_share_of_right_answers_that_makes_the_probabilities_likeliest(trust: ModuleType) -> None:
    # known half and half, so right answers look right in nine of ten cases; .7 look right: pi .9 + (1 - pi) .1
    moved = trust.shifted(np.array([0.9] * 7 + [0.1] * 3), 0.5)
    assert moved.mean() == pytest.approx(0.75, abs=1e-4)
    rng = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.9):
        asked = np.sort(rng.random(50))
        assert (np.diff(trust.shifted(asked, share)) >= 0).all()  # the order of the answers stays
    np.testing.assert_allclose(trust.shifted(np.array([0.9] * 5 + [0.1] * 5), 0.5), [0.9] * 5 + [0.1] * 5, atol=1e-5)


def test_tables_and_figures_are_written_from_the_metrics(results: ModuleType, tmp_path: Path) -> None:
    text, told = results.write(made_up(), [{"command": "run.py"}], tmp_path)
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == text + "\n"
    pictures = [tmp_path / f"{name}.png" for name in ("accuracy", "diversity", "auroc")]
    assert told == f"figures: {', '.join(map(str, pictures))}"
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_seeds_that_were_trained_apart_are_put_together(
    results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "figures", lambda metrics, out: [])  # take a second each
    whole, folders = made_up(seeds=4), [tmp_path / "a", tmp_path / "b"]
    for folder, seeds in zip(folders, ([0, 1], [2, 3]), strict=True):
        results.write(whole[whole["seed"].isin(seeds)], [{"command": folder.name}], folder)
    metrics, about = results.read(folders)
    assert [part["command"] for part in about] == ["a", "b"]
    assert results.table(metrics) == results.table(whole)
    with pytest.raises(UserError, match="seed 0 of tempo is in more than one of the folders"):
        results.read([folders[0], folders[0]])
    short = whole[whole["round"] < 20].assign(seed=9)
    results.write(short, [], tmp_path / "short")
    with pytest.raises(UserError, match="short has 10 rounds"):
        results.read([folders[0], tmp_path / "short"])
    (tmp_path / "short" / "about.json").unlink()
    with pytest.raises(UserError, match=r"short: no about\.json in it"):
        results.read([tmp_path / "short"])
    results.write(whole.assign(seed=whole["seed"] + 9), [{"command": "python rehearse.py"}], tmp_path / "rehearsed")
    with pytest.raises(UserError, match=r"some of rehearse\.py"):
        results.read([folders[0], tmp_path / "rehearsed"])
    with pytest.raises(UserError, match=r"c: no metrics\.csv in it"):
        results.read([tmp_path / "c"])


def test_the_committed_tables_come_from_the_committed_metrics(results: ModuleType) -> None:
    metrics, about = results.read([MINIATURE / "results"])
    table, claims = results.table(metrics), results.claims_table(results.claims(metrics))
    assert (MINIATURE / "results" / "table.md").read_text(encoding="utf-8") == f"{table}\n\n{claims}\n"
    results_page = (MINIATURE.parents[1] / "docs" / "results.md").read_text(encoding="utf-8")
    assert table in results_page
    assert claims in results_page
    assert claims in (MINIATURE / "README.md").read_text(encoding="utf-8")
    compared = set(known()) - NOT_IN_THE_TABLE_YET
    assert set(metrics["method"]) == compared
    for name in ("stage0", *compared):  # every training is accounted for
        assert sum(len(call["seconds"][name]) for call in about) == metrics["seed"].nunique()
