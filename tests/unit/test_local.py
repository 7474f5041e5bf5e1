# SPDX-License-Identifier: Apache-2.0
"""The process in which a run on one machine trains: when it begins, and that it ends whatever its threads wait for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tempo_verl.config.cluster import trainer_environment, trains_here
from tempo_verl.launch import READY
from tempo_verl.local import READY as READ

# verl's launcher by a stand-in: what is tried is how ours ends
SCRIPT = """
import runpy, sys, threading
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace

def main():
    ThreadPoolExecutor().submit(threading.Event().wait)
    print("begun")
    {end}

verl = ModuleType("verl.trainer")
runner = SimpleNamespace(__ray_metadata__=SimpleNamespace(modified_class=None))
verl.main_ppo = SimpleNamespace(main=main, TaskRunnerV1=runner)
sys.modules["verl.trainer"] = verl
runpy.run_module("tempo_verl.local", run_name="__main__")
"""


def run(end: str, said: bytes) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", SCRIPT.format(end=end)]
    return subprocess.run(command, input=said, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("end", "status", "told"),
    [
        ("return", 0, b""),
        ("sys.exit(2)", 2, b""),
        ("raise RuntimeError('no rollout')", 1, b"RuntimeError: no rollout"),
        ("raise KeyboardInterrupt", 1, b"KeyboardInterrupt"),
    ],
)
def test_it_ends_though_a_thread_waits_for_ever(end: str, status: int, told: bytes) -> None:
    ended = run(end, READY)
    assert (ended.returncode, ended.stdout) == (status, b"begun\n")
    assert told in ended.stderr


def test_it_does_not_begin_when_the_command_dies_before_all_is_made() -> None:
    ended = run("return", b"")
    assert (ended.returncode, ended.stdout) == (1, b"")


def test_both_ends_mean_the_same() -> None:
    assert READY is READ


def test_only_a_run_on_this_machine_alone_trains_here(compose) -> None:
    config = compose()
    assert trains_here(config)
    assert trainer_environment(config)["TRANSFER_QUEUE_ENABLE"] == "1"
    assert trainer_environment(config)["OMP_NUM_THREADS"] == "1"
    for other in (
        "ray_kwargs.ray_init.address=auto", "trainer.device=cuda", "+ray_kwargs.ray_init.runtime_env.working_dir=/here"
    ):  # fmt: skip
        assert not trains_here(compose([other]))
        assert trainer_environment(compose([other])) == {}
