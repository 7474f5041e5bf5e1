# SPDX-License-Identifier: Apache-2.0
"""A small file that says how far a run is and why it ended, for whoever watches the run from another process."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tempo_verl.trainer.manifest import write_text

logger = logging.getLogger(__name__)

TERMINATING = (signal.SIGTERM, signal.SIGHUP)


@dataclass
class State:
    """What the file holds.

    Attributes:
        state: ``starting``, ``running``, ``done`` or ``failed``.
        round: the last finished one, 0 before the first.
        rounds: how many there will be.
        ends_early: why the run ends before its last round; None if it does not.
        error: why it failed: type and message of the exception; None if it did not.
        notices: what whoever started the run should know: checkpoints that were passed over.
    """

    state: str = "starting"
    round: int = 0
    rounds: int | None = None
    ends_early: str | None = None
    error: str | None = None
    notices: list[str] = field(default_factory=list)


class Status:
    """Writes the file after each change.

    Args:
        path: ``tempo.status_file``; None writes none.
    """

    def __init__(self, path: str | Path | None):
        self._path, self._now = None if path is None else Path(path), State()
        self._write()

    def round(self, number: int, rounds: int) -> None:
        """A round is over."""
        self._now.state, self._now.round, self._now.rounds = "running", number, rounds
        self._write()

    def ends_early(self, reason: str) -> None:
        """The next round is the last."""
        self._now.ends_early = reason
        self._write()

    def notice(self, text: str) -> None:
        """Something that whoever started the run should know."""
        self._now.notices.append(text)
        self._write()

    def done(self) -> None:
        """Everything is written."""
        self._now.state = "done"
        self._write()

    def failed(self, cause: str) -> None:
        """The run is over. Where the disk is full, the cause is in the log alone."""
        self._now.state, self._now.error = "failed", cause
        try:
            self._write()
        except OSError as error:
            logger.error("tempo-verl: %s (%s cannot be written: %s)", cause, self._path, error)

    @contextmanager
    def of_failure(self, explained: Callable[[BaseException], str | None] = lambda error: None) -> Iterator[None]:
        """Tell of whatever is raised within.

        Args:
            explained: asked for a better cause than the exception; None: it knows none.
        """
        try:
            yield
        except BaseException as error:
            cause = explained(error)
            self.failed(told(error) if cause is None else cause)
            raise

    def _write(self) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, json.dumps(asdict(self._now)))


def told(error: BaseException) -> str:
    """Type and first line of an exception; of one that Ray has brought from a worker, those of its cause."""
    while isinstance(getattr(error, "cause", None), BaseException):
        error = error.cause  # type: ignore[attr-defined]
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, SystemExit) and error.code in TERMINATING:  # what Ray makes of a signal
        return f"ended by {signal.Signals(error.code).name} (by hand, or by the system)"
    lines = [line for line in map(str.strip, str(error).splitlines()) if line]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def read_status(path: Path) -> State:
    """What the file says; a fresh :class:`State` where there is none."""
    return State(**json.loads(path.read_text())) if path.is_file() else State()
