# SPDX-License-Identifier: Apache-2.0
"""The ``tempo-verl`` command as a process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from run_folders import write_lines
from typer.testing import CliRunner

from tempo_verl import launch
from tempo_verl.cli.main import app
from tempo_verl.errors import UserError

SLEEPING = """
import time

import tempo_verl.cli.main as command


def app():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)


command.app = app
command.main()
"""


def test_a_command_that_is_told_to_end_cleans_up_first() -> None:
    process = subprocess.Popen([sys.executable, "-c", SLEEPING], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.communicate(timeout=30)[0] == "cleaned up\n"
    assert process.returncode == 128 + signal.SIGTERM


def test_a_resumed_run_adds_up_its_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a part that failed or was interrupted count as well, and the command says where the run is."""
    folder = tmp_path / "my run"

    def training(fails: bool, seconds: float) -> Callable[..., None]:
        def run(run: launch.Run, *args: object, ended: Callable[[float], None], **rest: object) -> None:
            write_lines(run.metrics, [{"step": 1, "data": {"tempo/labeled/accuracy": 0.5}}])
            ended(seconds)
            if fails:
                raise UserError("training failed")

        return run

    arguments = ["train", "--run-dir", str(folder), "method=ppo", "tempo.rounds=3"]
    for fails, seconds, total in ((True, 20.0, 20.0), (False, 30.5, 50.5)):
        monkeypatch.setattr(launch, "run_training", training(fails, seconds))
        assert (CliRunner().invoke(app, arguments).exit_code != 0) == fails
        info = json.loads((folder / "run.json").read_text())
        assert info["seconds"] == {"training": total}
        assert info["command"] == f"tempo-verl train --run-dir '{folder}' method=ppo tempo.rounds=3"
    page = (folder / "report.html").read_text()
    assert "--run-dir" in page and "50.5 s" in page


def test_seconds_add_up_phase_by_phase(tmp_path: Path) -> None:
    launch.write_run_info(tmp_path, "command", {"stage 0": 1.0, "TEMPO": 2.0})
    launch.write_run_info(tmp_path, "command", {"TEMPO": 3.5, "total": 4.0})
    assert json.loads((tmp_path / "run.json").read_text())["seconds"] == {"stage 0": 1.0, "TEMPO": 5.5, "total": 4.0}
