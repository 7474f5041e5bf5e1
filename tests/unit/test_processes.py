# SPDX-License-Identifier: Apache-2.0
"""A run's processes end with it, and its folder is one command's at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tempo_verl import processes, run
from tempo_verl.errors import UserError
from tempo_verl.processes import end_with_parent, none_left
from tempo_verl.run import LOCK, Run

# Starts a process apart from itself, says its number, and ends.
LEAVES = """
import subprocess, sys
child = subprocess.Popen(["sleep", "100"], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(child.pid, flush=True)
"""
# Keeps a folder until it is told to end.
HOLDS = """
import sys, time
from pathlib import Path
from tempo_verl.run import Run

with Run(Path(sys.argv[1])).lock():
    print("has it", flush=True)
    time.sleep(100)
"""
# As the command does: hands the lock on to a process that outlives it.
HANDS_ON = """
import os, subprocess, sys
from pathlib import Path
from tempo_verl.run import Run

with Run(Path(sys.argv[1])).lock() as lock:
    seconds = sys.argv[2]
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"], pass_fds=[lock])
    print("has it", flush=True)
    os._exit(0)
"""


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 0.5)


def started(script: str, *arguments: str) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "has it\n"
    return process


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's way to adopt orphans")
def test_a_process_whose_parent_has_died_is_ended_too(short_patience: None) -> None:
    mine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    try:
        with none_left():
            orphan = int(subprocess.run([sys.executable, "-c", LEAVES], capture_output=True, check=True).stdout)
            assert psutil.pid_exists(orphan)
        assert not psutil.pid_exists(orphan)
        assert mine.poll() is None  # it was there before
    finally:
        mine.kill()
        mine.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's signal for a dead parent")
def test_a_child_is_told_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys\n"
        "from tempo_verl.processes import end_with_parent\n"
        "child = subprocess.Popen(['sleep', '100'], preexec_fn=end_with_parent)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert callable(end_with_parent)


def test_a_second_command_in_a_folder_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    first = started(HOLDS, str(tmp_path))
    began = time.monotonic()
    with pytest.raises(UserError) as caught, Run(tmp_path).lock():
        pytest.fail("two have it")
    assert time.monotonic() - began < 5
    assert str(caught.value) == (
        f"--run-dir={tmp_path} is in use by another command (process {first.pid}); wait until it has ended, or name "
        "another folder"
    )
    first.send_signal(signal.SIGKILL)
    first.wait()
    with Run(tmp_path).lock():
        assert (tmp_path / LOCK).read_text() == str(os.getpid())


def test_what_a_killed_command_has_left_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started(HANDS_ON, str(tmp_path), "3").wait()
    began = time.monotonic()
    with Run(tmp_path).lock():
        assert 1 < time.monotonic() - began < 10
    monkeypatch.setattr(run, "PATIENCE", 1.0)
    started(HANDS_ON, str(tmp_path), "5").wait()
    with pytest.raises(UserError, match="is in use by another command"), Run(tmp_path).lock():
        pytest.fail("it is still in use")


def test_a_folder_that_was_not_used_is_gone_again(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with Run(folder).lock():
        assert folder.is_dir()
    assert not folder.exists()
    with Run(folder).lock():
        (folder / "config.yaml").touch()
    assert folder.is_dir()
