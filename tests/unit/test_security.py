# SPDX-License-Identifier: Apache-2.0
"""Data are data: what a file or a model says is neither run, nor imported, nor unpickled."""

from __future__ import annotations

import ast
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tempo_verl
from tempo_verl.cli.main import main as tempo_verl_command
from tempo_verl.config.preflight import check
from tempo_verl.errors import UserError
from tempo_verl.evaluation.questions import load_questions
from tempo_verl.launch import resolve_config
from tempo_verl.rewards import check_style

PACKAGE = Path(tempo_verl.__file__).parent
OWN = "own_of_a_file"  # a module that leaves a trace when it is imported


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Written once the module is imported."""
    (tmp_path / f"{OWN}.py").write_text(
        "from pathlib import Path\n\nPath(__file__).with_name('trace').touch()\n\n\n"
        "def verify(response, ground_truth):\n    return response == ground_truth, response\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    check_style.cache_clear()
    yield tmp_path / "trace"
    sys.modules.pop(OWN, None)


def write(path: Path, style: str, text: str = "3+7=", rows: int = 8) -> Path:
    asked = [
        {
            "data_source": "sums",
            "prompt": [{"role": "user", "content": f"{number}{text}"}],
            "reward_model": {"style": style, "ground_truth": "1"},
        }
        for number in range(rows)
    ]
    pq.write_table(pa.Table.from_pylist(asked), path)
    return path


def told(capsys: pytest.CaptureFixture, *arguments: Any) -> str:
    """What the command says on stderr as it refuses."""
    sys.argv = ["tempo-verl", *map(str, arguments)]
    with pytest.raises(SystemExit) as ended:
        tempo_verl_command()
    error = capsys.readouterr().err
    assert ended.value.code == 2, error
    assert len(error.splitlines()) == 1, error
    return error


@pytest.fixture(autouse=True)
def _arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [*sys.argv])


# ---------------------------------------------------------------------- functions that a data file names


@pytest.mark.parametrize("field", ["tempo.labeled.files", "tempo.unlabeled.files", "data.val_files"])
@pytest.mark.parametrize("style", [f"{OWN}:verify", "os:system"])
def test_a_question_file_of_a_run_names_no_function_by_itself(
    field: str, style: str, compose, trace: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "own.parquet", style)
    with pytest.raises(UserError) as caught:
        check(compose([f"{field}='{file}'"]))
    assert str(caught.value).startswith(f"{field}={file}: reward_model.style={style!r} names a function to call")
    assert str(caught.value).endswith("allow it with tempo.verifier.allow=[NAME]")
    assert not trace.exists()


def test_a_function_that_is_allowed_is_called(compose, trace: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "own.parquet", f"{OWN}:verify")
    check(compose([f"tempo.labeled.files='{file}'", f"tempo.verifier.allow=[{OWN}:verify]"]))
    assert trace.exists()


@pytest.mark.parametrize("command", ["evaluate", "answer", "prepare"])
def test_nor_does_one_of_the_other_commands(
    command: str, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file, out = write(tmp_path / "own.parquet", f"{OWN}:verify"), tmp_path / "out.parquet"
    first = [file, "--as", "labeled"] if command == "prepare" else ["no_model", "--data", file]
    error = told(capsys, command, *first, "--out", out)
    assert f"reward_model.style='{OWN}:verify' names a function to call" in error
    assert "allow it with --allow-verifier NAME" in error
    assert not trace.exists() and not out.exists()


def test_commands_allow_a_function(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file, out = write(tmp_path / "own.parquet", f"{OWN}:verify"), tmp_path / "out.parquet"
    sys.argv = ["tempo-verl", "prepare", str(file), "--as", "labeled", "--out", str(out)]
    sys.argv += ["--allow-verifier", f"{OWN}:verify"]
    with pytest.raises(SystemExit) as ended:
        tempo_verl_command()
    assert ended.value.code == 0, capsys.readouterr().err
    assert {row["style"] for row in pq.read_table(out)["reward_model"].to_pylist()} == {f"{OWN}:verify"}
    questions = load_questions("--data", [out], with_answers=True, allowed=[f"{OWN}:verify"])
    assert len(questions) == 8 and trace.exists()


# ---------------------------------------------------------------------- pickles


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path):
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._trace,)


@pytest.mark.parametrize("name", ["own.pkl", "own.npy", "own.parquet", "own.json", "own.jsonl", "own.csv"])
def test_nothing_is_unpickled(name: str, compose, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file, trace = tmp_path / name, tmp_path / "trace"
    if name.endswith(".npy"):
        np.save(file, np.array([Trap(trace)], dtype=object), allow_pickle=True)
    else:
        file.write_bytes(pickle.dumps(Trap(trace)))
    with pytest.raises(UserError) as caught:
        check(compose([f"tempo.labeled.files='{file}'"]))
    assert len(str(caught.value).splitlines()) == 1 and str(file) in str(caught.value)
    assert str(file) in told(capsys, "evaluate", "no_model", "--data", file, "--out", tmp_path / "evaluation")
    told(capsys, "prepare", file, "--as", "labeled", "--out", tmp_path / "out.parquet")
    assert not trace.exists()


# ---------------------------------------------------------------------- what the package itself calls


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """File, name and node of every call in the package."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield f"{file.relative_to(PACKAGE)}:{node.lineno}", ast.unparse(node.func), node


def test_code_of_a_model_is_run_only_where_the_user_says_so() -> None:
    """Every ``from_pretrained`` of transformers either is not told, which is no, or hands the user's choice on."""
    found = 0
    for where, name, node in calls():
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name.endswith(("from_pretrained", "from_config", "LLM")) and "trust_remote_code" in given:
            found += 1
        if "trust_remote_code" in given:
            assert "trust" in given["trust_remote_code"], where  # a name that holds the choice, never a constant
    assert found > 8


def test_the_default_is_not_to(compose) -> None:
    config = resolve_config(["hardware=fsdp"])
    for model in (config.actor_rollout_ref.model, config.critic.model):
        assert model.trust_remote_code is False
    from tempo_verl.evaluation.engines import Sampling

    assert Sampling("model").trust_remote_code is False


def test_no_shell_and_no_pickle() -> None:
    for where, name, node in calls():
        assert name not in ("os.system", "os.popen", "eval", "exec", "subprocess.getoutput"), where
        assert not name.startswith(("pickle.", "joblib.", "torch.load", "datasets.load_from_disk")), where
        assert not {"shell", "allow_pickle"} & {keyword.arg for keyword in node.keywords}, where
