# SPDX-License-Identifier: Apache-2.0
"""What is told of a run that has failed: whoever died, rather than whoever noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from tempo_verl.errors import UserError
from tempo_verl.trainer import lifeguard
from tempo_verl.trainer.lifeguard import Lifeguard
from tempo_verl.trainer.status import Status, read_status

DIED = {
    "State": "DEAD", "JobID": "01", "ActorClassName": "TransformersServer", "Pid": 7, "EndTime": 1,
    "Address": {"IPAddress": "127.0.0.1"}, "DeathCause": "actor_died_error_context {\n  reason: WORKER_DIED\n}",
}  # fmt: skip


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """``guard(actors)``: a lifeguard that Ray tells of these."""

    class Context:
        def get_job_id(self) -> str:
            return "01"

    def make(*known: dict) -> Lifeguard:
        monkeypatch.setattr(lifeguard, "actors", lambda: dict(enumerate(known)))
        return Lifeguard(Status(tmp_path / "status.json"))

    monkeypatch.setattr(lifeguard, "ACCOUNT_SECONDS", 0.3)
    monkeypatch.setattr(ray, "get_runtime_context", Context)
    return make


@pytest.mark.parametrize(
    ("cause", "dead"),
    [
        ("actor_died_error_context {\n reason: WORKER_DIED\n}", True),
        ("actor_died_error_context {\n reason: NODE_DIED\n}", True),
        ("oom_context {\n error_message: ...\n}", True),
        ("actor_died_error_context {\n reason: OUT_OF_SCOPE\n}", False),
        ("actor_died_error_context {\n reason: RAY_KILL\n}", False),
    ],
)
def test_an_actor_that_was_let_go_is_no_fault(guard, cause: str, dead: bool) -> None:
    told = guard(DIED | {"DeathCause": cause}).dead()
    assert (told is not None) == dead
    if told:
        assert told.startswith(
            "the rollout server died (process 7 on 127.0.0.1: killed, crashed, or out of memory); run"
        )


def test_others_on_the_cluster_are_not_looked_at(guard) -> None:
    assert guard(DIED | {"JobID": "02"}, DIED | {"State": "ALIVE"}).dead() is None


def test_a_rollout_that_failed_because_its_server_died_is_no_mistake_of_the_user(guard, tmp_path: Path) -> None:
    """A mistake is not met again by a restart; this one is."""
    watching, status = guard(DIED), Status(tmp_path / "told.json")
    with pytest.raises(UserError), status.of_failure(watching.explain):
        raise UserError("no rollout of round 3 succeeded (first: ActorDiedError: ...)")
    assert read_status(tmp_path / "told.json").error.startswith("the rollout server died")


def test_a_mistake_is_told_as_it_is(guard, tmp_path: Path) -> None:
    watching, status = guard(), Status(tmp_path / "told.json")
    with pytest.raises(UserError), status.of_failure(watching.explain):
        raise UserError("tempo.rounds=-1 must be at least 1")
    assert read_status(tmp_path / "told.json").error == "UserError: tempo.rounds=-1 must be at least 1"


def test_ray_itself_may_be_what_was_lost(guard) -> None:
    told = guard().explain(ray.exceptions.RaySystemError("socket closed"))
    assert told.startswith("Ray has lost a process or a node (RaySystemError); run the same command again")


def test_a_disk_that_is_full_does_not_hide_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = Status(tmp_path / "status.json")
    monkeypatch.setattr("tempo_verl.trainer.status.write_text", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(KeyError, match="the cause"), status.of_failure():
        raise KeyError("the cause")
