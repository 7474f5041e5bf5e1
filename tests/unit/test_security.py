# SPDX-License-Identifier: Apache-2.0
"""Data are data: what a file or a model says is neither run, nor imported, nor unpickled."""

from __future__ import annotations

import ast
import json
import pickle
import re
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
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
        assert not name.startswith(("pickle.", "joblib.", "datasets.load_from_disk")), where
        if name == "torch.load":
            assert "weights_only=True" in [ast.unparse(keyword) for keyword in node.keywords], where
        assert not {"shell", "allow_pickle"} & {keyword.arg for keyword in node.keywords}, where


# ---------------------------------------------------------------------- reports

SCRIPT = "<script>alert(1)</script></td></pre>|![x](javascript:x)"


class Elements(HTMLParser):
    """What a browser makes of a page: names of elements, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.names: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names[tag] += 1
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        self.ended[tag] += 1

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile_runs(folder: Path) -> tuple[Path, ...]:
    """A run whose texts are all mark-up, and two of which the names are."""
    from run_folders import make_run, make_seed

    one = make_run(folder / "<script>alert(1)<")
    for dump in (one / "tempo" / "validation").iterdir():
        rows = [json.loads(line) for line in dump.read_text().splitlines()]
        for row in rows:
            row |= {"output": SCRIPT, "pred": row["pred"] and SCRIPT + row["pred"], "data_source": SCRIPT}
        dump.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {"method": SCRIPT, "versions": {SCRIPT: SCRIPT}, "machine": {"card": SCRIPT}, SCRIPT: SCRIPT}
    (one / "run.json").write_text(json.dumps(told | {"command": ["tempo-verl", SCRIPT], "seconds": {SCRIPT: 5}}))
    (one / "config.yaml").write_text(json.dumps({"tempo": {"method": SCRIPT, "labeled": {"files": SCRIPT}}}))
    answered = {"question": SCRIPT, "answer": SCRIPT, "rationale": {"response": SCRIPT}, "probability": 0.5}
    for name in ("predictions.jsonl", "samples.jsonl"):
        (one / name).write_text(json.dumps(answered) + "\n")
        (one / "tempo" / name).write_text(json.dumps(answered) + "\n")
    others = []
    for seed in (1, 2):
        run = make_seed(folder / f"{seed}<script>", seed, {0: 0.5, 3: 0.6}, alarms=(3,), files=SCRIPT, rounds=seed)
        metrics = run / "metrics.jsonl"
        metrics.write_text(metrics.read_text().replace("sums/heldout", SCRIPT.replace("/", "|")))
        others.append(run)
    return one, *others


def test_a_report_shows_mark_up_as_text(tmp_path: Path) -> None:
    from tempo_verl.report import build_comparison, build_report

    one, *others = hostile_runs(tmp_path)
    for run in (one, *others):
        build_report(run)
    build_comparison(others, tmp_path / "report")
    for folder in (one, *others, tmp_path / "report"):
        page, table = (folder / "report.html").read_text(), (folder / "table.md").read_text()
        found = Elements(page)
        assert found.names["script"] == 0 == found.ended["script"]
        for name in ("td", "th", "tr", "pre", "table", "body"):
            assert found.names[name] == found.ended[name], name
        assert "<script>" in found.text, folder
        assert "\\<script>" in table and not re.search(r"(?<!\\)<", table), table
        for rows in re.findall(r"(?:^\|.*\n)+", table, re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows.splitlines()}) == 1, rows


def test_so_does_the_table_of_an_evaluation(tmp_path: Path) -> None:
    from rich.console import Console

    from tempo_verl.evaluation.evaluate import _write_tables
    from tempo_verl.evaluation.samples import Sample
    from tempo_verl.evaluation.summary import notes, summarise

    shared = {"id": "0", "hash": "0", "formatted": True, "tokens": 3, "truncated": False, "seed": 0, "error": None}
    shared |= {"data_source": SCRIPT, "response": SCRIPT, "answer": SCRIPT}
    samples = [Sample(index=0, sample=n, correct=n == 0, value=None, **shared) for n in range(2)]
    results = summarise(samples, [1, 2])
    _write_tables(results | {"notes": notes(results), "settings": {"model": SCRIPT}}, tmp_path, Console(quiet=True))
    table = (tmp_path / "table.md").read_text()
    assert "\\<script>alert(1)" in table and not re.search(r"(?<!\\)<", table)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines() if line.startswith("|")} == {5}
