# SPDX-License-Identifier: Apache-2.0
"""Every recipe is composed for stage 0 and every method, as run.sh calls ``tempo-verl``, and put through the checks
that training begins with. Every method is composed for Megatron too. Costs in READMEs are recomputed."""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import DictConfig, OmegaConf

from tempo_verl.config.preflight import check
from tempo_verl.config.recipes import names, read
from tempo_verl.config.schema import read_settings
from tempo_verl.data.presets import presets
from tempo_verl.errors import UserError
from tempo_verl.launch import resolve_config
from tempo_verl.methods import find, known
from tempo_verl.planning.architecture import Architecture
from tempo_verl.tasks.running_sums import write_parquet

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
NAMES = names()
STAGES = ("stage0", *known())
# what the paper and the official scripts ask: which stages use D_L, which have a critic
D_L = ("stage0", "ppo", "grpo")
D_L_AND_D_U = ("tempo", "oracle", "official", "tempo_pp", "trapo")
NO_CRITIC = ("ttrl", "empo", "random_reward", "grpo", "trapo")
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
Composed = Callable[[str, str], DictConfig]


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
        for name in (*labeled, *unlabeled, *heldout):
            number = list(presets()).index(name)
            rows = [(f"{number}000+{i}=", str(1000 * number + i)) for i in range(256 if name in labeled else 60)]
            write_parquet(folder / f"{name}.parquet", rows, name)
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, long_models: tuple[Path, Path]) -> Path:
    """Where stage 0 has left a checkpoint."""
    folder = tmp_path_factory.mktemp("out")
    checkpoints = folder / "stage0/checkpoints"
    for role, model in zip(("actor", "critic"), long_models, strict=True):
        (checkpoints / "global_step_7" / role).mkdir(parents=True)
        (checkpoints / "global_step_7" / role / "huggingface").symlink_to(model)
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("7")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path, out: Path) -> Run:
    """``run(script, *arguments, **environment)``: the finished process, and its calls of ``tempo-verl``."""
    folder = tmp_path_factory.mktemp("run")
    commands, calls = folder / "bin", folder / "calls.jsonl"
    commands.mkdir()
    (commands / "tempo-verl").write_text(STAND_IN.format(python=sys.executable))
    (commands / "tempo-verl").chmod(0o755)
    (commands / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (commands / "python").chmod(0o755)
    standard = {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CALLS": str(calls),
        "DATA": str(data),
        "OUT": str(out),
    }

    def run_script(script: str, *arguments: str, **environment: str):
        calls.unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", RECIPES / script, *arguments],
            env=standard | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done, [json.loads(line) for line in calls.read_text().splitlines()] if calls.is_file() else []

    return run_script


@pytest.fixture(scope="module")
def overrides(run: Run, out: Path, data: Path, long_models: tuple[Path, Path]) -> Callable[..., list[str]]:
    """``overrides(recipe, stage, *more)``: what run.sh trains with, and the stand-ins."""

    def ask(recipe: str, stage: str, *more: str) -> list[str]:
        done, calls = run("run.sh", recipe, stage, *more)
        assert done.returncode == 0, done.stderr
        assert len(calls) == 1 and calls[0][:3] == ["train", "--run-dir", str(out / stage)]
        # this machine has neither their GPUs nor their CPUs
        stand_ins = [f"recipe.data='{data}'", f"recipe.model='{long_models[0]}'"]
        return [*calls[0][3:], *stand_ins, "ray_kwargs.ray_init.num_cpus=1000"]

    return ask


@pytest.fixture(scope="module")
def composed(overrides: Callable[..., list[str]]) -> Composed:
    """``composed(recipe, stage)``: the configuration that the stage trains with, until the next call for that stage.

    Hydra takes half a second, so it composes each stage once, of the first recipe. Another recipe is merged into that:
    all of them set the same fields, and ``test_a_recipe_merged_is_a_recipe_composed`` compares with Hydra's own.
    """
    of_first = cache(lambda stage: resolve_config(overrides(NAMES[0], stage)))
    of_recipe = cache(read)

    def compose(recipe: str, stage: str) -> DictConfig:
        config = of_first(stage)
        stand_ins = {"recipe": {"data": config.recipe.data, "model": config.recipe.model}}
        config.merge_with(of_recipe(recipe), stand_ins)
        return config

    return compose


def _names(files) -> set[str]:
    return {Path(path).stem for path in files}


# ---------------------------------------------------------------------- the recipes


def test_the_five_recipes_are_there() -> None:
    assert NAMES == ["olmo3_7b_general", "olmo3_7b_math", "qwen3_14b_math", "qwen3_8b_general", "qwen3_8b_math"]
    assert all((RECIPES / name / "README.md").is_file() for name in NAMES)
    with pytest.raises(UserError, match="recipe=gpt is unknown; choose one of olmo3_7b_general"):
        read("gpt")
    with pytest.raises(UserError, match="recipe=gpt is unknown; choose one of olmo3_7b_general"):
        resolve_config(["+recipe=gpt"])


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_recipe_merged_is_a_recipe_composed(
    name: str, composed: Composed, overrides: Callable[..., list[str]]
) -> None:
    composed(NAMES[0], "tempo")
    by_hydra = resolve_config(overrides(name, "tempo"))
    assert OmegaConf.to_container(composed(name, "tempo")) == OmegaConf.to_container(by_hydra)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_a_stage_passes_the_checks(name: str, stage: str, composed: Composed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = composed(name, stage)
    check(config)

    _, domain, prompts = _settings(name)
    labeled, unlabeled, heldout = SETS[domain]
    assert config.tempo.method == ("ppo" if stage == "stage0" else stage)
    assert config.critic.enable == (stage not in NO_CRITIC)
    assert _names(config.data.val_files) == unlabeled | heldout
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    loss = (actor.policy_loss.loss_mode, actor.clip_ratio_low, actor.clip_ratio_high, actor.loss_agg_mode)
    # whatever the method, as many samples an update
    assert actor.ppo_mini_batch_size * rollout.n == prompts // 4 * 8
    if stage in D_L:
        assert config.tempo.labeled.batch_size == config.data.train_batch_size == prompts
        assert config.tempo.unlabeled.files is None
        assert loss == ("vanilla", 0.2, 0.2, "token-mean")
    else:
        assert _names(config.tempo.unlabeled.files) == unlabeled
        # and a round
        assert config.tempo.unlabeled.batch_size * rollout.n == prompts // 2 * 8
        assert loss == ("gspo", 3e-4, 5e-4, "seq-mean-token-mean")
        assert config.tempo.predictions.n == (4 if domain == "general" else 16)
    if stage in D_L + D_L_AND_D_U:
        assert _names(config.tempo.labeled.files) == labeled
        assert config.tempo.calibration.mini_batch_size == prompts // 4
    else:
        assert config.tempo.labeled.files is None
    if stage in D_L_AND_D_U:
        assert config.tempo.labeled.batch_size == prompts // 2
    assert config.tempo.calibration.warmup_rounds == (10 if stage == "stage0" else 0)
    assert (actor.use_kl_loss, actor.entropy_coeff) == (False, 0)
    assert (actor.strategy, rollout.name, rollout.temperature, rollout.top_p) == ("fsdp2", "vllm", 1.0, 1.0)
    assert (actor.optim.lr, config.tempo.calibration.lr) == (1e-6, 1e-6)
    assert config.tempo.allow_labels_on_unlabeled == (stage == "oracle")


@pytest.mark.parametrize(
    ("name", "stage"),
    # the numbers of all recipes but one, and for each kind of batch those of that one
    [*((NAMES[0], stage) for stage in STAGES), *(("qwen3_14b_math", stage) for stage in ("ppo", "tempo", "ttrl"))],
)
def test_a_stage_is_what_verl_accepts(name: str, stage: str, composed: Composed) -> None:
    from verl.utils.config import validate_config

    config = composed(name, stage).copy()
    OmegaConf.resolve(config)
    validate_config(config, use_reference_policy=False, use_critic=config.critic.enable)


def test_the_streams_are_those_that_the_methods_declare() -> None:
    """The tables above say what the paper asks; a method that says something else is a mistake in one of both."""
    for name, method in known().items():
        assert method.learns_on() == ("labeled" if name in D_L else "unlabeled")


def test_ttrl_votes_with_64_and_trains_on_32(composed: Composed) -> None:
    config = composed("qwen3_8b_math", "ttrl")
    assert (config.tempo.ttrl.n_votes, config.tempo.ttrl.n_train, config.actor_rollout_ref.rollout.n) == (64, 32, 32)
    assert config.tempo.unlabeled.batch_size == 32


def test_only_stage_0_starts_a_value_head(composed: Composed, long_models: tuple[Path, Path]) -> None:
    first, later = composed("qwen3_8b_math", "stage0"), composed("qwen3_8b_math", "ppo")
    assert first.critic.allow_new_value_head
    assert first.critic.model.path == first.actor_rollout_ref.model.path == str(long_models[0])
    assert not later.critic.allow_new_value_head
    assert later.critic.model.path.endswith("stage0/checkpoints/global_step_7/critic/huggingface")
    assert later.actor_rollout_ref.model.path.endswith("stage0/checkpoints/global_step_7/actor/huggingface")


def test_overrides_are_heard(overrides: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["tempo.whiten=false", "trainer.nnodes=2", "trainer.n_gpus_per_node=4", "tempo.rounds=7"]
    given += ["actor_rollout_ref.rollout.n=16", "hardware=cpu"]
    config = resolve_config(overrides("qwen3_14b_math", "tempo", *given))
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node, config.tempo.rounds) == (2, 4, 7)
    assert config.tempo.whiten is False
    # half as many prompts, as many samples
    assert (config.tempo.labeled.batch_size, config.tempo.unlabeled.batch_size) == (32, 32)
    assert (config.actor_rollout_ref.actor.ppo_mini_batch_size, config.tempo.calibration.mini_batch_size) == (16, 16)
    assert config.actor_rollout_ref.rollout.name == "transformers"


def test_the_model_and_the_folder_are_the_recipes_own_if_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve_config(["+recipe=qwen3_14b_math", "method=ppo"])
    assert config.actor_rollout_ref.model.path == config.critic.model.path == "Qwen/Qwen3-14B-Base"
    monkeypatch.delenv("DATA", raising=False)
    assert config.tempo.labeled.files == ["data/dapo-math-17k.parquet"]
    monkeypatch.setenv("DATA", "/sets")
    assert config.tempo.labeled.files == ["/sets/dapo-math-17k.parquet"]


def test_a_method_of_ones_own_is_asked_for_what_it_needs(
    composed: Composed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "from tempo_verl.methods import find\n\n\nclass Mine(find('grpo')):\n    name = 'mine'\n    title = 'mine'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = OmegaConf.merge(composed("qwen3_8b_math", "grpo"), {"tempo": {"method": "mine:Mine"}})
    assert config.tempo.labeled.batch_size == 256 and config.tempo.unlabeled.files is None
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "vanilla"
    with pytest.raises(UserError, match=r"^tempo\.method=mine:Other cannot be imported"):
        read_settings(OmegaConf.merge(config, {"tempo": {"method": "mine:Other"}}))


@pytest.mark.parametrize("method", known())
def test_every_method_is_composed_for_megatron(method: str, out: Path) -> None:
    """For hardware=fsdp the recipes are, for cpu the miniature's trainings (``test_miniature.py``)."""
    config = resolve_config([f"method={method}", "hardware=megatron", f"tempo.start_from='{out / 'stage0'}'"])
    assert type(read_settings(config)) is find(method)
    assert config.critic.strategy == "megatron"
    assert config.critic.model.path.endswith("critic/huggingface")


# ---------------------------------------------------------------------- run.sh


def test_a_stage_starts_from_stage_0(run: Run, out: Path) -> None:
    done, calls = run("run.sh", "qwen3_8b_math", "stage0", "tempo.rounds=3")
    assert done.returncode == 0, done.stderr
    assert calls == [["train", "--run-dir", f"{out}/stage0", "+recipe=qwen3_8b_math", "method=ppo", "tempo.rounds=3"]]
    _, calls = run("run.sh", "qwen3_8b_math", "ppo")
    assert calls[0][2:] == [f"{out}/ppo", "+recipe=qwen3_8b_math", "method=ppo", f"tempo.start_from='{out}/stage0'"]


def test_a_verifier_that_data_wrote_into_the_files_is_allowed(run: Run) -> None:
    _, calls = run("run.sh", "qwen3_8b_general", "stage0", "tempo.rounds=3", VERIFIER="my.judge:verify")
    assert calls[0][-2:] == ["tempo.verifier.allow=[my.judge:verify]", "tempo.rounds=3"]
    config = resolve_config(["hardware=fsdp", calls[0][-2]])
    assert config.tempo.verifier.allow == ["my.judge:verify"]


@pytest.mark.parametrize(
    "arguments", [(), ("qwen3_8b_math",), ("qwen3_8b_math", "sft"), ("gpt-5", "tempo"), ("", "tempo")]
)
def test_a_wrong_call_is_told_what_there_is(arguments: tuple[str, ...], run: Run) -> None:
    done, calls = run("run.sh", *arguments)
    assert (done.returncode, calls) == (2, [])
    assert len(done.stderr.splitlines()) == 1
    assert all(name in done.stderr for name in (*NAMES, *STAGES))


def test_tempo_without_stage_0_says_so(composed: Composed, tmp_path: Path) -> None:
    config = OmegaConf.merge(composed("qwen3_8b_math", "tempo"), {"tempo": {"start_from": str(tmp_path / "stage0")}})
    with pytest.raises(UserError, match=r"tempo\.start_from=.*stage0: .*no such folder"):
        check(config)


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


def test_data_for_no_recipe_says_what_there_is(run: Run) -> None:
    done, calls = run("data.sh", "gpt-5")
    assert (done.returncode, calls, len(done.stderr.splitlines())) == (2, [], 1)
    assert all(name in done.stderr for name in NAMES)


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
def test_costs_are_those_of_the_settings(name: str, cost: ModuleType, composed: Composed) -> None:
    config, recipe = composed(name, "tempo"), cost.Recipe(name)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert (rollout.n, config.tempo.rounds, config.trainer.test_freq) == (cost.N, recipe.rounds, recipe.test_freq)
    assert config.trainer.nnodes * config.trainer.n_gpus_per_node == recipe.gpus == 8
    assert actor.ppo_max_token_len_per_gpu == config.critic.ppo_max_token_len_per_gpu == recipe.micro_batch
    assert config.data.max_prompt_length + config.data.max_response_length == rollout.max_model_len == recipe.longest
    assert rollout.gpu_memory_utilization == recipe.vllm_share
    assert recipe.half == config.tempo.unlabeled.batch_size * rollout.n
    assert recipe.predictions_n == config.tempo.predictions.n
    assert (recipe.before, recipe.calibrated) == (config.tempo.predictions.before, config.tempo.predictions.labeled)
    assert recipe.tensor_parallel == rollout.tensor_model_parallel_size
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
    model = Architecture(
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
    assert recipe.predictions("tempo") == recipe.generation(160 * 64 + (160 + 128) * 16)
    assert (recipe.predictions("ttrl"), recipe.predictions("ppo")) == (recipe.generation(160 * (64 + 16)), 0.0)
    assert recipe.generation(1000) == pytest.approx(1000 * 8192 / recipe.throughput() / 3600)


@pytest.mark.parametrize("name", NAMES)
def test_training_and_generation_fit(name: str, cost: ModuleType) -> None:
    recipe = cost.Recipe(name)
    assert max(recipe.peak, recipe.critic_peak) < 0.9 * cost.GPU_MEMORY
    assert recipe.kv_space() > 8 * recipe.model.kv_bytes(recipe.longest)


def test_cost_is_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["cost.py", "qwen3_14b_math", "16"])
    runpy.run_path(str(RECIPES / "cost.py"), run_name="__main__")
    assert "days on 16 GPUs" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["cost.py"])
    with pytest.raises(SystemExit, match=r"^cost\.py: recipe= is unknown; choose one of olmo3_7b_general"):
        runpy.run_path(str(RECIPES / "cost.py"), run_name="__main__")
