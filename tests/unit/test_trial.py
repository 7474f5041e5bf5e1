# SPDX-License-Identifier: Apache-2.0
"""What ``tempo-verl doctor --gpu`` makes of two finished runs; the chain of commands judges real ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from tempo_verl.config.preflight import check
from tempo_verl.data.validation import read_questions
from tempo_verl.errors import UserError
from tempo_verl.launch import Run, resolve_config
from tempo_verl.trial import _common, as_markdown, judge, run_trial, write_sums

AGREES = {"training/rollout_probs_diff_mean": 0.003, "training/rollout_actor_probs_pearson_corr": 0.998}
CARD = ("a card", 80.0)


def copy(model: Path, to: Path, factor: float = 1.0) -> Path:
    shutil.copytree(model, to)
    state = load_file(to / "model.safetensors")
    save_file({name: tensor * factor for name, tensor in state.items()}, to / "model.safetensors", {"format": "pt"})
    return to


def rounds(run: Run, **changed: float) -> None:
    line = AGREES | {"critic/loss": 0.2, "actor/perf/max_memory_allocated_gb": 20.0} | changed
    run.metrics.write_text("".join(json.dumps({"step": step, "data": line}) + "\n" for step in (1, 2, 3)))


@pytest.fixture
def runs(tmp_path: Path, tiny_policy: Path, tiny_critic: Path) -> tuple[Run, Run]:
    """Two runs that are as they should be; the predictions hold the values of the saved critic."""
    from transformers import AutoTokenizer

    from tempo_verl.evaluation.critic import Critic

    found = Run(tmp_path / "stage0"), Run(tmp_path / "tempo")
    for factor, run in zip((1.01, 1.02), found, strict=True):
        checkpoint = run.checkpoints / "global_step_3"
        copy(tiny_policy, checkpoint / "actor" / "huggingface", factor)
        copy(tiny_critic, checkpoint / "critic" / "huggingface", factor)
        (run.checkpoints / "latest_checkpointed_iteration.txt").write_text("3")
        rounds(run)
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    ids = tokenizer.encode("3+7=", add_special_tokens=False), [*tokenizer.encode("70y"), tokenizer.eos_token_id]
    critic = Critic(str(found[1].checkpoints / "global_step_3" / "critic" / "huggingface"))
    (value,) = critic.final_values([tuple(ids[0])], [ids[1]])
    shown = {"question": "3+7=", "rationale": {"sample": 0, "value": value, "response": "70y"}}
    found[1].predictions.write_text(json.dumps(shown) + "\n" + json.dumps({"question": "1+1=", "rationale": None}))
    return found


def failed(model: Path, runs: tuple[Run, Run]) -> list[str]:
    return [verdict.item for verdict in judge(model, *runs, CARD) if not verdict.passed]


def test_runs_as_they_should_be_pass_every_item(runs: tuple[Run, Run], tiny_policy: Path) -> None:
    found = judge(tiny_policy, *runs, CARD)
    assert [verdict.item for verdict in found if not verdict.passed] == []
    assert len(found) == 7
    text = as_markdown(found, CARD, [60.0, 90.0])
    assert text.startswith("tempo-verl doctor --gpu: a card, 80 GiB; stage 0 60 s, TEMPO 90 s\n")
    assert text.count("| ok |") == 7


@pytest.mark.parametrize(
    ("changed", "item"),
    [
        ({"critic/loss": float("nan")}, "every metric is a number"),
        ({"training/rollout_probs_diff_mean": 0.2}, "rollout and trainer agree on probabilities"),
        ({"training/rollout_actor_probs_pearson_corr": 0.9}, "rollout and trainer agree on probabilities"),
        ({"actor/perf/max_memory_allocated_gb": 81.0}, "training fits beside the rollout"),
    ],
)
def test_a_metric_that_is_not_as_expected_is_told(
    runs: tuple[Run, Run], tiny_policy: Path, changed: dict[str, float], item: str
) -> None:
    rounds(runs[1], **changed)
    assert failed(tiny_policy, runs) == [item]


def test_an_export_that_is_the_base_model_is_told(runs: tuple[Run, Run]) -> None:
    exported = runs[1].checkpoints / "global_step_3" / "actor" / "huggingface"
    assert failed(exported, runs) == ["the policy is trained, and exported as trained"]


def test_a_critic_that_is_not_the_one_that_was_used_is_told(runs: tuple[Run, Run], tiny_policy: Path) -> None:
    file = runs[1].checkpoints / "global_step_3" / "critic" / "huggingface" / "model.safetensors"
    state = load_file(file)
    save_file({**state, "score.weight": state["score.weight"] + 1}, file, {"format": "pt"})
    assert failed(tiny_policy, runs) == ["the trainer's values are the saved critic's"]
    save_file({name: tensor for name, tensor in state.items() if name != "score.weight"}, file, {"format": "pt"})
    assert failed(tiny_policy, runs) == ["the value head is saved"]


def test_the_trials_own_settings_pass_the_checks_of_a_cluster(
    tmp_path: Path, long_models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempo_verl.config.checks.check_ray", lambda config: None)  # this machine has no such cluster
    monkeypatch.setattr(
        "tempo_verl.config.preflight.check_prompts", lambda config, questions: None
    )  # nor such a tokenizer
    for name, seed in (("labeled", 1), ("unlabeled", 2)):
        write_sums(tmp_path / f"{name}.parquet", seed)
    actor, critic = long_models
    for method in ("ppo", "tempo"):
        config = resolve_config(
            [
                "hardware=fsdp",
                f"method={method}",
                f"actor_rollout_ref.model.path='{actor}'",
                f"critic.model.path='{critic}'",
                *([] if method == "ppo" else [f"tempo.unlabeled.files='{tmp_path / 'unlabeled.parquet'}'"]),
                *([] if method == "ppo" else ["tempo.unlabeled.batch_size=8"]),
                *_common(tmp_path),
            ]
        )
        check(config)
        assert config.actor_rollout_ref.model.use_remove_padding
        assert config.actor_rollout_ref.rollout.name == "vllm"


def test_the_sums_of_the_two_sets_are_different_ones(tmp_path: Path) -> None:
    texts = []
    for name, seed in (("labeled", 1), ("unlabeled", 2)):
        write_sums(tmp_path / f"{name}.parquet", seed)
        texts.append(set(read_questions("--data", str(tmp_path / f"{name}.parquet"), needs_answers=True).prompts))
    assert not texts[0] & texts[1]
    assert [len(of) for of in texts] == [32, 32]


def test_mistakes_are_told_before_anything_starts(tmp_path: Path, tiny_policy: Path) -> None:
    console = Console(quiet=True)
    with pytest.raises(UserError, match=r"--model=nowhere: no config.json there"):
        run_trial("nowhere", tmp_path / "new", console)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no accelerator"):
            run_trial(str(tiny_policy), tmp_path / "new", console)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(UserError, match="is not empty"):
        run_trial(str(tiny_policy), tmp_path / "used", console)
