# SPDX-License-Identifier: Apache-2.0
"""No answer of D_U reaches training: with other answers in the file, every weight and optimiser tensor is the same."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from harness import Evidence

ROUNDS = 2
OPTIONS = [
    f"tempo.rounds={ROUNDS}",
    "actor_rollout_ref.rollout.n=4",
    # everything that looks at responses or at the critic on the way
    "tempo.unlabeled.batch_size=20",
    "tempo.unlabeled.repeat=2",
    "tempo.unlabeled.focus=0.5",
    "tempo.shaping.format_penalty=0.1",
    "tempo.shaping.overlong_buffer=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=10",
    "tempo.predictions.n=2",
    "tempo.predictions.labeled=20",
]
METHODS = {
    "tempo": ["tempo.calibration.mini_batch_size=4"],
    "ttrl": ["critic.model.path=null", "tempo.ttrl.n_votes=6", "tempo.ttrl.n_train=4"],
    "empo": ["critic.model.path=null"],
}


def with_answers(source: Path, target: Path, answers: list[str]) -> Path:
    """The question file with these monitoring answers."""
    rows = pq.read_table(source).to_pylist()
    for row, answer in zip(rows, answers, strict=True):
        row["reward_model"]["ground_truth"] = answer
    pq.write_table(pa.Table.from_pylist(rows), target)
    return target


# ttrl and empo in `make test-all`: no critic to leak through, and votes of answers that the policy itself gave
@pytest.fixture(
    scope="module", params=["tempo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ttrl", "empo"))]
)
def runs(request, tour, tmp_path_factory, compose, tiny_task: Path) -> list[Evidence]:
    """The same rounds with the true answers of D_U in the file, and with garbage."""
    options = [*tour.models, *OPTIONS, f"method={request.param}", *METHODS[request.param]]
    found = []
    for name in ("true", "garbage"):
        folder = tmp_path_factory.mktemp(name)
        questions = tiny_task / "unlabeled.parquet"
        if name == "garbage":
            rows = pq.read_table(questions).num_rows
            questions = with_answers(questions, folder / "unlabeled.parquet", [f"no-{row}" for row in range(rows)])
        files = [f"tempo.unlabeled.files='{questions}'", f"tempo.predictions.file='{folder / 'predictions.jsonl'}'"]
        found.append(tour.leg(compose([*options, *files]), moments=["start", "end"], folder=folder))
    return found


def tensors(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, by their path in it."""
    if isinstance(value, torch.Tensor):
        return {name: value.to_local() if hasattr(value, "to_local") else value}
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {}
    return {path: tensor for key, item in items for path, tensor in tensors(item, f"{name}/{key}").items()}


def roles(run: Evidence) -> set[str]:
    """Actor, and critic where there is one."""
    return {role for _, role, _ in run.saved}


def test_weights_and_optimisers_are_bitwise_equal(runs: list[Evidence]) -> None:
    for number, role, kind in product(range(1, ROUNDS + 1), roles(runs[0]), ("model", "optim")):
        first, second = (
            tensors(torch.load(run.saved[number, role, "end"] / f"{kind}_world_size_1_rank_0.pt", weights_only=False))
            for run in runs
        )
        assert first.keys() == second.keys()
        assert len(first) > 10
        assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_the_runs_did_train(runs: list[Evidence]) -> None:
    for role in roles(runs[0]):
        assert runs[0].changed(ROUNDS, role)


def test_only_oracle_metrics_tell_the_runs_apart(runs: list[Evidence]) -> None:
    for number in range(1, ROUNDS + 1):
        first, second = (run.metrics[number] for run in runs)
        assert second["tempo/oracle/accuracy"] == 0.0  # nothing equals garbage
        assert "tempo/oracle/accuracy" in first
        learned = [
            name
            for name in first
            if name.startswith("tempo/") and not name.startswith(("tempo/oracle", "tempo/time", "tempo/memory"))
        ]
        assert len(learned) > (20 if "critic" in roles(runs[0]) else 10)
        assert {name: first[name] for name in learned} == {name: second[name] for name in learned}


def test_the_predictions_are_the_same(runs: list[Evidence]) -> None:
    for name, lines in (("predictions.jsonl", 16), ("predictions.shown.json", 1)):
        first, second = ((run.folder / name).read_bytes() for run in runs)
        assert first == second
        assert first.count(b"\n") == lines


def test_epochs_are_counted_by_questions_handed_out(runs: list[Evidence]) -> None:
    # 20 prompts a round from a set of 16
    for number in range(1, ROUNDS + 1):
        assert runs[0].metrics[number]["tempo/unlabeled/epoch"] == number * 20 / 16
        if "critic" in roles(runs[0]):
            assert runs[0].metrics[number]["tempo/labeled/epoch"] == number * 8 / 32


def test_shaping_is_logged_apart(runs: list[Evidence]) -> None:
    metrics = runs[0].metrics[1]
    assert -0.1 - 1e-6 <= metrics["tempo/shaping/format"] <= 0.0  # float32
    assert -1.0 <= metrics["tempo/shaping/overlong"] <= 0.0
    assert metrics["tempo/shaping/length"] == 0.0
    assert 0.0 <= metrics["tempo/unlabeled/reward_mean"] <= 1.0  # the critic's values, without penalties
