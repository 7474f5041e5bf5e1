# SPDX-License-Identifier: Apache-2.0
"""Each patch of verl: what it mends is still broken there, and ours mends it."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import verl.utils.distributed as verl_distributed
import verl.utils.model as verl_model
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from peft import LoraConfig, TaskType
from safetensors.torch import load_file
from torch.distributed.distributed_c10d import BackendConfig
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    Gemma3TextConfig,
    Olmo3Config,
    Qwen2_5OmniConfig,
)
from verl.utils import fsdp_utils
from verl.utils.checkpoint import fsdp_checkpoint_manager
from verl.utils.checkpoint.checkpoint_manager import BaseCheckpointManager
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager
from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions
from verl.workers.engine.fsdp import transformer_impl

from tempo_verl import compat
from tempo_verl.compat import (
    ALLOW_NEW_VALUE_HEAD,
    FLOAT32_HEAD,
    SUPPORTED_VERL,
    WEIGHTS_ONLY,
    check_verl_version,
    load_valuehead_model,
    only_weights,
)
from tempo_verl.errors import UserError
from tempo_verl.models import missing_value_head
from tempo_verl.value_head import Float32Head

# ---------------------------------------------------------------------- version


def test_the_supported_range_is_the_one_pip_installs() -> None:
    requirements = map(Requirement, importlib.metadata.requires("tempo-verl"))
    pins = [requirement for requirement in requirements if requirement.name == "verl"]
    assert pins
    assert all(requirement.specifier == SpecifierSet(SUPPORTED_VERL) for requirement in pins)
    check_verl_version()


@pytest.mark.parametrize("other", ["0.9.0", "0.10.0", "1.0"])
def test_another_verl_is_refused(monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda package: other)
    with pytest.raises(UserError, match=f"verl {other} is installed, tempo-verl needs verl>=0.9.1,<0.10"):
        check_verl_version()


def test_no_verl_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(UserError, match=r"verl is not installed; install 'verl>=0\.9\.1,<0\.10'"):
        check_verl_version()


# ---------------------------------------------------------------------- process group


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What verl asks torch for when it starts a process group, on a CPU platform."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **options: asked.append(options))
    monkeypatch.setattr(verl_distributed, "get_device_name", lambda: "cpu")
    monkeypatch.setattr(verl_distributed, "get_nccl_backend", lambda: "gloo")
    return asked


def test_verl_asks_for_a_backend_that_torch_rejects(group: list[dict[str, Any]]) -> None:
    verl_distributed.initialize_global_process_group_ray.__wrapped__()
    assert group[0]["backend"] == "cpu:gloo,cpu:gloo"
    with pytest.raises(ValueError, match="cpu"):
        BackendConfig(group[0]["backend"])


def test_ours_asks_for_gloo(group: list[dict[str, Any]]) -> None:
    verl_distributed.initialize_global_process_group_ray(timeout_second=5)
    assert group[0]["backend"] == "cpu:gloo"
    assert group[0]["timeout"].total_seconds() == 5
    assert "gloo" in repr(BackendConfig("cpu:gloo"))


@pytest.mark.parametrize(("world_size", "port"), [("1", "0"), ("2", "45483")])
def test_a_group_of_one_takes_any_port(
    group: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, world_size: str, port: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", world_size)
    monkeypatch.setenv("MASTER_PORT", "45483")  # that verl has chosen
    verl_distributed.initialize_global_process_group_ray()
    assert os.environ["MASTER_PORT"] == port
    assert group[0]["world_size"] == int(world_size)


def test_accelerators_and_explicit_backends_are_left_alone(
    group: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    verl_distributed.initialize_global_process_group_ray(backend="mpi")
    monkeypatch.setattr(verl_distributed, "get_device_name", lambda: "cuda")
    monkeypatch.setattr(verl_distributed, "get_nccl_backend", lambda: "nccl")
    verl_distributed.initialize_global_process_group_ray()
    assert [options["backend"] for options in group] == ["mpi", "cpu:gloo,cuda:nccl"]


# ---------------------------------------------------------------------- reference policy


def test_a_forward_only_model_stays_where_it_is_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    verls = transformer_impl.CPUOffloadPolicy.__wrapped__
    assert verls is CPUOffloadPolicy
    assert "offload_policy = CPUOffloadPolicy(pin_memory=True)" in inspect.getsource(transformer_impl)
    monkeypatch.setattr(transformer_impl, "get_device_name", lambda: "cpu")
    assert transformer_impl.CPUOffloadPolicy(pin_memory=True) is None
    monkeypatch.setattr(transformer_impl, "get_device_name", lambda: "cuda")
    assert transformer_impl.CPUOffloadPolicy(pin_memory=True) == verls(pin_memory=True)


# ---------------------------------------------------------------------- balancing


@pytest.mark.parametrize("equal_size", [True, False])
def test_numbers_are_balanced_as_a_tensor_is(equal_size: bool) -> None:
    workload = calculate_workload(torch.randint(50, 60, (96,)))  # many ties
    verls = get_seqlen_balanced_partitions(workload, k_partitions=8, equal_size=equal_size)
    assert get_seqlen_balanced_partitions(workload.tolist(), k_partitions=8, equal_size=equal_size) == verls


# ---------------------------------------------------------------------- value head


def config_as_verl_makes_it(path: Path, allow_new_head: bool = False):
    """The critic's Hugging Face config as ``FSDPCriticConfig`` and verl's FSDP engine leave it."""
    config = AutoConfig.from_pretrained(path, attn_implementation="sdpa")
    setattr(config, ALLOW_NEW_VALUE_HEAD, allow_new_head)
    config.num_labels = 1
    config.classifier_dropout = 0.0
    config.hidden_dropout = "0"
    config.summary_dropout_prob = 0.0
    return config


def load(path: Path, allow_new_head: bool = False):
    return load_valuehead_model(str(path), torch.float32, config_as_verl_makes_it(path, allow_new_head), False)


def test_verls_loader_is_replaced_where_its_engine_looks_for_it() -> None:
    assert verl_model.load_valuehead_model is load_valuehead_model
    source = inspect.getsource(transformer_impl)
    assert "from verl.utils.model import load_valuehead_model" in source  # inside the method, hence looked up late
    assert not hasattr(transformer_impl, "load_valuehead_model")
    call = "local_path=self.model_config.local_path, torch_dtype=torch_dtype, model_config=self.model_config.hf_config"
    assert call in " ".join(source.split())
    assert list(inspect.signature(load_valuehead_model).parameters) == [
        "local_path", "torch_dtype", "model_config", "trust_remote_code",
    ]  # fmt: skip


def test_the_configured_attention_is_kept(tiny_critic: Path) -> None:
    assert load(tiny_critic).config._attn_implementation == "sdpa"


def test_a_saved_head_and_backbone_are_restored_exactly(tiny_critic: Path) -> None:
    module = load(tiny_critic)
    saved = load_file(tiny_critic / "model.safetensors")
    assert saved["score.weight"].abs().sum() > 0
    assert set(module.state_dict()) == set(saved)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, saved[name]), name
    assert module.score.out_features == 1
    output = module(torch.tensor([[1, 2, 3]]))
    assert output.logits.shape == (1, 3, 1)


def test_a_missing_head_is_an_error_that_names_it(tiny_policy: Path) -> None:
    with pytest.raises(UserError, match=r"no trained value head \(missing weight .*score\.weight\)") as caught:
        load(tiny_policy)
    assert "critic.allow_new_value_head=true" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_head_of_another_size_is_missing_too(tiny_policy: Path, tmp_path: Path) -> None:
    two = AutoConfig.from_pretrained(tiny_policy, num_labels=2)
    AutoModelForTokenClassification.from_config(two).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no trained value head \(missing weight .*score\.weight\)"):
        load(tmp_path)
    assert not load(tmp_path, allow_new_head=True).score.weight.any()


def test_a_new_head_is_zero_on_the_policys_backbone(tiny_policy: Path) -> None:
    module = load(tiny_policy, allow_new_head=True)
    assert module.score.weight.shape == (1, 64)
    assert not module.score.weight.any()
    assert not module(torch.tensor([[1, 2, 3]])).logits.any()  # V = 0 before the first update
    policy = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)
    for name, tensor in policy.model.state_dict().items():
        assert torch.equal(module.model.state_dict()[name], tensor), name


def test_a_head_that_is_there_is_kept_even_if_a_new_one_is_allowed(tiny_critic: Path) -> None:
    saved = load_file(tiny_critic / "model.safetensors")["score.weight"]
    assert torch.equal(load(tiny_critic, allow_new_head=True).score.weight, saved)


def test_an_incomplete_backbone_is_an_error_even_if_a_new_head_is_allowed(tiny_critic: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_critic, num_hidden_layers=2, layer_types=["full_attention"] * 2)
    AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path)
    AutoConfig.from_pretrained(tiny_critic).save_pretrained(tmp_path)  # three layers are asked for, two are there
    with pytest.raises(UserError, match=r"weights missing, model\.layers\.2\.") as caught:
        load(tmp_path, allow_new_head=True)
    assert f"critic.model.path={tmp_path}" in str(caught.value)


def test_a_critic_saved_as_verl_saves_it_can_be_loaded_again(tiny_policy: Path, tmp_path: Path) -> None:
    module = load(tiny_policy, allow_new_head=True)
    torch.nn.init.normal_(module.score.weight)
    # verl.utils.checkpoint.fsdp_checkpoint_manager: config first, then the class that the architecture names
    module.config.save_pretrained(tmp_path)
    auto_class = verl_model.get_hf_auto_model_class(module.config)
    assert auto_class is AutoModelForTokenClassification
    with torch.device("meta"):
        shell = auto_class.from_config(module.config)
    shell.to_empty(device="cpu").save_pretrained(tmp_path, state_dict=module.state_dict())

    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == ["Qwen3ForTokenClassification"]
    assert ALLOW_NEW_VALUE_HEAD not in written
    assert "score.weight" in load_file(tmp_path / "model.safetensors")
    again = load(tmp_path)
    for name, tensor in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize(("config_class", "name"), [
    (Olmo3Config, "Olmo3ForTokenClassification"),
    (Gemma3TextConfig, "Gemma3TextForTokenClassification"),  # the text part of a model for images
])  # fmt: skip
def test_a_model_type_without_a_class_for_critics_gets_one(config_class: type, name: str, tmp_path: Path) -> None:
    config = config_class(
        vocab_size=16, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, pad_token_id=15, eos_token_id=14, bos_token_id=None,
    )  # fmt: skip
    policy, critic = tmp_path / "policy", tmp_path / "critic"
    AutoModelForCausalLM.from_config(config).save_pretrained(policy)
    module = load(policy, allow_new_head=True)
    assert type(module).__name__ == name
    assert not module(torch.tensor([[1, 2, 3]])).logits.any()
    torch.nn.init.normal_(module.score.weight)
    module.save_pretrained(critic)
    assert torch.equal(load(critic).score.weight, module.score.weight)
    assert missing_value_head(critic) == []
    assert "score.weight" in missing_value_head(policy)
    with pytest.raises(UserError, match=r"score\.weight"):
        load(policy)


def test_a_model_type_without_a_backbone_is_refused() -> None:
    with pytest.raises(UserError, match=r"^critic\.model\.path=some/model: .* type qwen2_5_omni; use a language model"):
        compat.register_critic_class(Qwen2_5OmniConfig(name_or_path="some/model"))


@pytest.mark.parametrize("on", [True, False])
def test_our_marks_do_not_stay_on_the_config(tiny_critic: Path, on: bool) -> None:
    config = config_as_verl_makes_it(tiny_critic, on)
    setattr(config, FLOAT32_HEAD, on)
    module = load_valuehead_model(str(tiny_critic), torch.float32, config, False)
    for mark in (ALLOW_NEW_VALUE_HEAD, FLOAT32_HEAD):
        assert not hasattr(config, mark)
        assert not hasattr(module.config, mark)
    assert isinstance(module.score, Float32Head) == on


def test_a_float32_head_answers_in_float32_whatever_it_is_given() -> None:
    head = torch.nn.Linear(64, 1)
    head.__class__ = Float32Head
    hidden = torch.randn(2, 3, 64).bfloat16()
    expected = torch.nn.functional.linear(hidden.float(), head.weight, head.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(hidden), expected)
    assert head.bfloat16()(hidden).dtype == torch.float32


def test_the_value_head_is_sharded_where_verl_calls_us() -> None:
    source = " ".join(inspect.getsource(transformer_impl).split())
    assert "apply_fsdp2(module, fsdp_kwargs, self.engine_config)" in source
    assert '"mp_policy": mp_policy' in source
    verls = list(inspect.signature(transformer_impl.apply_fsdp2.__wrapped__).parameters)
    assert verls == ["model", "fsdp_kwargs", "config"]


# ---------------------------------------------------------------------- LoRA (in training: tests/engine/test_lora.py)


def lora() -> LoraConfig:
    """As verl's engine makes it."""
    return LoraConfig(task_type=TaskType.CAUSAL_LM, r=2, lora_alpha=4, target_modules="all-linear", bias="none")


def test_verl_cannot_adapt_a_critic(tiny_critic: Path) -> None:
    assert '"task_type": TaskType.CAUSAL_LM' in inspect.getsource(transformer_impl)
    with pytest.raises(AttributeError, match="prepare_inputs_for_generation"):
        transformer_impl.get_peft_model.__wrapped__(load(tiny_critic), lora())


def test_ours_adapts_the_backbone_and_leaves_the_head_to_training(tiny_critic: Path) -> None:
    critic = load(tiny_critic)
    adapted = transformer_impl.get_peft_model(critic, lora())
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert {name for name in trained if ".lora_" not in name} == {
        "base_model.model.score.weight", "base_model.model.score.bias",
    }  # fmt: skip
    assert not any(".lora_" in name for name in trained if "score" in name)
    assert adapted.base_model.model is critic
    assert list(dict(critic.named_children())) == list(dict(load(tiny_critic).named_children()))


def test_a_policy_is_adapted_as_verl_does(tiny_policy: Path) -> None:
    mine, verls = (
        function(AutoModelForCausalLM.from_pretrained(tiny_policy), lora())
        for function in (transformer_impl.get_peft_model, transformer_impl.get_peft_model.__wrapped__)
    )
    assert type(mine) is type(verls)
    assert [(name, weight.requires_grad) for name, weight in mine.named_parameters()] == [
        (name, weight.requires_grad) for name, weight in verls.named_parameters()
    ]


def test_the_export_and_the_merge_are_ours_where_verl_looks_for_them() -> None:
    source = " ".join(inspect.getsource(fsdp_checkpoint_manager.FSDPCheckpointManager.save_checkpoint).split())
    assert "get_fsdp_full_state_dict(self.model, offload_to_cpu=True, rank0_only=True)" in source
    assert fsdp_checkpoint_manager.get_fsdp_full_state_dict.__wrapped__ is fsdp_utils.get_fsdp_full_state_dict
    assert "fsdp_merge_unmerge(actor, do_merge=True)" in inspect.getsource(fsdp_utils.merged_lora_context)
    assert "skip root model" in inspect.getsource(fsdp_utils.fsdp_merge_unmerge.__wrapped__)


def test_a_config_without_our_mark_allows_no_new_head(tiny_policy: Path) -> None:
    config = config_as_verl_makes_it(tiny_policy)
    delattr(config, ALLOW_NEW_VALUE_HEAD)
    with pytest.raises(UserError, match=r"score\.weight"):
        load_valuehead_model(str(tiny_policy), torch.float32, config, False)


def test_every_patch_is_told_in_the_modules_text() -> None:
    patches = [name for name, _ in inspect.getmembers(compat, inspect.isfunction) if name.startswith("patch_")]
    assert sorted(patches) == [
        "patch_checkpoint_loading", "patch_checkpoint_manager", "patch_critic_lora", "patch_float32_head",
        "patch_fsdp_engine", "patch_lora_export", "patch_lora_merge", "patch_megatron_critic",
        "patch_megatron_value_head", "patch_offload_policy", "patch_process_group", "patch_value_head_loading",
    ]  # fmt: skip
    for told in (
        "verl.utils.distributed", "CPUOffloadPolicy", "load_valuehead_model", "_build_replay", "get_peft_model",
        "apply_fsdp2", "get_fsdp_full_state_dict", "fsdp_merge_unmerge", "FSDPCheckpointManager",
    ):  # fmt: skip
        assert told in compat.__doc__


# ---------------------------------------------------------------------- loading checkpoints


class Payload:
    """Pickled, it writes a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "code was run")


def test_no_code_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    ran, file = tmp_path / "ran", tmp_path / "optim.pt"
    torch.save({"state": Payload(ran)}, file)
    with only_weights(), pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=False)
    assert not ran.exists()
    torch.load(file, weights_only=False)  # as verl alone would
    assert ran.exists()
    ran.unlink()


def test_what_verl_saves_beside_the_weights_is_read(tmp_path: Path) -> None:
    saved = {"lr_scheduler": {"last_epoch": 3}, "rng": BaseCheckpointManager.get_rng_state()}
    torch.save(saved, tmp_path / "extra.pt")
    with only_weights():
        read = torch.load(tmp_path / "extra.pt", weights_only=False)
    assert read["lr_scheduler"] == saved["lr_scheduler"]
    assert read["rng"]["random"] == saved["rng"]["random"]
    assert (read["rng"]["numpy"][1] == saved["rng"]["numpy"][1]).all()
    assert WEIGHTS_ONLY not in os.environ


def test_verl_loads_fsdp2s_shards_through_us() -> None:
    assert FSDPCheckpointManager.load_checkpoint.__wrapped__ is not None
    source = inspect.getsource(FSDPCheckpointManager.load_checkpoint.__wrapped__)
    assert source.count("weights_only=False") == source.count("torch.load(") == 3
