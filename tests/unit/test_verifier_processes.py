# SPDX-License-Identifier: Apache-2.0
"""Verifiers in child processes: whatever one does, the caller goes on, and no child is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tempo_verl.rewards import Score, check_ground_truth, process, score
from tempo_verl.rewards.process import MEMORY, PROCESSES, VerifierFailure, Workers

HERE = __name__


# ---------------------------------------------------------------------- what the children run


def echo(*arguments: Any) -> tuple[int, Any]:
    return os.getpid(), arguments


def hang(seconds: float) -> None:
    time.sleep(seconds)


def spin() -> None:
    while True:
        pass


def ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGXCPU):
        signal.signal(number, signal.SIG_IGN)
    spin()


def leave() -> None:
    os._exit(0)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def be_stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def end_the_program() -> None:
    sys.exit("enough")


def fail() -> None:
    raise KeyError("no such\nthing")


def recurse() -> None:
    recurse()


def take_memory(*_: Any) -> None:
    held: list[bytes] = []
    while True:
        held.append(bytes(2**24))


def take(gib: float) -> int:
    return len(bytearray(int(gib * 2**30)))


def network() -> str:
    return os.readlink("/proc/self/ns/net")


def connect(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        return connection.recv(10).decode()


def unpicklable() -> Callable[[], None]:
    return lambda: None


def noisy(response: str, ground_truth: str | None) -> tuple[bool, str]:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    os.write(1, b"straight to stdout\n")
    assert sys.stdin.read() == ""
    return response == ground_truth, response


def malformed(response: str, ground_truth: str | None) -> bool:
    return True


# ---------------------------------------------------------------------- a pool


@pytest.fixture
def pool() -> Workers:
    return Workers(1)


def test_arguments_and_result_go_to_a_child_and_back(pool: Workers) -> None:
    child, arguments = pool.call(f"{HERE}:echo", "\\boxed{\ud800ü}", None, 1.5, timeout=10)
    assert child != os.getpid()
    assert arguments == ("\\boxed{\ud800ü}", None, 1.5)
    assert pool.call(f"{HERE}:echo", timeout=10)[0] == child  # one child for all


@pytest.mark.parametrize(
    ("function", "arguments", "kind"),
    [
        ("hang", (60,), "timeout"),
        ("spin", (), "timeout"),
        ("ignore_signals", (), "timeout"),
        ("be_stopped", (), "timeout"),
        ("leave", (), "crash"),
        ("be_killed", (), "crash"),
        ("end_the_program", (), "crash"),
        ("unpicklable", (), "crash"),
        ("take_memory", (), "crash"),
        ("fail", (), "error"),
        ("recurse", (), "error"),
        ("echo_", (), "error"),
    ],
)
def test_a_failure_is_told_and_the_pool_goes_on(
    pool: Workers, function: str, arguments: tuple[Any, ...], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MEMORY, "0.05")
    child = pool.call(f"{HERE}:echo", timeout=10)[0]
    started = time.monotonic()
    with pytest.raises(VerifierFailure) as caught:
        pool.call(f"{HERE}:{function}", *arguments, timeout=0.5)
    assert time.monotonic() - started < 10
    assert caught.value.kind == kind
    assert str(caught.value).startswith(f"{kind}: ") and len(str(caught.value).splitlines()) == 1
    assert (pool.call(f"{HERE}:echo", timeout=10)[0] == child) is (kind == "error")  # only then is the child sound
    assert (not is_running(child)) is (kind != "error")


def test_memory_is_what_a_verifier_takes_and_not_what_it_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MEMORY, "0.25")
    pool = Workers(1)
    assert pool.call(f"{HERE}:take", 0.2, timeout=30)
    with pytest.raises(VerifierFailure, match=rf"^crash: {HERE}:take took too much memory, see {MEMORY}$"):
        pool.call(f"{HERE}:take", 0.3, timeout=30)
    monkeypatch.setenv(MEMORY, "0.01")  # less than torch itself holds
    assert Workers(1).call("torch:get_num_threads", timeout=60) > 0
    monkeypatch.setenv(MEMORY, "0")
    assert Workers(1).call(f"{HERE}:take", 0.3, timeout=30)


def test_a_response_that_takes_memory_counts_as_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MEMORY, "0.1")
    monkeypatch.setattr(process, "_shared", Workers(1))
    for _ in range(2):
        result = score(r"\boxed{5}", "5", f"{HERE}:take_memory")
        told = f"crash: {HERE}:take_memory took too much memory, see {MEMORY}"
        assert (result.correct, result.answer, result.error) == (False, "5", told)
        assert score("5", "5", f"{HERE}:noisy").correct


def test_only_math_verify_is_cut_off_from_the_network(pool: Workers) -> None:
    assert pool.call(f"{HERE}:network", timeout=30) == network()
    assert pool.call("tempo_verl.rewards.algebra:judge", "$x(x+1)$", "x^2+x", timeout=30)[0]
    ours, theirs = (pool._free[offline].get() for offline in (True, False))
    assert theirs.call(f"{HERE}:network", (), 30) == network()
    tried = [
        subprocess.run(["unshare", *options, "--net", "true"], capture_output=True) for options in ([], ["--user"])
    ]
    allowed = any(run.returncode == 0 for run in tried)
    assert (ours.call(f"{HERE}:network", (), 30) == network()) is not allowed
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if allowed:
            with pytest.raises(VerifierFailure, match=r"Network is unreachable"):
                ours.call(f"{HERE}:connect", (listener.getsockname()[1],), 30)
    ours.kill()
    theirs.kill()


def test_what_cannot_be_sent_is_the_callers_mistake_and_costs_no_child(pool: Workers) -> None:
    child = pool.call(f"{HERE}:echo", timeout=10)[0]
    with pytest.raises(AttributeError):
        pool.call(f"{HERE}:echo", lambda: None, timeout=10)
    assert pool.call(f"{HERE}:echo", timeout=10)[0] == child


def test_many_threads_share_a_few_children() -> None:
    pool = Workers(2)
    with ThreadPoolExecutor(16) as threads:
        results = list(threads.map(lambda number: pool.call(f"{HERE}:echo", number, timeout=30), range(200)))
    assert [arguments for _, arguments in results] == [(number,) for number in range(200)]
    assert len(Counter(child for child, _ in results)) <= 2


def test_one_that_hangs_holds_nobody_else_up() -> None:
    pool = Workers(2)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: pool.call(f"{HERE}:hang", 0.2, timeout=10), range(2)))  # both children are there
        hanging = threads.submit(pool.call, f"{HERE}:hang", 60, timeout=1.5)
        for number in range(20):
            assert pool.call(f"{HERE}:echo", number, timeout=10)[1] == (number,)
        assert not hanging.done()
        assert isinstance(hanging.exception(), VerifierFailure)


def test_waiting_for_a_child_is_not_a_verifiers_own_time(pool: Workers) -> None:
    with ThreadPoolExecutor(4) as threads:  # the last waits for three others, and for the child's start
        calls = [threads.submit(pool.call, f"{HERE}:hang", 0.4, timeout=1) for _ in range(4)]
        assert [call.result() for call in calls] == [None] * 4


SLOW_START = """
import importlib.abc, sys, time

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("math_verify", "slow_verifier"):
            time.sleep(1.2)

sys.meta_path.insert(0, Slow())
time.sleep(0.6)
"""


def test_starting_a_child_and_importing_a_verifier_are_not_its_own_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_START)  # every interpreter with this on its path starts late
    (tmp_path / "slow_verifier.py").write_text("def judge(response, truth):\n    return response == truth, response\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(process, "_shared", Workers(1))
    started = time.monotonic()
    assert score("5", "5", "slow_verifier:judge", timeout=1).error is None
    assert time.monotonic() - started > 1.8  # both were slow indeed
    started = time.monotonic()
    assert check_ground_truth("x^2 + y", timeout=1) is None  # one that takes algebra
    assert time.monotonic() - started > 1.2
    assert score(r"\boxed{\frac{2}{4}}", r"\frac{1}{2}", timeout=1) == Score(True, r"\frac{2}{4}", formatted=True)


# ---------------------------------------------------------------------- through score


def test_what_a_verifier_prints_does_no_harm(pool: Workers, capfd: pytest.CaptureFixture) -> None:
    for response in ("5", "6"):
        assert pool.call(f"{HERE}:noisy", response, "5", timeout=10) == (response == "5", response)
    assert capfd.readouterr().err.count("to stderr") == 2


@pytest.mark.parametrize(
    ("style", "error"),
    [
        (f"{HERE}:malformed", f"error: {HERE}:malformed returned True, not (correct, answer)"),
        (f"{HERE}:fail", f"error: {HERE}:fail raised TypeError: fail() takes 0 positional arguments but 2 were given"),
        ("os:_exit", "error: os:_exit raised TypeError: _exit() takes at most 1 argument (2 given)"),
    ],
)
def test_a_verifier_that_fails_gives_no_verdict(style: str, error: str, caplog: pytest.LogCaptureFixture) -> None:
    result = score(r"\boxed{5}", "5", style)
    assert (result.correct, result.answer) == (False, "5")  # the vote still counts
    assert result.error == error
    assert f"no verdict on a response, which counts as wrong: {error}" in caplog.text


# ---------------------------------------------------------------------- scripts

SCRIPT = """
import threading
from tempo_verl.rewards import score

def judge(response, ground_truth):
    return response == ground_truth, response

print(score("5", "5", "own:judge"))
thread = threading.Thread(target=lambda: print(score("5", "6", "own:judge").correct))
thread.start()
thread.join()
"""


def test_a_plain_script_needs_no_main_guard(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def judge(response, ground_truth):\n    return response == ground_truth, response\n"
    )
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    result = subprocess.run([sys.executable, script], cwd="/", capture_output=True, text=True, timeout=120)
    assert result.stderr == ""
    assert result.stdout.splitlines() == ["Score(correct=True, answer='5', formatted=True, error=None)", "False"]


PARENT = f"""
import sys, threading, time
from tempo_verl.rewards.process import Workers

pool = Workers(1)
print(pool.call("{HERE}:echo", timeout=30)[0], flush=True)
if sys.argv[1] == "busy":
    threading.Thread(target=pool.call, args=("{HERE}:spin",), kwargs={{"timeout": 1}}).start()
    time.sleep(0.3)
    print("spinning", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("child", ["idle", "busy"])
def test_a_child_ends_with_its_parent(child: str, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, script, child],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )
    assert parent.stdout is not None
    number = int(parent.stdout.readline())
    if child == "busy":
        assert parent.stdout.readline() == "spinning\n"
    assert is_running(number)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while is_running(number) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(number)


COUNT = """
from concurrent.futures import ThreadPoolExecutor
from tempo_verl.rewards.process import workers

with ThreadPoolExecutor(8) as threads:
    print(len(set(threads.map(lambda _: workers().call("os:getpid", timeout=30), range(64)))))
"""


@pytest.mark.parametrize("most", [1, 2])
def test_an_environment_variable_limits_the_children(most: int) -> None:
    environment = os.environ | {PROCESSES: str(most)}
    result = subprocess.run([sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True, timeout=120)
    assert result.stderr == ""
    assert int(result.stdout) == most


def test_no_thread_is_started() -> None:
    before = threading.active_count()
    Workers(1).call(f"{HERE}:echo", timeout=10)
    assert threading.active_count() == before


def is_running(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
