# SPDX-License-Identifier: Apache-2.0
"""Stage 0 by the command line, resumed, and stage 1 started from what it saved."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tempo_verl.launch import Run
from tempo_verl.models import missing_value_head


def _train(run_dir: Path, *overrides: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "tempo_verl.cli.main", "train", "--run-dir", str(run_dir), *overrides],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def _steps(file: Path) -> list[int]:
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def common(tiny_task: Path) -> list[str]:
    return [
        f"tempo.labeled.files='{tiny_task / 'labeled.parquet'}'",
        "tempo.labeled.batch_size=8",
        "actor_rollout_ref.rollout.n=2",
        "data.max_prompt_length=16",
        "data.max_response_length=24",
        "trainer.save_freq=1",
        "hardware=cpu",
    ]


@pytest.fixture(scope="module")
def stage0(tmp_path_factory: pytest.TempPathFactory, common: list[str], tiny_policy: Path) -> Run:
    """One round of PPO on D_L from the pretrained policy, with a new value head."""
    run = Run(tmp_path_factory.mktemp("stage0"))
    models = [f"actor_rollout_ref.model.path='{tiny_policy}'", f"critic.model.path='{tiny_policy}'"]
    _train(run.folder, "method=ppo", "tempo.rounds=1", *models, *common)
    return run


def test_stage0_writes_what_stage1_loads(stage0: Run, common: list[str], tiny_task: Path, tmp_path: Path) -> None:
    assert missing_value_head(stage0.exported("critic")) == []
    output = _train(
        tmp_path / "tempo",
        "method=tempo",
        "tempo.rounds=1",
        f"tempo.unlabeled.files='{tiny_task / 'unlabeled.parquet'}'",
        "tempo.unlabeled.batch_size=4",
        "tempo.predictions.n=2",
        f"actor_rollout_ref.model.path='{stage0.exported('actor')}'",
        f"critic.model.path='{stage0.exported('critic')}'",
        *common,
    )
    assert _steps(tmp_path / "tempo" / "metrics.jsonl") == [1]
    assert (tmp_path / "tempo" / "report.html").is_file()
    assert "report.html" in output
    assert len((tmp_path / "tempo" / "predictions.jsonl").read_text().splitlines()) == 16
    assert "predictions.jsonl" in output.replace("\n", "")
    assert not stage0.predictions.exists()


def test_stage0_resumes_where_it_stopped(stage0: Run, common: list[str], tiny_policy: Path) -> None:
    models = [f"actor_rollout_ref.model.path='{tiny_policy}'", f"critic.model.path='{tiny_policy}'"]
    _train(stage0.folder, "method=ppo", "tempo.rounds=2", *models, *common)
    assert _steps(stage0.folder / "metrics.1.jsonl") == [1]
    assert _steps(stage0.metrics) == [2]
    assert "global_step_2" in str(stage0.exported("actor"))
