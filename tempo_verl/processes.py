# SPDX-License-Identifier: Apache-2.0
"""The processes of a run: none of them is to outlive it, whichever of them ends first."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
from collections.abc import Iterator

import psutil

# Linux, prctl: a signal when the parent dies; processes that lose their parent become ours.
PARENT_DEATH_SIGNAL, SUBREAPER = 1, 36
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
READY = b"\n"  # on a process's standard input: what it needs is made
PATIENCE = 10.0  # seconds for processes to end by themselves, and again after they were asked to


@contextlib.contextmanager
def none_left() -> Iterator[None]:
    """End whatever was started within and is still there at the end.

    Ray starts its processes apart from the one that asks for them: where that one is killed, some of them stay. On
    Linux they become children of this process then; elsewhere they are not found.
    """
    _prctl(SUBREAPER, 1)
    before = set(_descendants())
    try:
        yield
    finally:
        _end([process for process in _descendants() if process not in before])


def end_with_parent() -> None:
    """In a process that has just begun: end it when its parent dies. On Linux only."""
    _prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    if LIBC is not None:
        LIBC.prctl(option, value, 0, 0, 0)


def _descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE)
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                ask(process)
        _, alive = psutil.wait_procs(alive, timeout=PATIENCE)
