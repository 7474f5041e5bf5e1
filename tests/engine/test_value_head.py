# SPDX-License-Identifier: Apache-2.0
"""``critic.float32_head`` in verl's own training worker, under FSDP2's bfloat16 mixed precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import linear
from verl.workers.engine_workers import TrainingWorker
from workers import furthest, outputs_of, rank_of, rows_for, samples, train, worker_of

from tempo_verl.value_head import Float32Head

MIXED = "critic.fsdp.mixed_precision={param_dtype: bf16, reduce_dtype: fp32, buffer_dtype: fp32}"
WAYS = {
    "padded": [],
    "packed": ["critic.model.use_remove_padding=true"],
    "LoRA": ["critic.model.lora_rank=4"],
    "offloaded": ["critic.fsdp.param_offload=true", "critic.fsdp.optimizer_offload=true"],
}


@pytest.fixture(scope="module")
def rows(tiny_policy: Path):
    return rows_for("critic", samples(tiny_policy))


@pytest.fixture(scope="module")
def critic(compose, tmp_path_factory) -> Iterator[Callable[..., TrainingWorker]]:
    """``critic(*overrides)``: a worker of its own."""
    with rank_of(tmp_path_factory.mktemp("rank")):
        yield lambda *overrides: worker_of(compose(["tempo.calibration.lr=1e-3", *overrides]), "critic")


def head_of(worker: TrainingWorker) -> Float32Head:
    return next(module for module in worker.engine.module.modules() if isinstance(module, Float32Head))


@pytest.mark.parametrize("way", WAYS)
def test_the_head_computes_and_answers_in_float32(critic, rows, way: str) -> None:
    worker, seen = critic(MIXED, *WAYS[way]), []
    train(worker, "critic", rows, 1)  # to weights that bfloat16 cannot hold
    head = head_of(worker)
    weight, bias = (part.full_tensor().detach().clone() for part in (head.weight, head.bias))
    assert not torch.equal(weight, weight.bfloat16().float())
    with head.register_forward_hook(lambda module, given, _: seen.append((given[0], module.weight.dtype))):
        values = outputs_of(worker, "critic", rows)
    assert {(hidden.dtype, dtype) for hidden, dtype in seen} == {(torch.bfloat16, torch.float32)}
    assert {value.dtype for value in values} == {torch.float32}
    computed = torch.cat([linear(hidden.float(), weight, bias).flatten() for hidden, _ in seen]).sort().values
    found = torch.cat(values).sort().values
    nearest = computed[torch.searchsorted(computed, found).clamp(max=len(computed) - 1)]
    assert torch.equal(nearest, found)  # every value is one that the head gave, to the last bit


def test_without_it_values_have_the_steps_of_bfloat16(critic, rows) -> None:
    plain, exact = (outputs_of(critic(MIXED, f"critic.float32_head={on}"), "critic", rows) for on in ("false", "true"))
    assert {value.dtype for value in plain} == {torch.bfloat16}
    assert len(torch.cat(plain).unique()) < len(torch.cat(exact).unique())
    assert furthest(plain, exact) < 2**-8 * max(value.abs().max().item() for value in exact)


def test_in_float32_it_changes_nothing(critic, rows) -> None:
    found = []
    for on in ("false", "true"):
        worker = critic(f"critic.float32_head={on}")
        before = outputs_of(worker, "critic", rows)
        train(worker, "critic", rows, 2)
        found.append([*before, *outputs_of(worker, "critic", rows)])
    assert furthest(*found) == 0


def test_the_trained_head_is_saved_in_float32(critic, rows, tmp_path: Path) -> None:
    worker = critic(MIXED)
    train(worker, "critic", rows, 1)
    worker.save_checkpoint(str(tmp_path), None, 1)
    saved = load_file(tmp_path / "huggingface" / "model.safetensors")
    assert torch.equal(saved["score.weight"], head_of(worker).weight.full_tensor())
    again = critic(MIXED, f"critic.model.path='{tmp_path / 'huggingface'}'")
    assert furthest(outputs_of(again, "critic", rows), outputs_of(worker, "critic", rows)) == 0
    resumed = critic(MIXED)
    resumed.load_checkpoint(str(tmp_path))
    assert furthest(outputs_of(resumed, "critic", rows), outputs_of(worker, "critic", rows)) == 0
