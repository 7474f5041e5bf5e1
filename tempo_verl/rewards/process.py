# SPDX-License-Identifier: Apache-2.0
"""Runs verifiers in child processes that can be killed: whatever a response makes them do, a run goes on.

A child is a plain interpreter, not a fork and not a second import of the caller's main module, so it can be started
from any script, thread or Ray worker. Its time and memory are limited. It is no sandbox: a verifier may do what its
user may. The children of Math-Verify alone, which evaluates what a response says, are cut off from the network where
the system lets them.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

SECONDS_TO_LOAD = 120.0  # to start a child and import a verifier; not part of a verifier's own time
PROCESSES = "TEMPO_VERIFIER_PROCESSES"  # environment variable: most child processes, default one a CPU up to 4
# Environment variable: GiB that a child may take beyond what it holds once its verifier is imported; 0: no limit. Of
# RLIMIT_DATA: RLIMIT_AS would count what CUDA reserves and never fills, and so refuse a verifier that imports torch.
MEMORY = "TEMPO_VERIFIER_MEMORY"
MEMORY_GIB = 4.0

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # of linux/sched.h; os.unshare comes with Python 3.12


class VerifierFailure(Exception):
    """A verifier gave no verdict. ``kind`` is ``timeout``, ``crash`` (its process died) or ``error`` (it raised)."""

    def __init__(self, kind: str, message: str):
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class Workers:
    """A pool of child processes, started when they are needed. Safe to use from several threads.

    Args:
        processes: the most for the functions of this package, and as many for those of others, which may need the
            network.
    """

    def __init__(self, processes: int):
        self._free: dict[bool, queue.LifoQueue[_Worker | None]] = {True: queue.LifoQueue(), False: queue.LifoQueue()}
        for places in self._free.values():
            for _ in range(processes):
                places.put(None)  # a place without a process yet

    def call(self, function: str, *arguments: Any, timeout: float) -> Any:
        """``module:function(*arguments)`` in a child.

        Args:
            function: importable ``module:function``; arguments and result must pickle.
            timeout: seconds the call itself may take. Waiting for a child, starting it and importing the module do not
                count: they are the machine's time, not the response's.

        Raises:
            VerifierFailure: it took longer or too much memory, its process died, or it raised.
        """
        offline = function.startswith(f"{__package__}.")
        places = self._free[offline]
        worker = places.get()
        try:
            if worker is None:
                worker = _Worker(offline)
            return worker.call(function, arguments, timeout)
        except VerifierFailure as failure:
            if worker is not None and failure.kind != "error":
                worker.kill()
                worker = None
            raise
        finally:
            places.put(worker)


class _Worker:
    def __init__(self, offline: bool) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve({theirs.fileno()}, {offline})"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._loaded: set[str] = set()

    def call(self, function: str, arguments: tuple[Any, ...], timeout: float) -> Any:
        if function not in self._loaded:
            self._ask((function, None, SECONDS_TO_LOAD), SECONDS_TO_LOAD)
            self._loaded.add(function)
        return self._ask((function, arguments, timeout), timeout)

    def _ask(self, job: tuple[str, tuple[Any, ...] | None, float], timeout: float) -> Any:
        try:
            self._connection.send(job)
            if not self._connection.poll(timeout):
                what = job[0] if job[1] is not None else f"importing {job[0]}"
                raise VerifierFailure("timeout", f"{what} took longer than {timeout:g} s")
            succeeded, result = self._connection.recv()
        except (EOFError, OSError) as error:
            raise VerifierFailure("crash", f"the process of {job[0]} died") from error
        if succeeded is None:
            raise VerifierFailure("crash", f"{job[0]} took too much memory, see {MEMORY}")
        if not succeeded:
            raise VerifierFailure("error", f"{job[0]} raised {result}")
        return result

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()


_shared: Workers | None = None
_lock = threading.Lock()
_of_thread = threading.local()


def workers() -> Workers:
    """The pool of this process, or the one that the thread has for itself."""
    global _shared
    own: Workers | None = getattr(_of_thread, "pool", None)
    if own is not None:
        return own
    with _lock:
        if _shared is None:
            _shared = Workers(most())
        return _shared


def use(pool: Workers) -> None:
    """Let this thread call verifiers in a pool of its own."""
    _of_thread.pool = pool


def most() -> int:
    """Child processes that the pool of this process may have."""
    return int(os.environ.get(PROCESSES, 0)) or min(4, os.cpu_count() or 1)


def load(function: str) -> Callable[..., Any]:
    """Import ``module:function``."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def leave_network() -> None:
    """Cut this process off, if the system allows it: a namespace of its own holds no interface but a loopback.

    The first call is root's; anyone may be let to do the second, before a thread is started.
    """
    unshare = getattr(ctypes.CDLL(None), "unshare", None)
    if unshare is not None and unshare(CLONE_NEWNET) != 0:
        unshare(CLONE_NEWUSER | CLONE_NEWNET)


def _limit_memory(beyond: float | None) -> None:
    """Let allocations fail beyond what is held now and so many GiB; None: lift the limit."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft, held = hard, Path("/proc/self/statm")
    if beyond and held.is_file():
        soft = int(held.read_text().split()[5]) * resource.getpagesize() + int(beyond * 2**30)
        soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def serve(descriptor: int, offline: bool) -> None:
    """The child: does one job after the other until the other side is gone."""
    if offline:
        leave_network()
    memory = float(os.environ.get(MEMORY, MEMORY_GIB))
    connection = Connection(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    while True:
        try:
            function, arguments, timeout = connection.recv()
        except EOFError:
            return
        # Should the parent be gone while a job runs for ever, the kernel ends it.
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = math.ceil(used.ru_utime + used.ru_stime + timeout + 1)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        answer: tuple[bool | None, Any] = (True, None)
        try:
            if arguments is None:  # comes first for each function
                _limit_memory(None)
                load(function)
                _limit_memory(memory)
            else:
                answer = (True, load(function)(*arguments))
        except MemoryError:  # what still is held nobody knows: the parent starts another process
            answer = (None, None)
        except Exception as error:  # told to the parent, which counts it
            answer = (False, f"{type(error).__name__}: {error}"[:300].partition("\n")[0])
        connection.send(answer)
