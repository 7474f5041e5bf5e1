# SPDX-License-Identifier: Apache-2.0
"""Ends a run one of whose processes has died. Some calls would wait for it for ever, others fail with a riddle."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

import ray
from ray._private.state import actors  # the public list asks Ray's dashboard, which need not run

from tempo_verl.trainer.status import Status

logger = logging.getLogger(__name__)

LOOK_SECONDS = 3.0
# Until the run's own error has been told, if there is one.
GRACE_SECONDS = 5.0
ACCOUNT_SECONDS = 3.0
GO_ON = "run the same command again to go on from the last checkpoint"
UNEXPECTED = ("reason: WORKER_DIED", "reason: NODE_DIED", "oom_context")  # in Ray's account of a death
IN_WORDS = {
    "SimpleStorageUnit": "TransferQueue's storage",
    "TransferQueueController": "TransferQueue's controller",
    "TransformersServer": "the rollout server",
    "vLLMHttpServer": "the rollout server",
    "SGLangHttpServer": "the rollout server",
    "AgentLoopWorker": "an agent-loop worker",
    "RewardLoopWorker": "the reward worker",
    "WorkerDict": "a training worker",
}


class Lifeguard:
    """A context in which no actor of the run may die; a thread of its own looks at all of them."""

    def __init__(self, status: Status):
        self._status = status

    def __enter__(self) -> None:
        self._over = threading.Event()
        threading.Thread(target=self._look, args=(self._over,), name="lifeguard", daemon=True).start()

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def explain(self, error: BaseException) -> str | None:
        """Why the run has failed, if an actor has died, which Ray may know a moment after the error.

        Args:
            error: that was raised.
        """
        until = time.monotonic() + (ACCOUNT_SECONDS if "Actor" in f"{type(error).__name__}: {error}" else 0.0)
        while True:
            if (cause := self.dead()) is not None:
                return cause
            if time.monotonic() > until:
                break
            time.sleep(0.2)
        if isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError):
            return f"Ray has lost a process or a node ({type(error).__name__}); {GO_ON}"
        return None

    def dead(self) -> str | None:
        """Which actor of this run has died, in words; None: none has, or Ray does not say."""
        try:
            job, known = ray.get_runtime_context().get_job_id(), actors().values()
        except Exception:  # its head may be what has died; the run finds out by itself
            logger.exception("Ray does not say which processes are alive")
            return None
        found = [actor for actor in known if actor["JobID"] == job and _unexpectedly(actor)]
        return _told(min(found, key=lambda actor: actor["EndTime"])) if found else None

    def _look(self, over: threading.Event) -> None:
        while not over.wait(LOOK_SECONDS):
            cause = self.dead()
            if cause is None:
                continue
            if over.wait(GRACE_SECONDS):  # the run's own error was told meanwhile, or all is over
                return
            self._status.failed(cause)
            logger.error("tempo-verl: %s", cause)
            time.sleep(0.5)  # for the log to get through
            os._exit(1)  # whoever waits for the dead cannot be interrupted otherwise


def _unexpectedly(actor: dict[str, Any]) -> bool:
    """Others end because nobody holds them any more, or because they were asked to."""
    return actor["State"] == "DEAD" and any(reason in str(actor["DeathCause"]) for reason in UNEXPECTED)


def _told(actor: dict[str, Any]) -> str:
    kind = next((words for name, words in IN_WORDS.items() if name in actor["ActorClassName"]), None)
    who = kind or f"the process of {actor['ActorClassName']}"
    return (
        f"{who} died (process {actor['Pid']} on {actor['Address']['IPAddress']}: killed, crashed, or out of memory); "
        f"{GO_ON}"
    )
