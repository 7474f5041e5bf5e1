# SPDX-License-Identifier: Apache-2.0
"""The command line: help without heavy imports, and places that cannot be written, told before anything is done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tempo_verl.cli.main import app
from tempo_verl.cli.paths import output_file, output_folder
from tempo_verl.errors import UserError

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def refused(*arguments: object) -> str:
    """The one line that a command ends in; ``main`` prints it and ends with status 2."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert isinstance(result.exception, UserError), result.output
    assert result.output == ""  # nothing was begun
    (line,) = str(result.exception).splitlines()
    return line


# ---------------------------------------------------------------------- help


def test_all_commands_are_known() -> None:
    assert {"answer", "doctor", "evaluate", "label-next", "prepare", "quickstart", "report", "train"} <= set(COMMANDS)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command: str) -> None:
    result = CliRunner(env={"COLUMNS": "100"}).invoke(app, [*filter(None, [command]), "--help"])
    assert result.exit_code == 0, result.output
    assert f"tempo-verl {command}".strip() in result.output or f"root {command}".strip() in result.output
    assert "--help" in result.output
    for name in COMMANDS if not command else ():
        assert name in result.output


def test_help_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "verl", "ray", "pandas", "sklearn", "matplotlib", "datasets", "pyarrow"}
    code = f"""
import sys
from typer.testing import CliRunner
from tempo_verl.cli.main import app
for command in {COMMANDS!r}:
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
print(sorted({heavy!r} & sys.modules.keys()))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (result.stdout, result.stderr) == ("[]\n", "")


# ---------------------------------------------------------------------- places to write to


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("mine")
    return path


def test_a_folder_to_write(tmp_path: Path, file: Path) -> None:
    output_folder("--out", tmp_path)
    output_folder("--out", tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == [file]  # nothing is made
    for path, why in (
        (file, "is a file; name a folder"),
        (file / "a" / "b", f"cannot be made: {file} is a file; name another place"),
    ):
        with pytest.raises(UserError) as caught:
            output_folder("--out", path)
        assert str(caught.value) == f"--out={path} {why}"


def test_a_file_to_write(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output_file("--out", file)  # is replaced
    output_file("--out", tmp_path / "new" / "file")
    monkeypatch.chdir(tmp_path)
    output_file("--out", Path("new"))
    for path, why in (
        (tmp_path, "is a folder; name a file"),
        (file / "a", f"cannot be made: {file} is a file; name another place"),
    ):
        with pytest.raises(UserError) as caught:
            output_file("--out", path)
        assert str(caught.value) == f"--out={path} {why}"


def test_a_link_to_nowhere(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"link is a file; name a folder"):
        output_folder("--out", link)


def test_a_place_without_permission(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # permissions do not bind root
    for check in (output_folder, output_file):
        with pytest.raises(UserError) as caught:
            check("--out", tmp_path / "new" / "place")
        assert str(caught.value).startswith(f"--out={tmp_path}/new/place: {tmp_path} must not be written; name another")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != file)
    with pytest.raises(UserError, match=r"file must not be written; name another place"):
        output_file("--out", file)


@pytest.mark.parametrize("inside", [False, True], ids=["a file", "in a file"])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["train"], "--run-dir"),
        (["quickstart"], "--run-dir"),
        (["evaluate", "no/model", "--data", "none.parquet"], "--out"),
        (["report", "no/run"], "--out"),
        (["report", "no/run", "no/other"], "--out"),
    ],
    ids=["train", "quickstart", "evaluate", "report", "comparison"],
)
def test_a_command_whose_folder_cannot_be_made(command: list[str], option: str, inside: bool, file: Path) -> None:
    path = file / "below" if inside else file
    why = f"cannot be made: {file} is a file; name another place" if inside else "is a file; name a folder"
    assert refused(*command, option, path) == f"{option}={path} {why}"
    assert file.read_text() == "mine"


def test_a_run_folder_that_a_report_cannot_go_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path or not mode & os.W_OK)
    assert refused("report", tmp_path).startswith(f"RUN={tmp_path}: {tmp_path} must not be written; name another")


def test_answers_that_cannot_be_written(tmp_path: Path, file: Path) -> None:
    asked = ["answer", "no/model", "--data", "none.parquet", "--out"]
    assert refused(*asked, tmp_path) == f"--out={tmp_path} is a folder; name a file"
    assert refused("answer", "--samples", "no/samples", "--out", tmp_path).startswith(f"--out={tmp_path} is a folder")
    assert "file is a file; name another place" in refused(*asked, file / "predictions.jsonl")
    samples = tmp_path / "mine.samples"
    assert f"its samples are kept in the folder {samples}; name a file" in refused(*asked, samples)
    samples.write_text("in the way")
    assert f"its samples are kept in the folder {samples}; name a file" in refused(*asked, tmp_path / "mine.jsonl")
    assert sorted(tmp_path.iterdir()) == [file, samples]


def test_a_mistake_ends_the_process_with_status_2(file: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from tempo_verl.cli.main import main

    monkeypatch.setattr(sys, "argv", ["tempo-verl", "train", "--run-dir", str(file)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"tempo-verl: --run-dir={file} is a file; name a folder\n"
