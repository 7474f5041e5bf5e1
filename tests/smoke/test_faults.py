# SPDX-License-Identifier: Apache-2.0
"""What goes wrong within a round: odd responses, broken verdicts, numbers that are none. Nothing is trained on them."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from harness import Evidence
from ray import cloudpickle
from verl.workers.rollout.replica import TokenOutput

from tempo_verl.algo.advantage import on_tokens
from tempo_verl.algo.jagged import tokens_of
from tempo_verl.config.schema import Guard
from tempo_verl.errors import UserError
from tempo_verl.tasks.running_sums import END, VOCABULARY
from tempo_verl.trainer.guard import check_groups
from tempo_verl.trainer.port import Port

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test

LOOPS = ["actor_rollout_ref.rollout.agent.agent_loop_manager_class=null"]
LONGEST = 24


@pytest.fixture(scope="module")
def train(tour, compose):
    """``train(overrides)``: TEMPO on the CPU, with the weights before and after each round."""

    def run(*overrides: str) -> Evidence:
        options = [*tour.models, "actor_rollout_ref.rollout.n=4", *overrides]
        return tour.leg(compose(options), moments=("start", "end"))

    return run


@pytest.fixture
def judged_by(tiny_task: Path, tmp_path: Path):
    """``judged_by(style)``: the overrides that name D_L with another verifier."""

    def write(style: str) -> list[str]:
        rows = pq.read_table(tiny_task / "labeled.parquet").to_pylist()
        for row in rows:
            row["reward_model"]["style"] = style
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "labeled.parquet")
        return [f"tempo.labeled.files='{tmp_path / 'labeled.parquet'}'", f"tempo.verifier.allow=['{style}']"]

    return write


# ---------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(("style", "accuracy"), [("verdicts:right", 1.0), ("verdicts:wrong", 0.0)])
def test_a_round_of_equal_verdicts_trains_and_says_no_auroc(train, judged_by, style: str, accuracy: float) -> None:
    found = train("tempo.rounds=1", *judged_by(style))
    assert found.metrics[1]["tempo/labeled/accuracy"] == accuracy
    assert "tempo/labeled/auroc" not in found.metrics[1]
    assert found.changed(1, "critic")
    assert found.changed(1, "actor")


def test_a_verdict_that_is_no_number_is_a_failure_of_the_verifier(train, judged_by) -> None:
    with pytest.raises(UserError) as caught:
        train("tempo.rounds=1", *judged_by("verdicts:nan"))
    message = str(caught.value)
    assert "32 of 32 labeled responses of round 1 got no verdict" in message
    assert "verdicts:nan returned correct=nan, neither true nor false" in message


# ---------------------------------------------------------------------- numbers


def poison(workers, role: str) -> None:
    """Make a weight of a role no number, in its training workers."""

    def fill(worker, role: str) -> None:
        part = next(part for name, part in worker.worker_dict.items() if name.startswith(role))
        weight = next(getattr(part, "actor", part).engine.module.parameters())
        with torch.no_grad():
            weight.fill_(float("nan"))

    ray.get([worker.__ray_call__.remote(fill, role) for worker in workers.workers])


def test_a_critic_that_has_diverged_rewards_nobody(tour, train, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Port.train_critic

    def diverges(port: Port, *args, **options):
        metrics = fit(port, *args, **options)
        poison(port._critic, "critic")
        return metrics

    monkeypatch.setattr(Port, "train_critic", diverges)
    with pytest.raises(UserError) as caught:
        train("tempo.rounds=1")
    message = str(caught.value)
    assert message.startswith("the critic's values of 16 of 16 responses are not finite numbers (first: nan, response ")
    assert len(message.splitlines()) == 1


def test_a_policy_that_has_diverged_is_told_where_its_rollouts_fail(train, monkeypatch: pytest.MonkeyPatch) -> None:
    update = Port.update_actor

    def diverges(port: Port, *args) -> None:
        update(port, *args)
        poison(port._actor, "actor")

    monkeypatch.setattr(Port, "update_actor", diverges)
    with pytest.raises(UserError) as caught:
        train("tempo.rounds=2")
    message = str(caught.value)
    assert message.startswith("no rollout of round 2 succeeded (first: ")
    assert "nan" in message
    assert len(message.splitlines()) == 1


def test_updates_without_a_finite_gradient_are_skipped_counted_and_end_the_run(
    train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finite advantages whose gradient leaves float32."""
    update = Port.update_actor

    def explodes(port: Port, samples, *args) -> None:
        samples.write(advantages=on_tokens(torch.full((len(samples),), 3e38), samples.response_mask))
        update(port, samples, *args)

    monkeypatch.setattr(Port, "update_actor", explodes)
    found = train("tempo.rounds=2")
    assert [found.metrics[number]["tempo/skipped_updates"] for number in (1, 2)] == [1, 1]
    assert not found.changed(1, "actor")
    with pytest.raises(UserError, match="the gradient of the actor was not finite in 3 rounds in a row"):
        train("tempo.rounds=4")


def test_with_check_frozen_nothing_else_is_trained(train) -> None:
    found = train("tempo.rounds=1", "tempo.guard.check_frozen=true")
    assert found.changed(1, "critic")
    assert found.changed(1, "actor")


# ---------------------------------------------------------------------- responses


class Odd:
    """Stands in for verl's inference client. Responses are nothing, only the end, and more than is allowed."""

    def __init__(self) -> None:
        self.asked: Counter[tuple[int, ...]] = Counter()

    async def generate(self, request_id, *, prompt_ids, sampling_params, **_options) -> TokenOutput:
        context = tuple(prompt_ids)
        self.asked[context] += 1
        one, end = VOCABULARY.index("1"), VOCABULARY.index(END)
        ids = [[], [end], [one] * (LONGEST + 10), [one, end]][self.asked[context] % 4]
        steps = {"global_steps": 0, "min_global_steps": 0, "max_global_steps": 0}
        return TokenOutput(token_ids=ids, log_probs=[-0.5] * len(ids), stop_reason="completed", extra_fields=steps)


def test_odd_responses_are_trained_on_or_counted_as_missing(tour, compose) -> None:
    config = compose([*tour.models, "actor_rollout_ref.rollout.n=4", *LOOPS])
    trainer = tour.agents(config, Odd())
    submitted = trainer.port.submit(trainer.streams.unlabeled.next_batch(), 0)
    (samples,), _ = trainer.port.collect(0, submitted)
    told = check_groups("unlabeled", samples, len(submitted), 4, trainer.method.settings.guard)
    lengths = Counter(samples.response_lengths)
    assert set(lengths) <= {1, 2, LONGEST}
    assert lengths[LONGEST] == lengths[2] == lengths[1] == len(submitted)
    assert told == {"tempo/unlabeled/failed_prompts": 0, "tempo/unlabeled/partial_groups": len(submitted)}
    assert tokens_of(samples.response_mask).min() > 0
    strict = Guard(max_missing_share=0.2, max_skipped_rounds=1, check_frozen=False)
    with pytest.raises(UserError, match="4 of 16 unlabeled responses did not arrive, more than"):
        check_groups("unlabeled", samples, len(submitted), 4, strict)
    tour.clear()
