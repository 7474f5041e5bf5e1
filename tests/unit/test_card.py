# SPDX-License-Identifier: Apache-2.0
"""The model card beside the weights of a run's last checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from run_folders import make_run

from tempo_verl.report import build_report, write_cards
from tempo_verl.trainer.manifest import fault, write_manifest


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of TEMPO on a model of the hub, with checkpoints of the rounds 4 and 8, the critic's saved by Megatron."""
    run = make_run(tmp_path / "run")
    settings = {
        "tempo": {"method": "tempo", "rounds": 9, "labeled": {"files": "/home/ada/dl.parquet"},
                  "unlabeled": {"files": ["/home/ada/du.parquet"]}},
        "actor_rollout_ref": {"model": {"path": "Qwen/Qwen3-8B"}},
        "critic": {"model": {"path": "/home/ada/runs/stage0/checkpoints/global_step_3/critic/huggingface"}},
    }  # fmt: skip
    for phase in ("stage0", "tempo"):
        for number in (4, 8):
            folder = run / phase / "checkpoints" / f"global_step_{number}"
            for model in ("actor/huggingface", "critic/model/huggingface"):
                (folder / model).mkdir(parents=True)
                (folder / model / "model.safetensors").write_bytes(b"weights")
            write_manifest(
                folder, {"round": number, "data": {"tempo.labeled.files": ["aa"], "tempo.unlabeled.files": ["bb"]}}
            )
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    return run


def test_a_card_stands_beside_the_last_weights(run: Path) -> None:
    written = write_cards(run, build_report(run))
    checkpoint = run / "tempo" / "checkpoints" / "global_step_8"
    assert written == [checkpoint / "actor" / "huggingface", checkpoint / "critic" / "model" / "huggingface"]
    assert sorted(run.rglob("README.md")) == sorted(folder / "README.md" for folder in written)
    assert fault(checkpoint, hashes=True) is None  # a run still goes on from there
    policy, critic = (ModelCard.load(folder / "README.md") for folder in written)
    assert policy.data.base_model == "Qwen/Qwen3-8B"
    assert policy.data.pipeline_tag == "text-generation"
    assert policy.data.tags == ["tempo-verl", "verl", "test-time-training", "tempo"]
    assert "from `Qwen/Qwen3-8B`; the weights of round 8 of 9." in policy.text
    assert "**It was trained on test questions.**" in policy.text
    assert "| D_L, labelled | `dl.parquet` | `aa` |\n| D_U, unlabelled | `du.parquet` | `bb` |" in policy.text
    assert "## What was measured\n" in policy.text
    assert "### Before and after\n" in policy.text
    assert critic.data.base_model is None
    assert critic.data.pipeline_tag == "token-classification"
    assert "from round 3 of the run `stage0`" in critic.text
    for card in (policy, critic):
        assert "/home/ada" not in card.text


def test_a_run_without_weights_gets_no_card(run: Path) -> None:
    for weights in run.rglob("*.safetensors"):
        weights.unlink()
    results = build_report(run)
    assert write_cards(run, results) == []
    for manifest in run.rglob("manifest.json"):
        manifest.unlink()
    assert write_cards(run, results) == []
    assert not list(run.rglob("README.md"))
