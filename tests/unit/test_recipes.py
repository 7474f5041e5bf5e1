# SPDX-License-Identifier: Apache-2.0
"""Every stage of every recipe is run with a stand-in for ``tempo-verl``; what it would have trained is composed with
the shipped configuration and put through the checks that training begins with. Costs in READMEs are recomputed."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from tempo_verl.trainer.methods import METHODS

from tempo_verl.data.prepare import Settings, prepare
from tempo_verl.data.presets import presets

if TYPE_CHECKING:
    from omegaconf import DictConfig

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = sorted(path.parent.name for path in RECIPES.glob("*/settings.sh"))
STAGES = ("stage0", *METHODS)
D_L = ("stage0", "ppo", "grpo")
D_L_AND_D_U = ("tempo", "oracle", "official")
NO_CRITIC = ("ttrl", "empo", "random_reward", "grpo")
SETS = {
    "math": ({"dapo-math-17k"}, {"aime24", "aime25", "beyond-aime"}, {"aime26", "olymmath"}),
    "general": ({"dolci-rl-zero-general"}, {"bbh", "agieval", "zebralogic"}, {"gpqa-diamond"}),
}
STAND_IN = """#!{python}
import json, os, sys
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
"""
Run = Callable[..., tuple[subprocess.CompletedProcess, list[list[str]]]]


def _settings(name: str) -> tuple[str, str, int]:
    """Model, domain and prompts a step."""
    model, _, domain = name.rpartition("_")
    return model, domain, 128 if model == "qwen3_14b" else 256


@pytest.fixture
def cost(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``recipes/cost.py``."""
    monkeypatch.syspath_prepend(RECIPES)
    return importlib.import_module("cost")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for all sets: made-up sums, 256 in D_L and 60 in each other."""
    folder = tmp_path_factory.mktemp("sets")
    for labeled, unlabeled, heldout in SETS.values():
        for kind, sets in (("labeled", labeled), ("unlabeled", unlabeled), ("heldout", heldout)):
            for name in sets:
                number = list(presets()).index(name)
                rows = [
                    {"question": f"What is {number}000 + {i}?", "answer": str(1000 * number + i)}
                    for i in range(256 if kind == "labeled" else 60)
                ]
                source = folder / f"{name}.jsonl"
                source.write_text("".join(json.dumps(row) + "\n" for row in rows))
                prepare(Settings((str(source),), folder / f"{name}.parquet", kind))
    return folder


@pytest.fixture
def run(tmp_path: Path, data: Path, tiny_policy: Path, tiny_critic: Path) -> Run:
    """``run(script, *arguments, **environment)``: the finished process, and the calls of ``tempo-verl``.

    Stage 0 has left a checkpoint.
    """
    stand_in = tmp_path / "bin/tempo-verl"
    stand_in.parent.mkdir()
    stand_in.write_text(STAND_IN.format(python=sys.executable))
    stand_in.chmod(0o755)
    checkpoints = tmp_path / "out/stage0/checkpoints"
    for role, model in (("actor", tiny_policy), ("critic", tiny_critic)):
        (checkpoints / "global_step_7" / role).mkdir(parents=True)
        (checkpoints / "global_step_7" / role / "huggingface").symlink_to(model)
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("7")
    calls = tmp_path / "calls.jsonl"
    standard = {
        "PATH": f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(calls),
        "DATA": str(data),
        "MODEL": str(tiny_policy),
        "OUT": str(tmp_path / "out"),
    }

    def run_script(script: str, *arguments: str, **environment: str):
        done = subprocess.run(
            ["bash", RECIPES / script, *arguments],
            env=standard | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done, [json.loads(line) for line in calls.read_text().splitlines()] if calls.is_file() else []

    return run_script


@pytest.fixture
def composed(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DictConfig]:
    """``composed(recipe, stage, *overrides, **environment)``: the configuration that the stage trains with."""
    from tempo_verl.launch import resolve_config

    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def compose(recipe: str, stage: str, *overrides: str, **environment: str) -> DictConfig:
        done, calls = run("run.sh", recipe, stage, *overrides, **environment)
        assert done.returncode == 0, done.stderr
        call = calls[-1]
        assert call[:2] == ["train", "--run-dir"]
        assert Path(call[2]).name == stage
        # this machine has neither their GPUs nor their CPUs
        return resolve_config([*call[3:], "ray_kwargs.ray_init.num_cpus=1000"])

    return compose


def _names(files) -> set[str]:
    return {Path(path).stem for path in files}


# ---------------------------------------------------------------------- run.sh


def test_the_five_recipes_are_there() -> None:
    assert NAMES == ["olmo3_7b_general", "olmo3_7b_math", "qwen3_14b_math", "qwen3_8b_general", "qwen3_8b_math"]
    assert all((RECIPES / name / "README.md").is_file() for name in NAMES)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", NAMES)
def test_a_stage_passes_the_checks(name: str, stage: str, composed: Callable[..., DictConfig]) -> None:
    from omegaconf import OmegaConf
    from tempo_verl.preflight import check
    from verl.utils.config import validate_config

    config = composed(name, stage)
    check(config)
    validate_config(config, use_reference_policy=False, use_critic=config.critic.enable)
    OmegaConf.resolve(config)

    _, domain, prompts = _settings(name)
    labeled, unlabeled, heldout = SETS[domain]
    method = "ppo" if stage == "stage0" else stage
    assert config.tempo.method == method
    assert config.critic.enable == (stage not in NO_CRITIC)
    assert _names(config.data.val_files) == unlabeled | heldout
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    if stage in D_L:
        assert config.tempo.labeled.batch_size == prompts
        assert actor.policy_loss.loss_mode == "vanilla"
    else:
        assert _names(config.tempo.unlabeled.files) == unlabeled
        # whatever the method, as many samples a round and an update
        assert config.tempo.unlabeled.batch_size * rollout.n == prompts // 2 * 8
        assert actor.ppo_mini_batch_size * rollout.n == prompts // 4 * 8
        assert (actor.policy_loss.loss_mode, actor.clip_ratio_low, actor.clip_ratio_high) == ("gspo", 3e-4, 5e-4)
        assert config.tempo.predictions.n == (4 if domain == "general" else 16)
    if stage in D_L + D_L_AND_D_U:
        assert _names(config.tempo.labeled.files) == labeled
    else:
        assert config.tempo.labeled.files is None
    if stage in D_L_AND_D_U:
        assert config.tempo.labeled.batch_size == prompts // 2
    assert (actor.use_kl_loss, actor.entropy_coeff) == (False, 0)
    assert (rollout.name, rollout.temperature, rollout.top_p) == ("vllm", 1.0, 1.0)
    assert (actor.optim.lr, config.tempo.calibration.lr) == (1e-6, 1e-6)


def test_ttrl_votes_with_64_and_trains_on_32(composed: Callable[..., DictConfig]) -> None:
    config = composed("qwen3_8b_math", "ttrl")
    assert (config.tempo.ttrl.n_votes, config.tempo.ttrl.n_train, config.actor_rollout_ref.rollout.n) == (64, 32, 32)
    assert config.tempo.unlabeled.batch_size == 32


def test_only_stage_0_starts_a_value_head(composed: Callable[..., DictConfig], tiny_policy: Path) -> None:
    first, later = composed("qwen3_8b_math", "stage0"), composed("qwen3_8b_math", "ppo")
    assert first.critic.allow_new_value_head and first.critic.model.path == str(tiny_policy)
    assert not later.critic.allow_new_value_head
    assert later.critic.model.path.endswith("stage0/checkpoints/global_step_7/critic/huggingface")
    assert later.actor_rollout_ref.model.path.endswith("stage0/checkpoints/global_step_7/actor/huggingface")


def test_variables_and_overrides_are_heard(composed: Callable[..., DictConfig]) -> None:
    config = composed("qwen3_14b_math", "tempo", "tempo.whiten=false", NODES="2", GPUS="4", ROUNDS="7")
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node, config.tempo.rounds) == (2, 4, 7)
    assert config.tempo.whiten is False


def test_the_model_is_the_recipes_own_if_none_is_given(composed: Callable[..., DictConfig]) -> None:
    assert composed("qwen3_14b_math", "stage0", MODEL="").actor_rollout_ref.model.path == "Qwen/Qwen3-14B-Base"


@pytest.mark.parametrize(
    "arguments", [(), ("qwen3_8b_math",), ("qwen3_8b_math", "sft"), ("gpt-5", "tempo"), ("", "tempo")]
)
def test_a_wrong_call_is_told_what_there_is(arguments: tuple[str, ...], run: Run) -> None:
    done, calls = run("run.sh", *arguments)
    assert (done.returncode, calls) == (2, [])
    assert len(done.stderr.splitlines()) == 1
    assert all(name in done.stderr for name in (*NAMES, *STAGES))


def test_tempo_without_stage_0_says_so(run: Run, tmp_path: Path) -> None:
    done, calls = run("run.sh", "qwen3_8b_math", "tempo", OUT=str(tmp_path / "elsewhere"))
    assert (done.returncode, calls) == (2, [])
    assert "run stage0 first" in done.stderr and len(done.stderr.splitlines()) == 1


# ---------------------------------------------------------------------- data.sh


@pytest.mark.parametrize("name", NAMES)
def test_data_prepares_what_the_stages_read(name: str, run: Run, tmp_path: Path) -> None:
    import typer

    from tempo_verl.cli.main import app

    labeled, unlabeled, heldout = SETS[_settings(name)[1]]
    done, calls = run("data.sh", name, DATA=str(tmp_path / "new"), VERIFIER="my.judge:verify")
    assert done.returncode == 0, done.stderr
    known, seen = [], {}
    command = typer.main.get_command(app).commands["prepare"]
    for call in calls:
        assert call[0] == "prepare"
        options = command.make_context("prepare", call[1:]).params
        assert options["preset"] in presets()
        assert options["out"] == tmp_path / "new" / f"{options['preset']}.parquet"
        kind = options["kind"].value
        # benchmarks stay whole, D_L gives way
        assert [path.stem for path in options["against"] or ()] == ([] if kind == "unlabeled" else known)
        assert options["verifier"] == ("my.judge:verify" if kind == "labeled" else "auto")
        known.append(options["preset"])
        seen.setdefault(kind, set()).add(options["preset"])
    assert seen == {"labeled": labeled, "unlabeled": unlabeled, "heldout": heldout}


def test_files_that_are_there_are_kept(run: Run) -> None:
    done, calls = run("data.sh", "qwen3_8b_math")
    assert (done.returncode, calls) == (0, [])


def test_free_text_references_need_a_verifier(run: Run, tmp_path: Path) -> None:
    done, calls = run("data.sh", "qwen3_8b_general", DATA=str(tmp_path / "new"))
    assert (done.returncode, calls) == (2, [])
    assert "VERIFIER=module:function" in done.stderr and len(done.stderr.splitlines()) == 1


# ---------------------------------------------------------------------- cost.py


@pytest.mark.parametrize("name", NAMES)
def test_a_readme_shows_its_own_costs(name: str, cost: ModuleType) -> None:
    readme = (RECIPES / name / "README.md").read_text(encoding="utf-8")
    assert cost.tables(cost.Recipe(name)) in readme, f"put the output of `python recipes/cost.py {name}` there"
    assert "Estimated, never run by us" in readme


def test_costs_know_every_stage_and_set(cost: ModuleType) -> None:
    assert set(cost.WORK) == set(STAGES)
    assert set(cost.QUESTIONS) == set().union(*(unlabeled | heldout for _, unlabeled, heldout in SETS.values()))


@pytest.mark.parametrize("name", NAMES)
def test_costs_are_those_of_the_settings(name: str, cost: ModuleType, composed: Callable[..., DictConfig]) -> None:
    config = composed(name, "tempo")
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert (rollout.n, config.tempo.rounds, config.trainer.test_freq) == (cost.N, cost.ROUNDS, cost.TEST_FREQ)
    assert actor.ppo_max_token_len_per_gpu == config.critic.ppo_max_token_len_per_gpu == cost.MICRO_BATCH
    assert config.data.max_prompt_length + config.data.max_response_length == rollout.max_model_len == cost.LONGEST
    assert rollout.gpu_memory_utilization == cost.VLLM_SHARE
    assert cost.Recipe(name).half == config.tempo.unlabeled.batch_size * rollout.n
    assert cost.Recipe(name).predictions_n == config.tempo.predictions.n
    assert config.tempo.predictions.labeled == cost.CALIBRATED
    assert cost.Recipe(name).tensor_parallel == rollout.tensor_model_parallel_size
    assert actor.fsdp_config.model_dtype == "fp32"
    assert actor.fsdp_config.param_offload and actor.fsdp_config.optimizer_offload and config.critic.fsdp.param_offload


@pytest.mark.parametrize("name", ["olmo3_7b", "qwen3_8b", "qwen3_14b"])
def test_parameters_are_those_of_the_architecture(name: str, cost: ModuleType) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = cost.MODELS[name]
    config = AutoConfig.for_model(
        "olmo3" if name.startswith("olmo3") else "qwen3",
        num_hidden_layers=model.layers,
        hidden_size=model.hidden,
        intermediate_size=model.mlp,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        vocab_size=model.vocabulary,
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config)
    assert model.actor == pytest.approx(sum(p.numel() for p in built.parameters()), rel=1e-3)
    assert model.critic == pytest.approx(sum(p.numel() for p in built.model.parameters()), rel=1e-3)
    assert config.layer_types.count("full_attention") == model.full_layers


def test_costs_worked_by_hand(cost: ModuleType) -> None:
    model = cost.Model(
        layers=2, hidden=4, mlp=3, heads=2, kv_heads=1, vocabulary=10, full_layers=1, window=5, head_dim=2
    )
    # attention q and o 4 x 4, k and v 4 x 2; three 4 x 3
    assert model.layer == 2 * 16 + 2 * 8 + 36
    assert (model.actor, model.critic) == (2 * 84 + 80, 2 * 84 + 40)
    # keys and values, 2 bytes each, 1 head of 2; 7 positions in one layer, 5 in the other
    assert model.kv_bytes(7) == 2 * 2 * 2 * 12
    assert model.mean_kv_bytes(4, 4) == 8 * (8 + 10 + 11 + 12) / 4

    recipe = cost.Recipe("qwen3_8b_math", gpus=16)
    assert recipe.half == 128 * 8
    assert recipe.validated == (30 + 30 + 100 + 30 + 100) * 16
    assert recipe.flops(cost.Work(1, 1, 1)) == pytest.approx(8 * 8.19e9 * 1024 * 8448, rel=1e-3)
    assert recipe.rest(cost.Work(1, 1, 1)) == pytest.approx(8 * 8.19e9 * 1024 * 8448 / (0.3 * 989e12) / 3600, rel=1e-3)
    assert recipe.state == pytest.approx(16 * 8.19e9 / 16, rel=1e-3)
    # 55 sequences of 0.64 GB and 16.4 GB of weights, all read once a token at half of 3.35 TB/s
    assert recipe.throughput() == pytest.approx(55 / ((16.4e9 + 55 * 0.6417e9) / 1.675e12), rel=2e-3)
    assert recipe.predictions("tempo") == recipe.generation((160 + 128) * 16)
    assert (recipe.predictions("ttrl"), recipe.predictions("ppo")) == (recipe.generation(160 * 16), 0.0)
    assert recipe.generation(1000) == pytest.approx(1000 * 8192 / recipe.throughput() / 3600)


@pytest.mark.parametrize("name", NAMES)
def test_training_and_generation_fit(name: str, cost: ModuleType) -> None:
    recipe = cost.Recipe(name)
    assert max(recipe.peak, recipe.critic_peak) < 0.9 * cost.GPU_MEMORY
    assert recipe.kv_space() > 8 * recipe.model.kv_bytes(cost.LONGEST)


def test_cost_is_a_command() -> None:
    done = subprocess.run(
        [sys.executable, RECIPES / "cost.py", "qwen3_14b_math", "16"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "days on 16 GPUs" in done.stdout
