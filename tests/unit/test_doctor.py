# SPDX-License-Identifier: Apache-2.0
"""``tempo-verl doctor``: the installation, a worker of Ray, and a run before it is started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from transformers import AutoModelForCausalLM, AutoTokenizer

import tempo_verl.doctor
from tempo_verl.config import space
from tempo_verl.diagnosis import Doctor, Finding, ask_worker
from tempo_verl.doctor import check_versions, requirements
from tempo_verl.errors import UserError

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def valid(tiny_task: Path, tiny_policy: Path, tiny_critic: Path) -> list[str]:
    """Overrides of a run in order."""
    return [
        "hardware=cpu",
        f"tempo.labeled.files='{tiny_task / 'labeled.parquet'}'",
        f"tempo.unlabeled.files='{tiny_task / 'unlabeled.parquet'}'",
        f"data.val_files='{tiny_task / 'heldout.parquet'}'",
        "tempo.rounds=2",
        "tempo.labeled.batch_size=8",
        "tempo.unlabeled.batch_size=4",
        "actor_rollout_ref.rollout.n=2",
        "data.max_prompt_length=16",
        "data.max_response_length=24",
        f"actor_rollout_ref.model.path='{tiny_policy}'",
        f"critic.model.path='{tiny_critic}'",
    ]


def looked(overrides: list[str], run_dir: Path) -> dict[str, Finding]:
    doctor = Doctor(ray=False)
    doctor.run(overrides, run_dir)
    assert all(len(finding.told.splitlines()) <= 1 for finding in doctor.findings)
    assert not run_dir.exists()  # nothing is written
    names = [finding.check for finding in doctor.findings]
    assert len(names) == len(set(names))
    assert doctor.well is not any(finding.state == "failed" for finding in doctor.findings)
    return {finding.check: finding for finding in doctor.findings}


# ---------------------------------------------------------------------- versions


def test_what_is_asked_for_is_what_the_project_declares() -> None:
    asked = requirements()
    assert asked["verl"] == SpecifierSet(">=0.9.1,<0.10") and asked["python"] == SpecifierSet(">=3.10,<3.13")
    assert {"ray", "torch", "transformers", "vllm", "transferqueue"} <= asked.keys()
    assert check_versions().startswith("python 3.")


def test_a_version_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tempo_verl.doctor.version
    monkeypatch.setattr(tempo_verl.doctor, "version", lambda name: "2.9.0" if name == "ray" else real(name))
    with pytest.raises(UserError, match=r"^ray 2\.9\.0 is installed, >=2\.41\.0 is needed; reinstall: pip install"):
        check_versions()


# ---------------------------------------------------------------------- a worker of Ray


def test_a_worker_has_the_plugin() -> None:
    told, resources = ask_worker()
    assert told == "loaded; trainer_mode=tempo registered"
    assert resources["CPU"] == 1


def test_a_worker_without_the_plugin_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "none")
    with pytest.raises(UserError, match=r"^a worker of Ray does not have it \(import verl did not load the plugin"):
        ask_worker()


# ---------------------------------------------------------------------- a run


def test_a_run_in_order(valid: list[str], tmp_path: Path) -> None:
    found = looked(valid, tmp_path / "run")
    assert {name for name, finding in found.items() if finding.state != "ok"} == {"GPUs of this machine"}
    assert {"batches", "question files", "models and tokenizers", "prompts", "ground truths"} <= found.keys()
    assert found["critic and policy"].told.startswith("the same ")
    assert found["disk"].told.startswith("checkpoints take up to 0.00 GB (actor 0.1M weights x 16 bytes x 1; critic")


def test_every_mistake_is_told(valid: list[str], tmp_path: Path) -> None:
    mistakes = ["tempo.unlabeled.files=nowhere.parquet", "tempo.calibration.mini_batch_size=3", "algorithm.lam=0.9"]
    found = looked([*valid, *mistakes, "data.max_response_length=40000"], tmp_path / "run")
    failed = {name: finding.told for name, finding in found.items() if finding.state == "failed"}
    assert found["configuration"].state == "ok"
    assert {"question files", "batches", "algorithm", "token budgets", "models and tokenizers"} == failed.keys()
    assert failed["question files"] == "tempo.unlabeled.files=nowhere.parquet: no such file; check the path"
    assert found["prompts"] == Finding("prompts", "skipped", "the question files have to be mended first")


def test_one_mistake_is_told_once(tmp_path: Path) -> None:
    found = looked(["method=ppo"], tmp_path / "run")
    told = "actor_rollout_ref.model.path is not set; give a Hugging Face directory or name"
    assert found["model settings"] == Finding("model settings", "failed", told)
    assert found["models and tokenizers"] == Finding("models and tokenizers", "skipped", "as above")
    assert found["disk"].told == "actor_rollout_ref.model.path=None is no directory here"


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    found = looked(["tempo.rouns=3"], tmp_path / "run")
    assert "did you mean tempo.rounds?" in found["configuration"].told
    assert [finding.state for finding in found.values()] == ["failed", "skipped"]


def test_a_critic_with_other_tokens_is_told(valid: list[str], tiny_critic: Path, tmp_path: Path) -> None:
    critic = shutil.copytree(tiny_critic, tmp_path / "critic")
    tokenizer = AutoTokenizer.from_pretrained(critic)
    tokenizer.add_tokens(["<other>"])
    tokenizer.save_pretrained(critic)
    found = looked([*valid, f"critic.model.path='{critic}'"], tmp_path / "run")
    assert "its tokenizer is not that of the policy" in found["critic and policy"].told


# ---------------------------------------------------------------------- room


def test_weights_are_counted_by_their_headers(tiny_policy: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_policy)
    assert space.weights(tiny_policy) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("overrides", "number"),
    [
        ((), 1),  # trainer.save_freq is tempo.rounds
        (("trainer.save_freq=3",), 4),
        (("trainer.save_freq=-1",), 0),
        (("trainer.save_freq=1", "trainer.max_actor_ckpt_to_keep=2"), 3),
        (("trainer.save_freq=1", "tempo.checkpoint.keep=last"), 2),
        (("trainer.save_freq=1", "tempo.checkpoint.keep=both"), 3),
    ],
)
def test_checkpoints_that_are_there_at_a_time(compose, overrides: tuple[str, ...], number: int) -> None:
    assert space.kept(compose(["tempo.rounds=10", *overrides]), "actor") == number


def test_a_full_disk_is_told(compose, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = compose([f"trainer.default_local_dir='{tmp_path / 'new'}'", "tempo.checkpoint.keep=last"])
    needed = 16 * (space.weights(tiny_policy) + space.weights(Path(config.critic.model.path)))
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: Usage(0, 0, needed))
    assert "are free in" in space.check_disk(config)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: Usage(0, 0, needed - 1))
    with pytest.raises(UserError, match=r"^trainer\.default_local_dir=.*new: checkpoints take up to .* are free; "):
        space.check_disk(config)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: Usage(0, 0, 1000))
    with pytest.raises(UserError, match=r"^/dev/shm: about .* are needed, .* with --shm-size$"):
        space.check_shared_memory(config)


# ---------------------------------------------------------------------- the command


def doctor(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tempo_verl.cli.main", "doctor", "--no-ray", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, env=dict(os.environ))


def test_json_alone_is_printed(valid: list[str], tmp_path: Path) -> None:
    done = doctor("--json", "--run-dir", str(tmp_path / "run"), *valid)
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert found["ok"] is True and found["versions"]["verl"]
    assert {check["state"] for check in found["checks"]} == {"ok", "skipped"}
    assert all(check.keys() == {"check", "state", "told"} for check in found["checks"])
    done = doctor("--json", *valid, "algorithm.lam=0.9")
    assert done.returncode == 1 and json.loads(done.stdout)["ok"] is False


def test_a_failed_check_is_a_line(valid: list[str]) -> None:
    done = doctor(*valid, "algorithm.lam=0.9")
    assert done.returncode == 1
    assert "not in order: algorithm: algorithm.gamma=1.0, algorithm.lam=0.9: must both be 1" in done.stdout
    assert "in order: plugin: loaded; trainer_mode=tempo registered; platform: " in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("--gpu",), ("--model=m",), ("--gpu", "--model=m", "--json")])
def test_options_that_do_not_go_together(arguments: tuple[str, ...]) -> None:
    done = doctor(*arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
