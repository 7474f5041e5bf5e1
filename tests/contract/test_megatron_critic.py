# SPDX-License-Identifier: Apache-2.0
"""Megatron's critics, without Megatron: what our patches rely on in verl's source, and what they do, on stand-ins.

They were also run by hand through verl's real engine, Megatron-Core 0.18.2 and Megatron-Bridge 0.5.1, on a CPU.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import verl
from transformers import AutoConfig

from tempo_verl.compat import ALLOW_NEW_VALUE_HEAD, critic_bridge, patch_megatron_critic, patch_megatron_value_head
from tempo_verl.errors import UserError
from tempo_verl.plugin import HOOKS

VERL = Path(verl.__file__).parent
ENGINE = "workers/engine/megatron/transformer_impl.py"
CHECKPOINTS = "utils/checkpoint/megatron_checkpoint_manager.py"
BUILD = "utils/megatron_utils.py"


def source(file: str, name: str) -> str:
    """Text of a function or class of verl that cannot be imported here, with single spaces."""
    text = (VERL / file).read_text()
    found = [node for node in ast.walk(ast.parse(text)) if getattr(node, "name", None) == name]
    assert found, f"{file} has no {name}"
    return " ".join(" ".join((ast.get_source_segment(text, node) or "").split()) for node in found)


# ---------------------------------------------------------------------- verl's source


@pytest.mark.parametrize("module", [name for name in HOOKS if ".megatron." in name or ".mcore." in name])
def test_verl_has_the_module_that_a_hook_waits_for(module: str) -> None:
    assert (VERL.parent / (module.replace(".", "/") + ".py")).is_file()


@pytest.mark.parametrize(
    ("file", "name", "text"),
    [
        # imported when they are called: hence what we put into that module is found
        (ENGINE, "_build_tf_config", "from verl.models.mcore.bridge import AutoBridge"),
        (BUILD, "make_megatron_module", "from verl.models.mcore.bridge import freeze_moe_router, make_value_model"),
        # how they are called
        (ENGINE, "_build_tf_config", "AutoBridge.from_hf_pretrained( self.model_config.local_path, trust_remote_code="),
        (BUILD, "make_megatron_module", "make_value_model(hidden_size, provider.sequence_parallel)"),
        # weights are loaded before the optimiser copies them
        (ENGINE, "_build_megatron_module", "self.bridge.load_hf_weights("),
        (ENGINE, "initialize", "self.module = self._build_megatron_module()"),
        # a head that does not fit is let pass, which is why we look for it
        (ENGINE, "_build_megatron_module", 'allowed_mismatched_params = ["output_layer.weight"]'),
        # checkpoints go through the same bridge, both ways
        (CHECKPOINTS, "_save_model_as_hf_via_bridge", "self.bridge.save_hf_weights(self.model, hf_ckpt_path"),
        (CHECKPOINTS, "_load_model_as_hf_via_bridge", "self.bridge.load_hf_weights(self.model, hf_model_path)"),
        (BUILD, "get_hf_model_checkpoint_path", "get_model_checkpoint_path(checkpoint_path), _HUGGINGFACE_SUBDIR"),
        # the head takes what nn.Linear takes, a bias too
        ("models/mcore/bridge.py", "LinearForLastLayer", "logits = super().forward(input_)"),
        # Megatron's mean over micro-batches is undone, and our loss sees values in the form of FSDP's
        (ENGINE, "postprocess_micro_batch_func", 'scaled_loss = loss * data["num_micro_batch"]'),
        (ENGINE, "MegatronEngineWithValueHead", 'return {"values": output}'),
    ],
)
def test_verl_does_what_the_patches_rely_on(file: str, name: str, text: str) -> None:
    assert text in source(file, name)


def test_the_engine_of_critics_inherits_what_we_replace_in_it() -> None:
    """So that the policy's engine keeps its own."""
    text = source(ENGINE, "MegatronEngineWithValueHead")
    assert text.startswith("class MegatronEngineWithValueHead(MegatronEngineWithLMHead)")
    assert "_build_tf_config" not in text
    assert "_build_megatron_module" not in text


# ---------------------------------------------------------------------- the head


@pytest.fixture(autouse=True)
def no_megatron(monkeypatch: pytest.MonkeyPatch) -> None:
    """What our patches import of Megatron, and of the parts of verl that import it."""

    class AutoMapping:
        def __init__(self, megatron_param: str, hf_param: str):
            self.megatron_param, self.hf_param = megatron_param, hf_param

    conversion = "megatron.bridge.models.conversion"
    for name, content in {
        "verl.utils.megatron_utils": {"unwrap_model": lambda chunk: chunk},
        f"{conversion}.mapping_registry": {"MegatronMappingRegistry": lambda *mappings: list(mappings)},
        f"{conversion}.param_mapping": {"AutoMapping": AutoMapping},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


FIRST_STAGE = SimpleNamespace(post_process=False)


def last_stage(value: float) -> SimpleNamespace:
    """A chunk of the last pipeline stage; ``value`` is in every weight of its head."""
    head = torch.nn.Linear(4, 1)
    for parameter in head.parameters():
        torch.nn.init.constant_(parameter, value)
    return SimpleNamespace(post_process=True, output_layer=head)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_a_head_has_a_bias_and_no_values(sequence_parallel: bool) -> None:
    def make_value_model(hidden_size: int, sequence_parallel: bool) -> Callable:
        def hook(model):
            model[-1].output_layer = torch.nn.Linear(hidden_size, 1, bias=False)

        return hook

    module = SimpleNamespace(make_value_model=make_value_model)
    patch_megatron_value_head(module)
    chunks = [FIRST_STAGE, last_stage(0.5)]
    assert module.make_value_model(8, sequence_parallel)(chunks) is chunks
    head = chunks[1].output_layer
    assert {name: tuple(value.shape) for name, value in head.named_parameters()} == {"weight": (1, 8), "bias": (1,)}
    for parameter in head.parameters():
        assert parameter.isnan().all()
        assert getattr(parameter, "sequence_parallel", False) is sequence_parallel


class Engine:
    """verl's engine, as far as the patch of it goes: loading has filled the head, or part of it, or has not."""

    def __init__(self, path: Path, chunks: list[SimpleNamespace], allow_new_head: bool | None):
        config = AutoConfig.from_pretrained(path)
        if allow_new_head is not None:
            setattr(config, ALLOW_NEW_VALUE_HEAD, allow_new_head)
        self.model_config = SimpleNamespace(hf_config=config, local_path=str(path))
        self.chunks = chunks

    def _build_tf_config(self) -> None:
        from verl.models.mcore.bridge import AutoBridge

        self.bridge = AutoBridge

    def _build_megatron_module(self) -> list[SimpleNamespace]:
        return self.chunks


class AutoBridge:
    """Megatron-Bridge's, as far as ours is derived from it."""

    def __init__(self, config):
        self.config = config

    @classmethod
    def from_hf_config(cls, config):
        return cls(config)

    @property
    def _model_bridge(self) -> SimpleNamespace:
        names = {"embedding.weight": "model.embed_tokens.weight", "output_layer.weight": "lm_head.weight"}
        mappings = [SimpleNamespace(megatron_param=megatron, hf_param=hf) for megatron, hf in names.items()]
        return SimpleNamespace(mapping_registry=lambda: mappings)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tiny_policy: Path) -> Callable[..., Engine]:
    """``built(chunks, allow_new_head)``: a patched engine that has built its model."""
    package, module = ModuleType("verl.models.mcore"), ModuleType("verl.models.mcore.bridge")
    package.bridge, module.AutoBridge = module, AutoBridge
    for stand_in in (package, module):
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)

    def build(chunks: list[SimpleNamespace], allow_new_head: bool | None = False) -> Engine:
        patched = type("Patched", (Engine,), {})
        patch_megatron_critic(SimpleNamespace(MegatronEngineWithValueHead=patched))
        engine = patched(tiny_policy, chunks, allow_new_head)
        engine._build_tf_config()
        assert module.AutoBridge is AutoBridge  # the policy's engine, in the same process, has its own
        engine._build_megatron_module()
        return engine

    return build


def test_a_loaded_head_is_kept(built) -> None:
    chunk = last_stage(0.5)
    built([FIRST_STAGE, chunk])
    assert all((value == 0.5).all() for value in chunk.output_layer.parameters())


@pytest.mark.parametrize("allow", [False, None])
def test_a_missing_head_is_an_error(built, tiny_policy: Path, allow: bool | None) -> None:
    with pytest.raises(UserError) as caught:
        built([last_stage(float("nan"))], allow)
    message = str(caught.value)
    assert message.startswith(f"critic.model.path={tiny_policy}: no trained value head (missing weight score.weight, ")
    assert "critic.allow_new_value_head=true" in message


def test_what_is_new_of_a_head_is_zero_where_that_is_allowed(built) -> None:
    chunk = last_stage(float("nan"))
    torch.nn.init.constant_(chunk.output_layer.weight, 0.5)  # this one was there
    built([chunk], True)
    assert (chunk.output_layer.weight == 0.5).all()
    assert (chunk.output_layer.bias == 0).all()


def test_a_stage_without_a_head_misses_none(built) -> None:
    built([FIRST_STAGE])


def test_what_is_saved_says_that_it_is_a_critic(built) -> None:
    config = built([last_stage(0.5)], True).model_config.hf_config
    assert config.architectures == ["Qwen3ForTokenClassification"]
    assert config.num_labels == 1
    assert not hasattr(config, ALLOW_NEW_VALUE_HEAD)


# ---------------------------------------------------------------------- the bridge


def test_a_critics_engine_has_a_critics_bridge(built) -> None:
    bridge = built([last_stage(0.5)]).bridge
    assert issubclass(bridge, AutoBridge)
    assert bridge is not AutoBridge


def test_a_critic_is_opened_as_the_language_model_it_is_built_on(tiny_critic: Path) -> None:
    assert AutoConfig.from_pretrained(tiny_critic).architectures == ["Qwen3ForTokenClassification"]
    config = critic_bridge(AutoBridge).from_hf_pretrained(str(tiny_critic), trust_remote_code=False).config
    assert config.architectures == ["Qwen3ForCausalLM"]


def test_the_head_has_the_names_that_fsdp_gives_it(tiny_critic: Path) -> None:
    bridge = critic_bridge(AutoBridge).from_hf_pretrained(str(tiny_critic))
    assert {mapping.megatron_param: mapping.hf_param for mapping in bridge._model_bridge.mapping_registry()} == {
        "embedding.weight": "model.embed_tokens.weight",
        "output_layer.weight": "score.weight",
        "output_layer.bias": "score.bias",
    }
