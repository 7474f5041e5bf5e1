# SPDX-License-Identifier: Apache-2.0
"""How far a run is and why it ended, for another process."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from tempo_verl.errors import UserError
from tempo_verl.launch import last_error
from tempo_verl.trainer.status import State, Status, read_status


def test_the_life_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "run" / "status.json"
    assert read_status(file) == State()
    status = Status(file)
    assert read_status(file).state == "starting"
    status.round(1, 10)
    status.ends_early("alarm auroc: the critic hardly tells right from wrong")
    status.round(2, 3)
    found = read_status(file)
    assert (found.state, found.round, found.rounds) == ("running", 2, 3)
    assert found.ends_early == "alarm auroc: the critic hardly tells right from wrong"
    status.done()
    assert read_status(file).state == "done"


def test_a_failure_is_written_and_raised(tmp_path: Path) -> None:
    status = Status(tmp_path / "status.json")
    with pytest.raises(UserError, match="too many"), status.of_failure():
        raise UserError("too many responses without a verdict\nsecond line")
    found = read_status(tmp_path / "status.json")
    assert (found.state, found.error) == ("failed", "UserError: too many responses without a verdict")


def test_what_a_worker_raised_is_told_and_not_that_ray_brought_it(tmp_path: Path) -> None:
    status = Status(tmp_path / "status.json")
    brought = RayTaskError("train_mini_batch", "Traceback ...", ValueError("out of memory")).as_instanceof_cause()
    with pytest.raises(ValueError), status.of_failure():
        raise brought
    assert read_status(tmp_path / "status.json").error == "ValueError: out of memory"


def test_no_file_is_written_where_none_is_named(tmp_path: Path) -> None:
    Status(None).done()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_ended_without_its_trainer_is_explained_by_its_last_error(tmp_path: Path) -> None:
    log = tmp_path / "verl.log"
    log.write_text(
        "start\n(TaskRunner pid=7) omegaconf.errors.InterpolationResolutionError: no such key\n    object_type=dict\n"
    )
    assert last_error(log) == "omegaconf.errors.InterpolationResolutionError: no such key"
    log.write_text("start\nKilled\n")
    assert last_error(log) == "Killed"
