# SPDX-License-Identifier: Apache-2.0
"""``tempo-verl plan`` and ``tempo-verl train --dry-run``: numbers worked by hand, mistakes, and that nothing starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig
from typer.testing import CliRunner

from tempo_verl.cli.main import app
from tempo_verl.config.composed import resolve_config
from tempo_verl.config.schema import read_settings
from tempo_verl.errors import UserError
from tempo_verl.methods import known
from tempo_verl.planning.architecture import MODELS, Architecture, find
from tempo_verl.planning.estimate import Assumed, advice, assumed, estimate
from tempo_verl.planning.machine import read
from tempo_verl.planning.work import METHODS, phases
from tempo_verl.quickstart import FAST, _stage0_overrides

SMALL = Architecture(2, 4, 3, 2, 1, 10, full_layers=2, head_dim=2)
QWEN = MODELS["qwen3-8b"]
IMPORTED = """
import sys
from tempo_verl.cli.main import main
from tempo_verl.lazy import is_waiting

sys.argv = ["tempo-verl", "plan", "--model", "qwen3-8b", "--gpus", "8xH100"]
try:
    main()
except SystemExit:
    pass
print(is_waiting("torch"), sorted({"verl", "transformers", "ray"} & set(sys.modules)))
"""


def config_of(*overrides: str) -> DictConfig:
    return resolve_config(["hardware=fsdp", *overrides])


def models(model: Architecture) -> dict[str, tuple[Architecture, int]]:
    return {"actor": (model, model.policy_parameters), "critic": (model, model.critic_parameters)}


def test_a_forward_pass_by_hand() -> None:
    # two layers of 84 weights and a head of 4 x 10; attention 4 x 2 heads x 2 x 6 positions in each layer, half of it
    assert SMALL.forward_flops(12, 6, 10, causal=False) == 12 * (2 * (168 + 40) + 4 * 4 * 12)
    assert SMALL.forward_flops(12, 6, 1) == 12 * (2 * (168 + 4) + 4 * 4 * 6)


def test_a_round_of_tempo_by_hand() -> None:
    config = config_of("tempo.calibration.interval=2", "tempo.rounds=4", "tempo.calibration.warmup_rounds=1")
    found = {p.name: p for p in phases(config, read_settings(config), SMALL, SMALL, 2, 4)}
    # D_L in rounds 1 and 3, D_U in 2 to 4; 32 prompts x 8 each
    assert found["rollout"].responses == 256 * (0.5 + 0.75)
    assert found["rollout"].tokens == 4 * 256 * 1.25
    assert found["E-step (critic)"].responses == 128
    assert found["M-step (policy)"].responses == 192
    assert found["M-step (policy)"].flops == 3 * SMALL.forward_flops(192 * 6, 6, 10)
    assert found["values"].flops == SMALL.forward_flops(320 * 6, 6, 1)


def test_votes_are_drawn_and_some_of_them_train() -> None:
    config = config_of("method=ttrl", "tempo.ttrl.n_votes=16", "tempo.ttrl.n_train=4", "actor_rollout_ref.rollout.n=4")
    found = {p.name: p for p in phases(config, read_settings(config), SMALL, SMALL, 2, 4)}
    assert (found["rollout"].responses, found["M-step (policy)"].responses) == (32 * 16, 32 * 4)
    assert "values" not in found


def test_every_method_is_known() -> None:
    assert set(METHODS) == set(known())


def test_memory_by_hand() -> None:
    config = config_of("critic.fsdp.param_offload=true", "critic.fsdp.optimizer_offload=true")
    found = estimate(config, models(QWEN), read("8xH100"), Assumed(256, 4096))
    policy, critic, rollout = found.memory.stages
    parts = {part.name: part.size for part in policy.parts}
    share = QWEN.policy_parameters / 8
    assert (parts["weights"], parts["gradients"], parts["Adam"]) == (4 * share, 4 * share, 8 * share)
    assert parts["layer inputs kept"] == 2 * 36 * 16_384 * 4096
    assert parts["logits, three copies"] == 6 * 16_384 * 151_936
    assert "critic, at rest" not in parts
    assert {part.name: part.size for part in critic.parts}["actor, at rest"] == 12 * share
    assert found.memory.host == 12 * QWEN.critic_parameters
    assert found.memory.kv_space == 0.5 * 80e9 - 4e9 - 2 * QWEN.policy_parameters
    assert rollout.size == pytest.approx(40e9 + 12 * share + 3e9)
    assert found.checkpoints["actor"] == (16 * QWEN.policy_parameters, 1)


def test_what_does_not_fit_is_told_with_what_does() -> None:
    config, machine = config_of(), read("8xH100")
    given = assumed(config, None, None, 0.3, 0.5)
    sizes = models(MODELS["qwen3-14b"])
    assert any("training the policy takes" in told for told in estimate(config, sizes, machine, given).problems)
    outcomes = advice(config, sizes, machine, given)
    overrides = next(overrides for overrides, outcome in outcomes if outcome == "fits")
    assert "critic.fsdp.optimizer_offload=true" in overrides
    # what is advised is a valid override of the command, and says the same there
    assert estimate(config_of(*overrides), sizes, machine, given).problems == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "gpt", "--gpus", "8xH100"], "--model=gpt is unknown; choose one of"),
        (["--model", "qwen3-8b", "--gpus", "H100"], "--gpus=H100: write 8xH100"),
        (["--model", "qwen3-8b", "--gpus", "8xT9"], "--gpus=8xT9: t9 is unknown; choose one of"),
        (["--gpus", "8xH100"], "--model is not set"),
        (["--model", "qwen3-8b", "--gpus", "7xH100"], "not a multiple of the 7 data-parallel"),
        (["--model", "qwen3-8b", "--gpus", "8xH100", "--mfu", "2"], "--mfu=2.0: must be"),
        (["--model", "qwen3-8b", "--gpus", "8xH100", "tempo.round=3"], "did you mean tempo.rounds?"),
        (["--model", "qwen3-8b", "--gpus", "8xH100", "trainer.n_gpus_per_node=4"], "leave these two out"),
        (
            ["--model", "qwen3-8b", "--gpus", "8xH100", "actor_rollout_ref.rollout.tensor_model_parallel_size=3"],
            "tensor_model_parallel_size=3 does not divide the 8 GPUs",
        ),
    ],
)
def test_a_mistake_ends_in_one_line(arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["plan", *arguments])
    assert isinstance(done.exception, UserError)
    assert told in str(done.exception)
    assert "\n" not in str(done.exception)


def test_a_plan_imports_no_torch_and_fits_80_columns(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True []"
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if line[:1] in "┃│")


def test_a_model_by_its_directory(tiny_policy: Path, tiny_critic: Path) -> None:
    from safetensors import safe_open

    for path, planned in (
        (tiny_policy, find(str(tiny_policy)).policy_parameters),
        (tiny_critic, find(str(tiny_critic)).critic_parameters),
    ):
        with safe_open(path / "model.safetensors", framework="pt") as stored:
            assert planned == sum(stored.get_tensor(name).numel() for name in stored.keys())  # noqa: SIM118


def test_a_kind_of_model_that_is_not_known_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(UserError, match=r"model_type=mamba is not known"):
        find(str(tmp_path))


def test_a_dry_run_of_the_quickstart_starts_nothing(tmp_path: Path, tiny_task: Path, tiny_policy: Path) -> None:
    """The quickstart's own settings, with its files in place; a critic that is new needs no head of its own."""
    import ray

    (tmp_path / "data").symlink_to(tiny_task)
    (tmp_path / "policy").symlink_to(tiny_policy)
    overrides = [*_stage0_overrides(tmp_path, FAST, 1), "tempo.labeled.batch_size=8"]
    run_dir = tmp_path / "runs" / "stage0"
    done = CliRunner().invoke(app, ["train", "--dry-run", "--run-dir", str(run_dir), *overrides])
    assert done.exception is None, done.output
    assert "all checks passed; nothing was started" in done.output
    assert "method: ppo" in done.output and "checkpoints take up to" in done.output
    assert all(len(line) <= 80 for line in done.output.splitlines() if line[:1] in "┃│")
    assert not run_dir.exists()
    assert not ray.is_initialized()
    written = yaml.safe_load((tmp_path / "runs" / "stage0.dry-run.yaml").read_text())
    assert written["tempo"]["status_file"] == str(run_dir / "status.json")


def test_a_dry_run_where_a_run_is_submitted(tmp_path: Path, tiny_task: Path, tiny_policy: Path) -> None:
    (tmp_path / "data").symlink_to(tiny_task)
    (tmp_path / "policy").symlink_to(tiny_policy)
    stage0 = [one for one in _stage0_overrides(tmp_path, FAST, 1) if not one.startswith("hardware=")]
    nodes = [
        "hardware=fsdp",
        "algorithm.rollout_correction.rollout_is=null",
        "trainer.nnodes=2",
        "trainer.n_gpus_per_node=1",
        "tempo.labeled.batch_size=8",
    ]
    minis = ["actor_rollout_ref.actor.ppo_mini_batch_size=8", "ray_kwargs.ray_init.num_cpus=4"]
    arguments = ["train", "--dry-run", "--run-dir", str(tmp_path / "run"), *stage0, *nodes, *minis]
    done = CliRunner().invoke(app, arguments)
    assert done.exception is None, done.output
    told = " ".join(done.output.split())
    assert (
        "to be run elsewhere, or in a Ray cluster: ray_kwargs.ray_init.num_cpus: Ray has 4 CPUs, this run needs" in told
    )
    assert "all other checks passed; nothing was started" in told


def test_a_dry_run_ends_as_training_does(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["train", "--dry-run", "--run-dir", str(tmp_path / "run"), "tempo.rounds=-1"])
    assert str(done.exception) == "tempo.rounds=-1 must be at least 1"
    assert list(tmp_path.iterdir()) == []
    done = CliRunner().invoke(app, ["train", "--out", str(tmp_path / "x.yaml")])
    assert str(done.exception) == "--out: only with --dry-run"
