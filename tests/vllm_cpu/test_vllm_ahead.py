# SPDX-License-Identifier: Apache-2.0
"""Rollouts ahead of their round with vLLM: interrupted, put to sleep, updated and resumed by verl's own replica."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from harness import Evidence, Tour
from test_vllm_rounds import ENGINE, ENVIRONMENT, TOLERANCE, policy  # noqa: F401
from transformers import AutoModelForCausalLM

from tempo_verl.trainer.port import Port

pytestmark = pytest.mark.vllm
ROUNDS = 4


@dataclass
class Response:
    """Of one row: the versions that began and ended it, its tokens and their log-probabilities by vLLM."""

    versions: tuple[int, int]
    input_ids: torch.Tensor
    log_probs: torch.Tensor


@dataclass
class Seen:
    """What each round collected, and what was left behind."""

    rounds: list[list[Response]] = field(default_factory=list)
    found: Evidence | None = None


@pytest.fixture(scope="module")
def seen(compose, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:  # noqa: F811
    folder, seen = tmp_path_factory.mktemp("vllm_ahead"), Seen()
    config = compose(
        [
            *ENGINE,
            f"actor_rollout_ref.model.path='{policy}'",
            "actor_rollout_ref.rollout.n=4",
            "actor_rollout_ref.rollout.max_num_seqs=2",  # so that the next round's wait for this one's
            "actor_rollout_ref.actor.optim.lr=1e-3",
            f"tempo.rounds={ROUNDS}",
            "trainer.save_freq=3",
            "tempo.ahead.streams=[labeled,unlabeled]",
            "tempo.ahead.mode=partial",
        ]
    )

    def collect(self, *args):
        parts, metrics = drawn(self, *args)
        rows = []
        for part in parts:
            stored = part.read("input_ids", "rollout_log_probs")
            columns = (stored[name].unbind() for name in ("input_ids", "rollout_log_probs"))
            for tag, ids, told in zip(part.meta.tags, *columns, strict=True):
                rows.append(Response((tag["min_global_steps"], tag["max_global_steps"]), ids.clone(), told.clone()))
        seen.rounds.append(rows)
        return parts, metrics

    drawn = Port.collect
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setattr(Port, "collect", collect)
        tour = Tour(config, folder)
        try:
            seen.found = tour.leg(config, moments=["start"], folder=folder)
        finally:
            tour.close()
    yield seen


def error_under(model: Path, response: Response) -> torch.Tensor:
    """(T,) distance of each token's log-probability from that of a plain forward pass of these weights."""
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    length = len(response.log_probs)
    with torch.inference_mode():
        logits = plain(input_ids=response.input_ids.unsqueeze(0)).logits[0, -(length + 1) : -1]
    own = logits.log_softmax(-1).gather(1, response.input_ids[-length:].unsqueeze(1)).squeeze(1)
    return (own - response.log_probs).abs()


def test_no_rollout_is_older_than_one_policy_version(seen: Seen) -> None:
    for number, rows in enumerate(seen.rounds, start=1):
        assert {end - begun for (begun, end) in (row.versions for row in rows)} <= {0, 1}
        assert {number - 1 - row.versions[0] for row in rows} <= {0, 1}
    assert {row.versions for number in (1, 4) for row in seen.rounds[number - 1]} == {(0, 0), (3, 3)}
    ahead = [(number, row.versions) for number in (2, 3) for row in seen.rounds[number - 1]]
    assert any(begun < number - 1 for number, (begun, _) in ahead)
    assert any(begun < end for _, (begun, end) in ahead), "none was interrupted"


def test_every_token_is_of_a_policy_that_is_told(seen: Seen) -> None:
    for rows in seen.rounds:
        for row in rows:
            models = [seen.found.model(version + 1, "actor", "start") for version in sorted(set(row.versions))]
            errors = torch.stack([error_under(model, row) for model in models])
            assert errors.min(dim=0).values.max() < TOLERANCE


def test_nothing_is_left_under_way(seen: Seen) -> None:
    assert seen.found.left_in_queue == set()
    assert [len(rows) for rows in seen.rounds] == [12 * 4] * ROUNDS
