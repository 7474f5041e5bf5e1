# SPDX-License-Identifier: Apache-2.0
"""TEMPO on verl's own vLLM rollouts and agent loop, in a CPU build of vLLM: `make test-vllm`.

verl's code is as it is. What the CPU needs is in ``ENGINE``, ``ENVIRONMENT`` and ``stub/``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from harness import Evidence, Tour
from transformers import AutoModelForCausalLM
from verl.trainer.ppo.v1 import PPOTrainerSync

from tempo_verl.trainer.port import Port
from tempo_verl.trainer.trainer import TempoTrainer

pytestmark = pytest.mark.vllm

ROUNDS = 3
ENGINE = [
    "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class=null",
    # verl lets the engine sleep and wake, as on an accelerator; hardware=cpu has it off
    "actor_rollout_ref.rollout.free_cache_engine=true",
    # vLLM refuses this option on a CPU; without it the engine still sleeps and wakes, but keeps its memory
    "+actor_rollout_ref.rollout.enable_sleep_mode=false",
    "actor_rollout_ref.rollout.enforce_eager=true",
    "actor_rollout_ref.rollout.gpu_memory_utilization=0.1",
    "+actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes=67108864",
]
ENVIRONMENT = {"TORCH_COMPILE_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

# log-probabilities of sampled tokens: float32, vLLM's attention against torch's
TOLERANCE = 1e-4
CYCLE = ["sleep", "wake_up weights", "update_weights_from_ipc", "wake_up kv_cache"]


@dataclass
class Draw:
    """Rollouts that the trainer collected at once."""

    versions: set[tuple[int, int]]  # of the policy, when a response was begun and when it was complete
    input_ids: list[torch.Tensor]
    log_probs: list[torch.Tensor]  # as vLLM gave them, of the response's tokens


@dataclass
class Seen:
    """What a run asked of vLLM's engine, what the trainer did meanwhile, and what the engine drew."""

    calls: list[str] = field(default_factory=list)
    asleep: list[tuple[str, bool]] = field(default_factory=list)  # what the trainer begins, whether the engine sleeps
    draws: list[Draw] = field(default_factory=list)  # one a round, then those of the predictions
    processes: list[psutil.Process] = field(default_factory=list)
    found: Evidence | None = None


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy with attention heads of 32, the fewest that vLLM's CPU kernels know; ours have 16."""
    from tempo_verl.tasks.pretrain import pretrain
    from tempo_verl.tasks.running_sums import RunningSums

    task = RunningSums(seed=1, n_labeled=32, n_unlabeled=16, n_heldout=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempo_verl.tasks.pretrain.HEAD", 32)
        return pretrain(tmp_path_factory.mktemp("policy"), task, steps=150, batch_size=16).path


@pytest.fixture(scope="module")
def seen(compose, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder, seen = tmp_path_factory.mktemp("vllm"), Seen()
    config = compose(
        [
            *ENGINE,
            f"actor_rollout_ref.model.path='{policy}'",
            "actor_rollout_ref.rollout.n=4",
            "actor_rollout_ref.actor.optim.lr=1e-3",
            f"tempo.rounds={ROUNDS}",
            "tempo.checkpoint.keep=best",
            "trainer.test_freq=1",
            f"tempo.predictions.file='{folder / 'predictions.jsonl'}'",
            "tempo.predictions.n=2",
            "tempo.predictions.labeled=20",
            "tempo.predictions.before=0",
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        tour = Tour(config, folder)
        try:
            server = tour._trainer.llm_server_manager.get_replicas()[0].servers[0]
            seen.processes = psutil.Process(ray.get(server.__ray_call__.remote(lambda self: os.getpid()))).children(
                recursive=True
            )
            _record(server, seen, patch)
            seen.found = tour.leg(config, moments=["start", "end"], rows=True, folder=folder)
            seen.calls = ray.get(server.__ray_call__.remote(lambda self: self.calls))
        finally:
            tour.close()
    yield seen


def _record(server: Any, seen: Seen, patch: pytest.MonkeyPatch) -> None:
    def note_calls(self) -> None:
        """In the server's process."""
        self.calls, self.asleep = [], None

        def noting(name: str, call: Callable) -> Callable:
            async def noted(*args, **options):
                result = await call(*args, **options)
                what = options.get("method") or " ".join([name, *(options.get("tags") or [])])
                if isinstance(what, str) and not what.startswith("monkey"):
                    self.calls.append(what)
                    self.asleep = await self.engine.is_sleeping()
                return result

            return noted

        for name in ("sleep", "wake_up", "collective_rpc"):
            setattr(self.engine, name, noting(name, getattr(self.engine, name)))

    ray.get(server.__ray_call__.remote(note_calls))

    def before(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def noted(*args, **options):
            seen.asleep.append((name, ray.get(server.__ray_call__.remote(lambda self: self.asleep))))
            return original(*args, **options)

        patch.setattr(owner, name, noted)

    def collect(self, *args):
        parts, metrics = drawn(self, *args)
        tags = [tag for part in parts for tag in part.meta.tags]
        fields = [part.read("input_ids", "rollout_log_probs") for part in parts]
        seen.draws.append(
            Draw(
                {(tag["min_global_steps"], tag["max_global_steps"]) for tag in tags},
                [row.clone() for part in fields for row in part["input_ids"].unbind()],
                [row.clone() for part in fields for row in part["rollout_log_probs"].unbind()],
            )
        )
        return parts, metrics

    drawn = Port.collect
    patch.setattr(Port, "collect", collect)
    for name in ("collect", "values", "train_critic", "update_actor"):
        before(Port, name)
    before(TempoTrainer, "_save")
    before(PPOTrainerSync, "_save_checkpoint")


def off(draw: Draw, model: Path) -> float:
    """Largest distance of a token's log-probability from that of a plain forward pass of these weights."""
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    worst = 0.0
    with torch.inference_mode():
        for ids, given in zip(draw.input_ids, draw.log_probs, strict=True):
            logits = policy(input_ids=ids.unsqueeze(0)).logits[0, -(len(given) + 1) : -1]
            own = logits.log_softmax(-1).gather(1, ids[-len(given) :].unsqueeze(1)).squeeze(1)
            worst = max(worst, (own - given).abs().max().item())
    return worst


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_a_round_rolls_out_with_the_weights_of_the_last_update(seen: Seen, number: int) -> None:
    draw = seen.draws[number - 1]
    assert draw.versions == {(number - 1, number - 1)}
    assert len(draw.input_ids) == 12 * 4
    assert off(draw, seen.found.model(number, "actor", "start")) < TOLERANCE
    assert off(draw, seen.found.model(number, "actor", "end")) > 100 * TOLERANCE


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_rollout_and_trainer_agree_on_the_probabilities(seen: Seen, number: int) -> None:
    metrics = seen.found.metrics[number]
    assert metrics["training/rollout_probs_diff_valid"] == 1
    assert metrics["training/rollout_probs_diff_max"] < TOLERANCE
    assert metrics["training/rollout_actor_probs_pearson_corr"] > 1 - TOLERANCE


def test_the_final_policy_draws_the_predictions(seen: Seen) -> None:
    of_d_u, of_d_l = seen.draws[ROUNDS:]
    assert (len(of_d_u.input_ids), len(of_d_l.input_ids)) == (16 * 2, 20 * 2)
    for draw in (of_d_u, of_d_l):
        assert draw.versions == {(ROUNDS, ROUNDS)}
        assert off(draw, seen.found.model(ROUNDS, "actor", "end")) < TOLERANCE
        assert off(draw, seen.found.model(ROUNDS, "actor", "start")) > 100 * TOLERANCE
    assert len((seen.found.folder / "predictions.jsonl").read_text().splitlines()) == 16


def test_the_engine_sleeps_while_models_train_predict_or_are_saved(seen: Seen) -> None:
    awake, asleep = {"collect", "_save"}, {"values", "train_critic", "update_actor", "_save_checkpoint"}
    assert {name for name, _ in seen.asleep} == awake | asleep
    assert [event for event in seen.asleep if event[1] != (event[0] in asleep)] == []


def test_each_sleep_ends_with_new_weights_before_the_cache_comes_back(seen: Seen) -> None:
    begun = [name for name, _ in seen.asleep]
    assert begun.count("_save_checkpoint") == begun.count("_save") > 0
    times = ROUNDS + begun.count("_save") + 2  # 2: values of the predictions, of D_U and of D_L
    assert seen.calls[seen.calls.index("sleep") :] == CYCLE * times


def test_nothing_is_left_in_the_queue_or_running(seen: Seen) -> None:
    assert seen.found.left_in_queue == set()
    assert seen.processes
    _, alive = psutil.wait_procs(seen.processes, timeout=30)
    assert alive == []
