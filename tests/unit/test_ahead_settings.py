# SPDX-License-Identifier: Apache-2.0
"""Rollouts ahead of their round: after which rounds there are any, and what is refused."""

from __future__ import annotations

import pytest

from tempo_verl.config.ahead import BATCHED, check_ahead, streams_ahead
from tempo_verl.config.checks import check_settings
from tempo_verl.config.schema import read_settings
from tempo_verl.errors import UserError

BOTH = "tempo.ahead.streams=[labeled,unlabeled]"
GPU = ("hardware=fsdp", "trainer.n_gpus_per_node=1")
LOOP = "actor_rollout_ref.rollout.agent.agent_loop_manager_class"


def drawn(compose, *overrides: str) -> dict[int, list[str]]:
    """Round -> the streams that are drawn in it for the next one."""
    config = compose(["tempo.rounds=8", *overrides])
    method = read_settings(config)
    found = {n: streams_ahead(method, config.trainer, n, last=n == 8) for n in range(1, 9)}
    return {number: streams for number, streams in found.items() if streams}


def test_nothing_is_drawn_ahead_unless_it_is_asked_for(compose) -> None:
    assert drawn(compose) == {}


def test_every_round_but_the_last_draws_ahead(compose) -> None:
    assert drawn(compose, BOTH) == {number: ["labeled", "unlabeled"] for number in range(1, 8)}
    assert drawn(compose, "tempo.ahead.streams=[unlabeled]") == {number: ["unlabeled"] for number in range(1, 8)}


@pytest.mark.parametrize("field", ["save_freq", "test_freq"])
def test_nothing_is_drawn_over_a_checkpoint_or_a_validation(compose, field: str) -> None:
    assert list(drawn(compose, BOTH, f"trainer.{field}=3")) == [1, 2, 4, 5, 7]


def test_only_what_the_next_round_needs_is_drawn(compose) -> None:
    interval = drawn(compose, BOTH, "tempo.calibration.interval=3")
    assert {number for number, streams in interval.items() if "labeled" in streams} == {3, 6}
    assert all("unlabeled" in streams for streams in interval.values())
    warm_up = drawn(compose, BOTH, "tempo.calibration.warmup_rounds=4")
    assert {number for number, streams in warm_up.items() if "unlabeled" in streams} == {4, 5, 6, 7}


def test_what_the_gate_decides_is_not_drawn(compose) -> None:
    gate = "tempo.calibration.gate.min_auroc=0.6"
    needed = {number: ["labeled"] for number in range(1, 8)}  # whether it is open or closed
    assert drawn(compose, BOTH, gate) == needed
    assert drawn(compose, "tempo.ahead.streams=[labeled]", gate, "tempo.calibration.interval=3").keys() == {3, 6}


# ---------------------------------------------------------------------- checks


@pytest.mark.parametrize(
    "overrides",
    [
        [BOTH],
        [BOTH, "tempo.ahead.mode=partial", f"{LOOP}=null"],
        [BOTH, f"{LOOP}=null"],
        ["method=ppo", "tempo.ahead.streams=[labeled]"],
        ["method=empo", "tempo.ahead.streams=[unlabeled]"],
        ["tempo.ahead.mode=partial"],  # nobody reads it
    ],
)
def test_allowed(compose, overrides: list[str]) -> None:
    check_settings(compose(overrides))


@pytest.mark.parametrize("hardware", ["fsdp", "megatron"])
def test_accelerators_interrupt(compose, hardware: str) -> None:
    config = compose([f"hardware={hardware}", BOTH])
    assert config.tempo.ahead.mode == "partial"
    check_ahead(config, read_settings(config))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([*GPU, BOTH, "tempo.ahead.mode=overlap"], "mode=overlap: the engine of actor_rollout_ref.rollout.name=vllm"),
        ([BOTH, "tempo.ahead.mode=partial"], f"set it to overlap, or {LOOP}=null"),
        (["method=ppo", BOTH], "draws no unlabeled prompts; leave unlabeled out"),
        (["method=ttrl", BOTH], "draws no labeled prompts; leave labeled out"),
        ([BOTH, "tempo.rounds=1"], "no round draws labeled prompts ahead"),
        ([BOTH, "trainer.save_freq=1"], "trainer.save_freq=1, trainer.test_freq=-1"),
        ([BOTH, "tempo.calibration.gate.min_auroc=0.6"], "no round draws unlabeled prompts ahead"),
        (["tempo.ahead.streams=[both]"], "tempo.ahead.streams=both is unknown; choose one of labeled, unlabeled"),
        (["tempo.ahead.mode=async"], "tempo.ahead.mode=async is unknown; choose one of partial, overlap"),
        (["trainer.v1.trainer_mode=colocate_async"], "tempo.ahead.streams does what this one does"),
        (["trainer.v1.trainer_mode=separate_async"], "see docs/asynchronous.md"),
    ],
)
def test_refused(compose, overrides: list[str], told: str) -> None:
    config = compose(overrides)
    with pytest.raises(UserError) as caught:
        check_settings(config)
        check_ahead(config, read_settings(config))
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_manager_that_is_refused_is_the_one_that_is_shipped(compose) -> None:
    assert compose().actor_rollout_ref.rollout.agent.agent_loop_manager_class == BATCHED
