# SPDX-License-Identifier: Apache-2.0
"""``tempo.checkpoint.keep`` in a run that spoils its policy, and in one that goes on from the best checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from harness import equal
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification

from tempo_verl.launch import Run
from tempo_verl.tasks.pretrain import pretrain
from tempo_verl.tasks.running_sums import RunningSums
from tempo_verl.trainer.checkpoints import Best, Checkpoints

ACCURACY = "val-core/running_sums/heldout/acc/mean@4"  # the other data source is D_U's
ROUNDS = 2


def _train(run: Run, *overrides: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tempo_verl.cli.main", "train", "--run-dir", str(run.folder), *overrides],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def _accuracies(metrics: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return {line["step"]: line["data"][ACCURACY] for line in lines}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that is right now and then."""
    return pretrain(
        tmp_path_factory.mktemp("able"),
        RunningSums(seed=1, n_labeled=32, n_unlabeled=16, n_heldout=16),
        steps=150,
        batch_size=16,
    ).path


@pytest.fixture(scope="module")
def common(tiny_task: Path, policy: Path, tiny_critic: Path) -> list[str]:
    return [
        "hardware=cpu",
        f"tempo.labeled.files='{tiny_task / 'labeled.parquet'}'",
        f"tempo.unlabeled.files='{tiny_task / 'unlabeled.parquet'}'",
        f"data.val_files=['{tiny_task / 'unlabeled.parquet'}','{tiny_task / 'heldout.parquet'}']",
        f"tempo.rounds={ROUNDS}",
        "tempo.labeled.batch_size=8",
        "tempo.unlabeled.batch_size=4",
        "actor_rollout_ref.rollout.n=2",
        "actor_rollout_ref.rollout.val_kwargs.n=4",
        "actor_rollout_ref.actor.optim.lr=1e-2",
        "data.max_prompt_length=16",
        "data.max_response_length=24",
        f"actor_rollout_ref.model.path='{policy}'",
        f"critic.model.path='{tiny_critic}'",
        "trainer.test_freq=1",
        "trainer.save_freq=1",
    ]


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory, common: list[str]) -> tuple[Run, Checkpoints, Best]:
    """keep=best where every update makes the policy worse; its checkpoints and best.json as the run left them."""
    run = Run(tmp_path_factory.mktemp("spoilt"))
    _train(
        run,
        *common,
        "tempo.checkpoint.keep=best",
        "trainer.val_before_train=true",
        "actor_rollout_ref.actor.entropy_coeff=100",
    )
    return run, Checkpoints(run.checkpoints), Checkpoints(run.checkpoints).best()


def test_of_a_run_that_makes_nothing_better_the_start_remains(spoilt: tuple, policy: Path) -> None:
    run, checkpoints, best = spoilt
    accuracies = _accuracies(run.metrics)
    assert sorted(accuracies) == [0, 1, 2]
    assert accuracies[0] > max(accuracies[1], accuracies[2])
    assert best == Best(0, accuracies[0], ["running_sums/heldout"])
    assert checkpoints.rounds() == {0}
    assert run.exported("actor") == checkpoints.path(0) / "actor" / "huggingface"
    assert equal(*(load_file(path / "model.safetensors") for path in (policy, run.exported("actor"))))


def test_a_run_goes_on_from_its_best_and_keeps_the_newest_too(spoilt: tuple, common: list[str]) -> None:
    run, checkpoints, best = spoilt
    # the critic alone is trained: the policy stays, and chance says which round is best
    _train(run, *common, "tempo.checkpoint.keep=both", f"tempo.calibration.warmup_rounds={ROUNDS}")
    accuracies = {0: best.accuracy, **_accuracies(run.metrics)}
    assert sorted(accuracies) == [0, 1, 2]
    expected = max(accuracies, key=lambda number: accuracies[number])  # the first of equals
    assert checkpoints.best() == Best(expected, accuracies[expected], ["running_sums/heldout"])
    assert checkpoints.rounds() == {expected, ROUNDS}
    assert run.exported("critic").is_relative_to(checkpoints.path(ROUNDS))
    of_best = checkpoints.path(expected) / "critic" / "huggingface"
    assert AutoModelForTokenClassification.from_pretrained(of_best).num_labels == 1
