# SPDX-License-Identifier: Apache-2.0
"""Every shell script under examples/, and that for verl-recipe, is run with stand-ins for the commands it calls.

What it would have trained is composed with the shipped configuration and put through the checks that training begins
with. The files of examples/cluster that are no scripts are read as KubeRay and SkyPilot read them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from kuberay import RayJob
from packaging.requirements import Requirement

from tempo_verl.data.prepare import Settings, prepare
from tempo_verl.data.validation import read_questions
from tempo_verl.rewards import score

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "examples/cluster"
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("examples", "recipes/verl_recipe")
    for pattern in ("*.sh", "*.sbatch")
    for path in (ROOT / folder).rglob(pattern)
)
# script, its arguments (MODEL: start from that, not from stage 0; OUT: the folder), and the methods that it trains
CASES = [
    ("examples/own_data/run.sh", (), ("ppo", "tempo")),
    ("examples/cluster/ray_job.sh", (), ("tempo",)),
    ("examples/cluster/ray_job.sh", ("method=ppo", "MODEL"), ("ppo",)),
    ("examples/cluster/node.sh", (), ("tempo",)),
    ("examples/cluster/slurm.sbatch", (), ("tempo",)),
    ("examples/cluster/train.sh", ("tempo.rounds=7",), ("tempo",)),
    ("recipes/verl_recipe/run_tempo.sh", (), ("tempo",)),
    ("recipes/verl_recipe/run_tempo.sh", ("method=ppo", "MODEL"), ("ppo",)),
    ("examples/smollm2/run.sh", ("MODEL", "OUT"), ("ppo", "tempo")),
]
QUESTIONS = {"labeled": 256, "unlabeled": 160, "heldout": 4}
# Writes its own call down. A cluster has the nodes that called `ray start`; its head listens as Ray's does; srun runs
# what it is given as one task for each of two nodes.
STAND_IN = """#!{python}
import json, os, signal, socket, subprocess, sys
command = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps(command) + "\\n")
if command[:2] == ["ray", "status"]:
    called = map(json.loads, open(os.environ["CALLS"]))
    print(*(f" 1 node_{{i}}" for i, call in enumerate(called) if call[:2] == ["ray", "start"]), sep="\\n")
elif command[:3] == ["ray", "start", "--head"]:
    head = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
    signal.pause()
elif "hostname" in command:
    print("127.0.0.1 192.0.2.1")
elif command[0] == "srun":
    task = command[command.index("bash"):]
    nodes = [subprocess.Popen(task, env={{**os.environ, "SLURM_NODEID": str(i)}}) for i in (0, 1)]
    sys.exit(max(node.wait() for node in nodes))
"""


def _write_jsonl(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _run(*command: str | Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the three parquet files, made from JSON lines; D_U has answers in every other row."""
    folder = tmp_path_factory.mktemp("own_data")
    for offset, (split, number) in enumerate(QUESTIONS.items()):
        rows = [
            {"question": f"What is {offset}000 + {i}?", "answer": f"so\n#### {1000 * offset + i}"}
            for i in range(number)
        ]
        if split == "unlabeled":
            rows = [row if i % 2 else {"question": row["question"]} for i, row in enumerate(rows)]
        source = _write_jsonl(folder / f"{split}.jsonl", rows)
        prepare(Settings((str(source),), folder / f"{split}.parquet", split))
    return folder


@pytest.fixture(scope="module")
def smollm2_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the three parquet files of examples/smollm2, made as its script makes them."""
    folder = tmp_path_factory.mktemp("smollm2")
    made = _run(sys.executable, ROOT / "examples/smollm2/questions.py", "--out", folder)
    assert made.returncode == 0, made.stderr
    for split in QUESTIONS:
        prepare(Settings((str(folder / f"{split}.jsonl"),), folder / f"{split}.parquet", split, template="keep"))
    return folder


@pytest.fixture
def environment(tmp_path: Path, data: Path, free_port: int, long_models: tuple[Path, Path]) -> dict[str, str]:
    """Stand-ins first on PATH, and every variable a script asks for; stage 0 has left a checkpoint."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("tempo-verl", "ray", "srun", "pip", "python"):
        (commands / name).write_text(STAND_IN.format(python=sys.executable))
        (commands / name).chmod(0o755)
    checkpoints = tmp_path / "out/stage0/checkpoints"
    for role, model in zip(("actor", "critic"), long_models, strict=True):
        (checkpoints / "global_step_7" / role).mkdir(parents=True)
        (checkpoints / "global_step_7" / role / "huggingface").symlink_to(model)
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("7")
    return {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls.jsonl"),
        "DATA": str(data),
        "LABELED": str(data / "labeled.parquet"),
        "UNLABELED": str(data / "unlabeled.parquet"),
        "VALIDATION": f"{data / 'heldout.parquet'},{data / 'labeled.parquet'}",
        "START": str(tmp_path / "out/stage0"),
        "OUT": str(tmp_path / "out"),
        "SLURM_SUBMIT_DIR": str(CLUSTER),
        "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "64",
        "HEAD": "127.0.0.1",
        "PORT": str(free_port),
        "RAY_AUTH_TOKEN": "0" * 32,
    }


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _overrides(command: list[str]) -> list[str] | None:
    """What a call of ``tempo-verl train`` or of verl's launcher sets; None for any other call."""
    if "tempo-verl" in command:
        call = command[command.index("tempo-verl") + 1 :]
        if call[0] != "train":
            return None
        assert call[1] == "--run-dir"
        return call[3:]
    if "verl.trainer.main_ppo" in command:
        call = command[command.index("verl.trainer.main_ppo") + 1 :]
        assert call[:4] == ["--config-path", "pkg://tempo_verl.config", "--config-name", "tempo_trainer"]
        return call[4:]
    return None


def test_every_script_is_tried() -> None:
    assert {script for script, _, _ in CASES} == set(SCRIPTS)


@pytest.mark.parametrize(
    ("script", "arguments", "methods"), CASES, ids=lambda case: case if isinstance(case, str) else "+".join(case)
)
def test_a_script_trains_what_the_checks_let_pass(
    script: str,
    arguments: tuple[str, ...],
    methods: tuple[str, ...],
    environment: dict[str, str],
    long_models: tuple[Path, Path],
    smollm2_data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from omegaconf import OmegaConf

    from tempo_verl.config.preflight import check
    from tempo_verl.launch import resolve_config

    if "own_data" in script or "MODEL" in arguments:
        environment |= {"MODEL": str(long_models[0])}
    if "node.sh" in script:
        environment |= {"NODE_RANK": "0"}
    overrides = [argument for argument in arguments if argument != "MODEL"]
    on_cpu = "smollm2" in script
    if on_cpu:
        environment["DATA"] = str(smollm2_data)
    given = [environment[argument] for argument in arguments] if on_cpu else overrides
    done = _run("bash", ROOT / script, *given, environment=environment)
    assert done.returncode == 0, done.stderr
    calls = [json.loads(line) for line in Path(environment["CALLS"]).read_text().splitlines()]
    trained = [overrides for call in calls if (overrides := _overrides(call)) is not None]

    # this machine has neither their GPUs nor their CPUs
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    configs = [resolve_config([*overrides, "ray_kwargs.ray_init.num_cpus=1000"]) for overrides in trained]
    assert tuple(config.tempo.method for config in configs) == methods
    for config in configs:
        check(config)
        assert config.actor_rollout_ref.rollout.name == ("transformers" if on_cpu else "vllm")
        longest = config.data.max_prompt_length + config.data.max_response_length
        assert config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu >= longest
        assert config.critic.ppo_max_token_len_per_gpu >= longest
        OmegaConf.resolve(config)
        # stage 0 begins with a model, what follows it with its actor and critic
        started = [config.actor_rollout_ref.model.path, config.critic.model.path]
        saved = Path(environment["OUT"]) / "stage0/checkpoints/global_step_7"
        later = [str(saved / role / "huggingface") for role in ("actor", "critic")]
        assert started == ([str(long_models[0])] * 2 if config.tempo.method == "ppo" else later)


def test_the_sets_are_what_the_trainer_reads(data: Path) -> None:
    import pyarrow.parquet as pq

    for split, number in QUESTIONS.items():
        questions = read_questions(split, str(data / f"{split}.parquet"), needs_answers=split != "unlabeled")
        assert len(questions) == number
        assert "\\boxed{}" in questions.prompts[0]
    rows = pq.read_table(data / "labeled.parquet").to_pylist()
    assert rows[3]["data_source"] == "labeled"
    assert rows[3]["reward_model"] == {"ground_truth": "3", "style": "math"}
    assert score("The sum is \\boxed{3}", **rows[3]["reward_model"]).correct
    unlabeled = pq.read_table(data / "unlabeled.parquet").to_pylist()
    assert [row["reward_model"]["ground_truth"] for row in unlabeled[:2]] == [None, "1001"]


# ---------------------------------------------------------------------- examples/cluster


@pytest.mark.parametrize("script", ["ray_job.sh", "node.sh", "slurm.sbatch", "train.sh"])
@pytest.mark.parametrize("missing", ["LABELED", "START"])
def test_a_missing_parameter_ends_a_launcher_before_it_starts_anything(
    script: str, missing: str, environment: dict[str, str]
) -> None:
    del environment[missing]
    done = _run("bash", CLUSTER / script, environment=environment | {"NODE_RANK": "0"})
    assert done.returncode != 0
    assert f"{missing}: " in done.stderr
    assert not Path(environment["CALLS"]).exists()


def test_slurm_starts_one_ray_on_each_node_with_one_token(environment: dict[str, str]) -> None:
    del environment["RAY_AUTH_TOKEN"]
    done = _run("bash", CLUSTER / "slurm.sbatch", environment=environment)
    assert done.returncode == 0, done.stderr
    calls = [json.loads(line) for line in Path(environment["CALLS"]).read_text().splitlines()]
    started = [call[2:] for call in calls if call[:2] == ["ray", "start"]]
    port = environment["PORT"]
    assert sorted(started) == [
        [f"--address=127.0.0.1:{port}", "--num-gpus=8", "--block"],
        ["--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-gpus=8", "--block"],
    ]
    assert "trainer.nnodes=2" in next(call for call in calls if call[0] == "tempo-verl")


def test_a_node_that_does_not_join_is_told_with_what_was_expected(environment: dict[str, str]) -> None:
    more = {"NODE_RANK": "0", "NODES": "2", "WAIT": "0"}
    done = _run("bash", CLUSTER / "node.sh", environment=environment | more)
    assert done.returncode == 1
    # the head itself may not be up at once
    told = rf"only [01] of 2 nodes joined the Ray cluster at 127\.0\.0\.1:{environment['PORT']} after 0 s"
    assert re.search(told, done.stderr)
    calls = [json.loads(line) for line in Path(environment["CALLS"]).read_text().splitlines()]
    assert not any("tempo-verl" in call for call in calls)


def test_a_head_that_does_not_come_up_is_told_on_the_other_nodes(environment: dict[str, str]) -> None:
    done = _run("bash", CLUSTER / "node.sh", environment=environment | {"NODE_RANK": "1", "WAIT": "0"})
    assert done.returncode == 1
    assert f"node 1: no Ray head at 127.0.0.1:{environment['PORT']} after 0 s" in done.stderr
    assert not Path(environment["CALLS"]).exists()


def test_a_head_that_dies_is_not_waited_for(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", int(environment["PORT"]))):  # its port is taken
        more = {"NODE_RANK": "0", "NODES": "2", "WAIT": "600"}
        done = _run("bash", CLUSTER / "node.sh", environment=environment | more)
    assert done.returncode == 1
    assert "node 0: Ray ended, see above" in done.stderr


def test_nodes_have_a_secret_in_common(environment: dict[str, str]) -> None:
    del environment["RAY_AUTH_TOKEN"]
    done = _run("bash", CLUSTER / "node.sh", environment=environment | {"NODE_RANK": "0"})
    assert done.returncode == 2
    assert done.stderr.startswith("node.sh: set RAY_AUTH_TOKEN")


def test_sbatch_is_called_from_the_folder_of_its_file(environment: dict[str, str], tmp_path: Path) -> None:
    done = _run("bash", CLUSTER / "slurm.sbatch", environment=environment | {"SLURM_SUBMIT_DIR": str(tmp_path)})
    assert done.returncode == 2
    assert "call sbatch from the folder of slurm.sbatch" in done.stderr


def test_kuberay_runs_the_script_on_as_many_nodes_and_gpus_as_its_pods_have() -> None:
    job = RayJob.model_validate(yaml.safe_load((CLUSTER / "kuberay.yaml").read_text())).spec
    cluster = job.rayClusterSpec
    words = shlex.split(job.entrypoint)
    script = words.index("bash")
    parameters = dict(word.split("=", 1) for word in words[1:script])
    assert words[0] == "env"
    assert parameters.keys() == {"LABELED", "UNLABELED", "START", "OUT", "NODES", "GPUS"}
    image = (ROOT / "docker/Dockerfile").read_text()
    assert "WORKDIR /app" in image
    assert "COPY examples examples" in image
    assert words[script + 1 :] == ["/app/examples/cluster/train.sh"]
    assert cluster.authOptions.mode == "token"
    (workers,) = cluster.workerGroupSpecs
    assert workers.minReplicas == workers.replicas == workers.maxReplicas
    assert int(parameters["NODES"]) == 1 + workers.replicas
    for group in (cluster.headGroupSpec, workers):
        (container,) = group.template.spec.containers
        gpus = int(container.resources.limits["nvidia.com/gpu"])
        assert int(parameters["GPUS"]) == gpus
        assert int(container.resources.limits["cpu"]) > 3 * gpus  # that verl reserves


def test_verl_recipes_installer_finds_the_version_that_the_package_asks_for() -> None:
    lines = (ROOT / "recipes/verl_recipe/REQUIRED_VERL.txt").read_text().splitlines()
    fields = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    (wanted,) = (r for r in map(Requirement, requires("tempo-verl")) if r.name == "verl" and r.marker is None)
    assert fields["MODE"] == "pinned_tag"
    assert fields["TAG"].removeprefix("v") in wanted.specifier
    assert fields["PIP_INSTALL"] == f"pip install verl=={fields['TAG'].removeprefix('v')}"


SKY = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())
SKY_ENVIRONMENT = {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "4"}


def test_skypilot_runs_the_script_of_a_node(environment: dict[str, str]) -> None:
    parameters = {name for name, value in SKY["envs"].items() if value is None}
    assert parameters == {"LABELED", "UNLABELED", "OUT"}
    assert SKY["secrets"] == {"RAY_AUTH_TOKEN": None}
    given = {"SKYPILOT_NODE_IPS": "127.0.0.1\n192.0.2.2", "OVERRIDES": "tempo.rounds=7 tempo.seed=3", "MODEL": ""}
    done = subprocess.run(
        ["bash", "-c", SKY["run"]],
        cwd=ROOT,  # workdir
        env=environment | SKY_ENVIRONMENT | given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    calls = [json.loads(line) for line in Path(environment["CALLS"]).read_text().splitlines()]
    (trained,) = [overrides for call in calls if (overrides := _overrides(call)) is not None]
    assert {"trainer.nnodes=1", "trainer.n_gpus_per_node=4"} <= set(trained)
    assert trained[-2:] == ["tempo.rounds=7", "tempo.seed=3"]


def test_skypilot_reads_its_file() -> None:
    command = shutil.which("sky")
    if command is None:
        pytest.skip("no `sky` on PATH: pip install skypilot, in an environment of its own")
    read = """
import sys, yaml, sky
task = sky.Task.from_yaml_config(
    yaml.safe_load(open(sys.argv[1])),
    env_overrides=[(name, name) for name in ("LABELED", "UNLABELED", "OUT")],
    secrets_overrides=[("RAY_AUTH_TOKEN", "secret")],
)
print(task.num_nodes, [resources.accelerators for resources in task.resources])
"""
    done = _run(Path(command).parent / "python", "-c", read, CLUSTER / "skypilot.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2 [{'H100': 8}]"
