# SPDX-License-Identifier: Apache-2.0
"""The ``tempo-verl`` command as a process."""

from __future__ import annotations

import signal
import subprocess
import sys

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
