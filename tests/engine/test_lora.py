# SPDX-License-Identifier: Apache-2.0
"""LoRA in verl's own training worker: what is trained, what is saved, and what the rollout gets.

A directory that is exported as the trained model and is another one is a known fault of the field. So every export is
held against base + scale * B A, weight by weight, and against the outputs of the worker that wrote it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification
from verl.utils import fsdp_utils
from verl.utils.checkpoint import fsdp_checkpoint_manager
from verl.utils.distributed import initialize_global_process_group_ray
from verl.workers.engine_workers import TrainingWorker
from workers import furthest, outputs_of, plain_outputs, rank_of, rows_for, samples, train, worker_of

from tempo_verl.backends.adapter import as_arrays
from tempo_verl.backends.replica import TransformersServer
from tempo_verl.models import missing_value_head

RANK, ALPHA, LR, UPDATES = 4, 8, 1e-2, 3
SCALE = ALPHA / RANK
MODEL = {"actor": "actor_rollout_ref.model", "critic": "critic.model"}
AUTO = {"actor": AutoModelForCausalLM, "critic": AutoModelForTokenClassification}
TOLERANCE = (
    2e-5  # float32 forward passes of the same weights, cut in another way; training moves outputs by more than 1
)


def options(role: str) -> list[str]:
    return [
        f"{MODEL[role]}.lora_rank={RANK}",
        f"{MODEL[role]}.lora_alpha={ALPHA}",
        f"tempo.calibration.lr={LR}",
        f"actor_rollout_ref.actor.optim.lr={LR}",
    ]


@dataclass
class Trained:
    """A worker before and after a few updates, and the checkpoint that it then wrote."""

    role: str
    config: DictConfig
    base: Path
    worker: TrainingWorker
    rows: object
    before: list[torch.Tensor]
    after: list[torch.Tensor]
    folder: Path

    @property
    def export(self) -> Path:
        return self.folder / "huggingface"

    def weights(self) -> dict[str, torch.Tensor]:
        """The worker's own, by peft's names."""
        named = self.worker.engine.module.named_parameters()
        return {name.removeprefix("base_model.model."): weight.full_tensor().detach() for name, weight in named}


@pytest.fixture(scope="module", params=["actor", "critic"])
def trained(request, compose, tiny_policy: Path, tiny_critic: Path, tmp_path_factory) -> Iterator[Trained]:
    role, folder = request.param, tmp_path_factory.mktemp(request.param)
    config = compose(options(role))
    with rank_of(folder):
        worker, rows = worker_of(config, role), rows_for(role, samples(tiny_policy))
        before = outputs_of(worker, role, rows)
        train(worker, role, rows, UPDATES)
        after = outputs_of(worker, role, rows)
        worker.save_checkpoint(str(folder / "saved"), None, 1)
        base = {"actor": tiny_policy, "critic": tiny_critic}[role]
        yield Trained(role, config, base, worker, rows, before, after, folder / "saved")


def exported(path: Path, role: str) -> torch.nn.Module:
    """The export, by transformers, with no weight missing and none left over."""
    model, told = AUTO[role].from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    assert not any(told.values()), told
    return model


def test_a_new_adapter_changes_nothing_and_a_trained_one_does(trained: Trained) -> None:
    base = AUTO[trained.role].from_pretrained(trained.base, dtype=torch.float32)
    assert furthest(trained.before, plain_outputs(base, trained.role, trained.rows)) < TOLERANCE
    assert furthest(trained.before, trained.after) > 0.5


def test_the_adapter_is_trained_and_of_the_rest_only_the_value_head(trained: Trained) -> None:
    named = trained.worker.engine.module.named_parameters()
    whole = {name.removeprefix("base_model.model.") for name, weight in named if weight.requires_grad}
    rest = {name for name in whole if ".lora_" not in name}
    assert rest == ({"score.weight", "score.bias"} if trained.role == "critic" else set())
    saved = load_file(trained.base / "model.safetensors")
    for name, weight in trained.weights().items():
        name = name.replace(".base_layer", "")
        if ".lora_" not in name:
            assert torch.equal(weight, saved[name]) == (name not in rest), name


def test_the_export_is_the_base_and_b_a(trained: Trained) -> None:
    base, exported, weights = (
        load_file(trained.base / "model.safetensors"),
        load_file(trained.export / "model.safetensors"),
        trained.weights(),
    )
    assert exported.keys() == base.keys()
    adapted = 0
    for name, weight in exported.items():
        module = name.removesuffix(".weight")
        if f"{module}.lora_A.default.weight" in weights:
            change = SCALE * weights[f"{module}.lora_B.default.weight"] @ weights[f"{module}.lora_A.default.weight"]
            assert change.abs().max() > 1e-3
            torch.testing.assert_close(weight, base[name] + change, rtol=0, atol=1e-6)
            adapted += 1
        else:
            assert torch.equal(weight, weights[name]), name
    assert adapted == 3 * 7  # blocks, and linear layers in a block
    assert not any(path.name.startswith("adapter") for path in trained.export.iterdir())


def test_the_export_gives_the_trained_models_outputs(trained: Trained) -> None:
    assert (
        furthest(plain_outputs(exported(trained.export, trained.role), trained.role, trained.rows), trained.after)
        < TOLERANCE
    )


def test_a_later_run_starts_from_the_export(trained: Trained, compose) -> None:
    if trained.role == "critic":
        assert missing_value_head(trained.export) == []
    config = compose([f"{MODEL[trained.role]}.path='{trained.export}'"])
    again = worker_of(config, trained.role)
    assert furthest(outputs_of(again, trained.role, trained.rows), trained.after) < TOLERANCE


def test_saving_leaves_the_model_as_it_is(trained: Trained, tmp_path: Path) -> None:
    trained.worker.save_checkpoint(str(tmp_path), None, 2)
    assert furthest(outputs_of(trained.worker, trained.role, trained.rows), trained.after) == 0
    first, second = (load_file(path / "huggingface" / "model.safetensors") for path in (trained.folder, tmp_path))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_goes_on_from_the_checkpoint(trained: Trained) -> None:
    again = worker_of(trained.config, trained.role)
    assert furthest(outputs_of(again, trained.role, trained.rows), trained.before) < TOLERANCE
    again.load_checkpoint(str(trained.folder))
    assert furthest(outputs_of(again, trained.role, trained.rows), trained.after) == 0
    train(again, trained.role, trained.rows, 1)
    assert furthest(outputs_of(again, trained.role, trained.rows), trained.after) > 1e-3


def test_verls_own_export_has_no_weight_that_transformers_knows(trained: Trained) -> None:
    export = fsdp_checkpoint_manager.get_fsdp_full_state_dict.__wrapped__
    names = export(trained.worker.engine.module)
    assert not set(names) & set(load_file(trained.base / "model.safetensors"))


def test_the_reference_is_the_model_without_its_adapter(trained: Trained) -> None:
    with trained.worker.engine.disable_adapter():
        outputs = outputs_of(trained.worker, trained.role, trained.rows)
    if trained.role == "actor":
        assert furthest(outputs, trained.before) < TOLERANCE
    else:  # whose head is trained whole
        assert furthest(outputs, trained.before) > 1e-3


@pytest.mark.parametrize("trained", ["actor"], indirect=True)
def test_the_rollout_gets_the_adapter(trained: Trained) -> None:
    """First the base, once, then the adapter: as verl's worker sends them."""
    path = SimpleNamespace(path=str(trained.base), tokenizer_path=None, trust_remote_code=False)
    server = TransformersServer(SimpleNamespace(seed=0), path, 0)
    for is_adapter in (False, True):
        weights, lora = trained.worker.engine.get_per_tensor_param(base_sync_done=is_adapter)
        asyncio.run(server.update_weights(as_arrays(weights), 1, lora if is_adapter else None))
        expected = trained.after if is_adapter else trained.before
        assert furthest(plain_outputs(server.model, "actor", trained.rows), expected) < TOLERANCE
    assert server.global_steps == 1
    with pytest.raises(ValueError, match="rollout weights not in the model"):
        asyncio.run(server.update_weights({"base_model.model.other.lora_A.weight": np.zeros((RANK, 2))}, 2, lora))


class Beside(torch.nn.Module):
    """A block, and a layer beside it, as a vision model has its projector."""

    def __init__(self):
        super().__init__()
        self.block, self.beside = torch.nn.Sequential(torch.nn.Linear(4, 4)), torch.nn.Linear(4, 4)


def test_layers_beside_the_wrapped_blocks_are_merged_as_well(tmp_path: Path) -> None:
    with rank_of(tmp_path):
        initialize_global_process_group_ray()
        adapter = LoraConfig(r=2, target_modules=["0", "beside"], init_lora_weights=False)
        model = get_peft_model(Beside(), adapter)
        fully_shard(model.base_model.model.block)
        fully_shard(model)
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        fsdp_utils.fsdp_merge_unmerge.__wrapped__(model, do_merge=True)
        assert [layer.merged for layer in layers] == [True, False]
        fsdp_utils.fsdp_merge_unmerge.__wrapped__(model, do_merge=False)
        before = [layer.get_base_layer().weight.full_tensor().clone() for layer in layers]
        with fsdp_utils.merged_lora_context(model, backup_adapters=True):
            for layer, base in zip(layers, before, strict=True):
                change = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
                torch.testing.assert_close(layer.get_base_layer().weight.full_tensor(), base + change.full_tensor())
        for layer, base in zip(layers, before, strict=True):
            assert not layer.merged
            assert torch.equal(layer.get_base_layer().weight.full_tensor(), base)


# ---------------------------------------------------------------------- two ranks


def _rank(rank: int, folder: Path, configs: dict[str, dict], every: list) -> None:
    torch.set_num_threads(1)
    for role, config in configs.items():
        with rank_of(folder / role, rank, 2):
            worker, rows = worker_of(OmegaConf.create(config), role), rows_for(role, every[rank::2], seed=rank)
            train(worker, role, rows, UPDATES, ranks=2)
            torch.save(outputs_of(worker, role, rows), folder / role / f"{rank}.pt")
            worker.save_checkpoint(str(folder / role / "saved"), None, 1)


@pytest.mark.slow
def test_two_ranks_export_the_whole_model(compose, tiny_policy: Path, tmp_path: Path) -> None:
    two, every = "trainer.n_gpus_per_node=2", samples(tiny_policy)
    configs = {role: OmegaConf.to_container(compose([*options(role), two]), resolve=True) for role in AUTO}
    for role in configs:
        (tmp_path / role).mkdir()
    torch.multiprocessing.spawn(_rank, (tmp_path, configs, every), nprocs=2)
    for role in configs:
        model = exported(tmp_path / role / "saved" / "huggingface", role)
        for rank in (0, 1):
            plain = plain_outputs(model, role, rows_for(role, every[rank::2]))
            assert furthest(plain, torch.load(tmp_path / role / f"{rank}.pt")) < TOLERANCE
