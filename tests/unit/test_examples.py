# SPDX-License-Identifier: Apache-2.0
"""Every shell script under examples/ is run with stand-ins for the commands it calls; what it would have trained is
composed with the shipped configuration and put through the checks that training begins with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tempo_verl.data.prepare import Settings, prepare
from tempo_verl.data.validation import read_questions
from tempo_verl.rewards import score

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix() for pattern in ("*.sh", "*.sbatch") for path in (ROOT / "examples").rglob(pattern)
)
# script, its arguments (MODEL: start from that, not from stage 0; OUT: the folder), and the methods that it trains
CASES = [
    ("examples/own_data/run.sh", (), ("ppo", "tempo")),
    ("examples/ray_job/submit.sh", (), ("tempo",)),
    ("examples/ray_job/submit.sh", ("method=ppo", "MODEL"), ("ppo",)),
    ("examples/slurm/tempo.sbatch", (), ("tempo",)),
    ("examples/smollm2/run.sh", ("MODEL", "OUT"), ("ppo", "tempo")),
]
QUESTIONS = {"labeled": 256, "unlabeled": 160, "heldout": 4}
# writes its own call down and answers the two questions that scripts ask
STAND_IN = """#!{python}
import json, os, sys
command = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps(command) + "\\n")
if command[:2] == ["ray", "status"]:
    print(" 1 node_a\\n 1 node_b")
elif command[0] == "scontrol":
    print("a\\nb")
elif "hostname" in command:
    print("192.0.2.1")
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
def environment(tmp_path: Path, data: Path, long_models: tuple[Path, Path]) -> dict[str, str]:
    """Stand-ins first on PATH, and every variable a script asks for; stage 0 has left a checkpoint."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("tempo-verl", "ray", "srun", "scontrol"):
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
        "SLURM_JOB_NODELIST": "[a-b]",
        "SLURM_CPUS_PER_TASK": "64",
    }


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
