# SPDX-License-Identifier: Apache-2.0
"""The command line from stage 0 over TEMPO to its resumption: kept checkpoints, ``tempo.start_from``, predictions.

Three commands in a row: a stage 0 that spoils its policy and keeps the best checkpoint; TEMPO from there, which keeps
the best and the newest; TEMPO resumed. ``make test-all`` also starts a user's method by verl's own launcher.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import equal
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification

from tempo_verl.launch import Run
from tempo_verl.models import missing_value_head
from tempo_verl.trainer.checkpoints import Best, Checkpoints
from tempo_verl.trainer.status import read_status
from tempo_verl.trial import judge

ACCURACY = "val-core/running_sums/heldout/acc/mean@4"  # the other data source is D_U's
ROUNDS = 2
EXAMPLE = Path(__file__).parents[2] / "examples" / "own_method"
EXAMPLE_METHOD = "confident:Confident"


def run(*command: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | environment,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def train(folder: Path, *overrides: str) -> str:
    return run("tempo_verl.cli.main", "train", "--run-dir", str(folder), *overrides)


def logged(metrics: Path) -> dict[int, dict[str, float]]:
    return {line["step"]: line["data"] for line in map(json.loads, metrics.read_text().splitlines())}


@pytest.fixture(scope="module")
def common(tiny_task: Path) -> list[str]:
    return [
        "hardware=cpu",
        f"tempo.labeled.files='{tiny_task / 'labeled.parquet'}'",
        "tempo.labeled.batch_size=8",
        "actor_rollout_ref.rollout.n=2",
        "data.max_prompt_length=16",
        "data.max_response_length=24",
        "trainer.save_freq=1",
    ]


@pytest.fixture(scope="module")
def validated(tiny_task: Path) -> list[str]:
    return [
        f"data.val_files=['{tiny_task / 'unlabeled.parquet'}','{tiny_task / 'heldout.parquet'}']",
        "actor_rollout_ref.rollout.val_kwargs.n=4",
        "trainer.test_freq=1",
        "trainer.val_before_train=true",
    ]


@pytest.fixture(scope="module")
def stage0(
    tmp_path_factory: pytest.TempPathFactory, common: list[str], validated: list[str], able_policy: Path
) -> tuple[Run, str]:
    """keep=best where every update makes the policy worse, by an entropy bonus that drowns the reward."""
    run = Run(tmp_path_factory.mktemp("stage0"))
    output = train(
        run.folder,
        "method=ppo",
        *common,
        *validated,
        f"tempo.rounds={ROUNDS}",
        "tempo.checkpoint.keep=best",
        "tempo.checkpoint.validation=running_sums/heldout",
        f"actor_rollout_ref.model.path='{able_policy}'",
        f"critic.model.path='{able_policy}'",
        "actor_rollout_ref.actor.entropy_coeff=100",
        "actor_rollout_ref.actor.optim.lr=1e-2",
    )
    return run, output


def test_of_a_run_that_makes_nothing_better_the_start_remains(stage0: tuple[Run, str], able_policy: Path) -> None:
    run, output = stage0
    metrics, checkpoints = logged(run.metrics), Checkpoints(run.checkpoints)
    accuracies = {step: data[ACCURACY] for step, data in metrics.items()}
    assert sorted(accuracies) == [0, 1, 2]
    assert accuracies[0] > max(accuracies[1], accuracies[2])
    assert checkpoints.best() == Best(0, accuracies[0], ["running_sums/heldout"])
    assert checkpoints.rounds() == {0}
    actor = checkpoints.chosen("last") / "actor" / "huggingface"
    assert actor == checkpoints.chosen("best") / "actor" / "huggingface"
    assert equal(*(load_file(path / "model.safetensors") for path in (able_policy, actor)))
    assert missing_value_head(checkpoints.chosen("best") / "critic" / "huggingface") == []
    assert read_status(run.status).state == "done"
    assert not run.predictions.exists()
    assert (run.folder / "report.html").is_file()
    assert "report.html" in output


def test_the_alarm_of_a_new_head_that_cannot_rank_yet_stays_off(stage0: tuple[Run, str]) -> None:
    first = logged(stage0[0].metrics)[1]  # V = 0 everywhere before the first update
    assert "tempo/labeled/auroc" not in first
    assert not any(name.startswith("tempo/alarm/auroc") for name in first)


@pytest.fixture(scope="module")
def tempo(
    tmp_path_factory: pytest.TempPathFactory,
    stage0: tuple[Run, str],
    common: list[str],
    validated: list[str],
    tiny_task: Path,
) -> tuple[Run, str]:
    """One round of TEMPO from the best checkpoint of stage 0; then the same command with another round."""
    run = Run(tmp_path_factory.mktemp("tempo"))
    command = [
        "method=tempo",
        *common,
        *validated,
        f"tempo.start_from='{stage0[0].folder}'",
        "tempo.start_checkpoint=best",
        "tempo.checkpoint.keep=both",
        f"tempo.unlabeled.files='{tiny_task / 'unlabeled.parquet'}'",
        "tempo.unlabeled.batch_size=4",
        "tempo.predictions.n=2",
        "actor_rollout_ref.actor.optim.lr=1e-4",
    ]
    first = train(run.folder, *command, "tempo.rounds=1")
    assert len(run.predictions.read_text().splitlines()) == 16
    train(run.folder, *command, f"tempo.rounds={ROUNDS}")
    return run, first


def test_tempo_starts_from_what_stage_0_has_kept(stage0: tuple[Run, str], tempo: tuple[Run, str]) -> None:
    run, output = tempo
    start = Checkpoints(stage0[0].checkpoints).path(0)
    config = (run.folder / "config.yaml").read_text()
    for role in ("actor", "critic"):
        assert f"path: {start / role / 'huggingface'}" in config
    assert (run.folder / "report.html").is_file()
    assert "predictions.jsonl" in output.replace("\n", "")


def test_tempo_resumes_where_it_stopped_and_keeps_the_best_and_the_newest(tempo: tuple[Run, str]) -> None:
    run, _ = tempo
    earlier, metrics = (logged(path) for path in (run.folder / "metrics.1.jsonl", run.metrics))
    assert sorted(earlier) == [0, 1]
    assert sorted(metrics) == [2]  # round 1 was validated when it was new
    accuracies = {step: data[ACCURACY] for step, data in earlier.items()} | {2: metrics[2][ACCURACY]}
    expected = max(accuracies, key=lambda number: accuracies[number])  # the first of equals
    checkpoints = Checkpoints(run.checkpoints)
    assert checkpoints.best() == Best(expected, accuracies[expected], ["running_sums/heldout"])
    assert checkpoints.rounds() == {expected, ROUNDS}
    assert checkpoints.chosen("last") == checkpoints.path(ROUNDS)
    for which in ("last", "best"):
        critic = checkpoints.chosen(which) / "critic" / "huggingface"
        assert AutoModelForTokenClassification.from_pretrained(critic).num_labels == 1


def test_the_doctor_finds_both_runs_in_order(
    stage0: tuple[Run, str], tempo: tuple[Run, str], able_policy: Path
) -> None:
    found = judge(able_policy, stage0[0], tempo[0])
    assert [verdict for verdict in found if not verdict.passed] == []
    assert len(found) == 6


@pytest.mark.slow
def test_a_method_of_ones_own_runs_under_verls_launcher(
    common: list[str], tiny_task: Path, able_policy: Path, tiny_critic: Path, tmp_path: Path
) -> None:
    run(
        "verl.trainer.main_ppo",
        "--config-path=pkg://tempo_verl.config",
        "--config-name=tempo_trainer",
        "method=tempo",
        f"tempo.method={EXAMPLE_METHOD}",
        *common,
        "tempo.rounds=1",
        f"tempo.unlabeled.files='{tiny_task / 'unlabeled.parquet'}'",
        "tempo.unlabeled.batch_size=4",
        f"actor_rollout_ref.model.path='{able_policy}'",
        f"critic.model.path='{tiny_critic}'",
        f"tempo.dump_dir='{tmp_path / 'rounds'}'",
        f"tempo.status_file='{tmp_path / 'status.json'}'",
        f"trainer.default_local_dir='{tmp_path / 'checkpoints'}'",
        PYTHONPATH=os.pathsep.join([str(EXAMPLE), os.environ.get("PYTHONPATH", "")]),
    )
    status = read_status(tmp_path / "status.json")
    assert (status.state, status.round, status.error) == ("done", 1, None)
    assert (tmp_path / "rounds" / "round_000001.npz").is_file()
    assert (tmp_path / "checkpoints" / "global_step_1" / "critic" / "huggingface" / "model.safetensors").is_file()
