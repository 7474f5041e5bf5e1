# SPDX-License-Identifier: Apache-2.0
"""Waiting for rollouts: what verl's replay buffer would find, of one partition, and an end where nothing arrives."""

from __future__ import annotations

from typing import Any

import pytest
import transfer_queue as tq
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from tempo_verl.errors import UserError
from tempo_verl.trainer.arrivals import Arrivals

STATES = ("partitions", "pending_keys", "running_keys", "finished_keys", "failure_keys", "prompt_global_steps")
Rows = dict[str, dict[str, Any]]


def prompt(status: str, step: int = 3) -> dict[str, Any]:
    return {"is_prompt": True, "status": status, "global_steps": step}


ROUND: Rows = {
    "unlabeled-0-7": prompt("finished"),
    "unlabeled-0-7_0_0": {"status": "success", "seq_len": 5},
    "unlabeled-0-7_1_0": {"status": "success", "seq_len": 6},
    "unlabeled-1-4": prompt("failure", 2),
    "unlabeled-2-9": prompt("running"),
    "unlabeled-3-1": prompt("pending"),
}


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> dict[str, Rows]:
    """A queue without its processes, and under ``listed`` the partitions that were read."""
    stored = {"train": dict(ROUND), "replay": {"labeled-5-5_0_0": {"seq_len": 9}}, "listed": {}}

    def kv_list(partition_id: str | None = None) -> dict[str, Rows]:
        stored["listed"][str(partition_id)] = {}
        names = ("train", "replay") if partition_id is None else (partition_id,)
        return {name: dict(stored[name]) for name in names if name in stored}

    def kv_clear(keys: list[str], partition_id: str) -> None:
        for key in keys:
            del stored[partition_id][key]

    monkeypatch.setattr(tq, "kv_list", kv_list)
    monkeypatch.setattr(tq, "kv_clear", kv_clear)
    return stored


def verls() -> ReplayBuffer:
    return ReplayBuffer(
        trainer_mode="sync", trainer_config={}, max_off_policy_threshold=8, max_off_policy_strategy="drop",
        sampler_kwargs={}, poll_interval=0.01,
    )  # fmt: skip


def test_the_queue_is_read_as_verl_reads_it(queue: dict[str, Rows]) -> None:
    expected, ours = verls(), Arrivals(0.01, None)
    ours._asked = "train"
    for _ in range(2):  # the second look forgets the first
        expected._sync_metadata_from_transfer_queue()
        ours._sync_metadata_from_transfer_queue()
        for state in STATES:
            assert getattr(ours, state)["train"] == getattr(expected, state)["train"], state
        queue["train"].pop("unlabeled-2-9", None)
    assert set(vars(ours)) - set(vars(expected)) == {
        "errors", "timeout", "_asked", "_wanted", "_seen", "_since",
    }  # fmt: skip


def test_only_the_partition_that_is_asked_for_is_listed(queue: dict[str, Rows]) -> None:
    expected, metrics = verls().sample(global_steps=3, partition_id="train", batch_size=2)
    assert set(queue["listed"]) == {"None"}
    queue["train"], queue["listed"] = dict(ROUND), {}
    batch, ours = Arrivals(0.01, 5.0).sample(global_steps=3, partition_id="train", batch_size=2)
    assert set(queue["listed"]) == {"train"}
    assert (batch.keys, batch.tags, ours) == (expected.keys, expected.tags, metrics)
    assert batch.keys == ["unlabeled-0-7_0_0", "unlabeled-0-7_1_0"]
    assert set(queue["train"]) == ROUND.keys() - {"unlabeled-0-7", "unlabeled-1-4"}


def test_prompts_of_another_round_stay_under_way(queue: dict[str, Rows]) -> None:
    """Older ones too, which verl would take first."""
    batch, _ = Arrivals(0.01, 5.0).collect(3, {"unlabeled-0-7"})
    assert batch.keys == ["unlabeled-0-7_0_0", "unlabeled-0-7_1_0"]
    assert set(queue["train"]) == ROUND.keys() - {"unlabeled-0-7"}
    with pytest.raises(UserError, match="no rollout of round 3 succeeded"):  # its only prompt has failed
        Arrivals(0.01, 5.0).collect(3, {"unlabeled-1-4"})


def test_the_error_that_is_told_is_of_a_prompt_that_was_asked_for(queue: dict[str, Rows]) -> None:
    queue["train"] |= {name: prompt("failure") | {"error": name} for name in ("unlabeled-8-8", "unlabeled-9-9")}
    arrivals = Arrivals(0.01, 5.0)
    with pytest.raises(UserError, match=r"\(first: unlabeled-9-9\)"):
        arrivals.collect(3, {"unlabeled-9-9"})
    arrivals.sample(global_steps=3, partition_id="train", batch_size=4)
    assert set(arrivals.errors) == {"unlabeled-8-8", "unlabeled-9-9"}


def test_prompts_that_are_waited_for_stay_where_they_are(queue: dict[str, Rows]) -> None:
    before = dict(queue["train"])
    Arrivals(0.01, 5.0).wait({"unlabeled-0-7", "unlabeled-1-4"})
    assert queue["train"] == before
    with pytest.raises(UserError, match=r"nothing has arrived for tempo\.rollout_timeout=0\.05 s"):
        Arrivals(0.01, 0.05).wait({"unlabeled-0-7", "unlabeled-2-9"})


def test_a_partition_that_is_not_there_yet_is_waited_for(queue: dict[str, Rows]) -> None:
    with pytest.raises(UserError, match=r"not ended: 0 .* nothing has arrived for tempo\.rollout_timeout"):
        Arrivals(0.001, 0.005).sample(global_steps=3, partition_id="val", batch_size=1)


@pytest.mark.parametrize("timeout", [0.05, 0.2])
def test_a_prompt_that_never_ends_ends_the_run(queue: dict[str, Rows], timeout: float) -> None:
    with pytest.raises(UserError) as caught:
        Arrivals(0.01, timeout).sample(global_steps=3, partition_id="train", batch_size=4)
    assert str(caught.value) == (
        "prompts that have not ended: 2 (1 running, 1 not begun); nothing has arrived for "
        f"tempo.rollout_timeout={timeout:g} s; first: unlabeled-2-9, unlabeled-3-1 (the last number is the question's "
        "row); see the agent-loop log, or raise the limit"
    )


def test_many_stuck_prompts_are_named_in_part(queue: dict[str, Rows]) -> None:
    queue["train"] |= {f"unlabeled-{number}-0": prompt("pending") for number in range(10, 30)}
    with pytest.raises(UserError, match=r"ended: 22 .* first: (unlabeled-\d+-\d+, ){4}unlabeled-\d+-\d+ \(the last"):
        Arrivals(0.01, 0.05).sample(global_steps=3, partition_id="train", batch_size=30)


def test_the_clock_begins_anew_with_whatever_arrives(queue: dict[str, Rows]) -> None:
    arrivals, looks = Arrivals(0.03, 0.1), 0

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks <= 10:  # 0.3 s in all, three times the limit
            queue["train"][f"unlabeled-2-9_{looks}_0"] = {"status": "success"}
        else:
            queue["train"] |= {"unlabeled-2-9": prompt("finished"), "unlabeled-3-1": prompt("failure")}
        Arrivals._sync_metadata_from_transfer_queue(arrivals)

    arrivals._sync_metadata_from_transfer_queue = look
    batch, _ = arrivals.sample(global_steps=3, partition_id="train", batch_size=4)
    assert len(batch.keys) == 12
