# SPDX-License-Identifier: Apache-2.0
"""Every patch of verl, in one place: reason, version range, contract test.

All are for verl >=0.9.1,<0.10 (``SUPPORTED_VERL``) and are covered by ``tests/contract/test_compat.py``.

==================================  ================================================================================
``verl.utils.distributed.``         builds the backend string ``cpu:gloo,cpu:gloo`` on a CPU platform, which torch
``initialize_global_process_...``   rejects; we pass ``cpu:gloo`` there. Accelerators: untouched.
``verl.utils.model.``               insists on flash attention, and initialises a missing value head at random without
``load_valuehead_model``            a word; ours keeps the configured attention and stops, naming the missing weight.
``fsdp.transformer_impl.``          offloads a forward-only model (the KL reference) through pinned memory, which a
``CPUOffloadPolicy``                torch without accelerator cannot allocate; on a CPU there is nothing to offload.
``megatron.transformer_impl.``       names the critic's head ``lm_head.weight``, drops it where the embeddings are tied,
``MegatronEngineWithValueHead``     keeps a random one where none is loaded, and opens no critic of FSDP; ours reads
``verl.models.mcore.bridge.``       and writes the head as FSDP does (``score.weight``, ``score.bias``), and stops,
``make_value_model``                naming the missing weight. Megatron-Bridge only.
``fsdp.transformer_impl.``          makes every LoRA model a causal language model, which a critic is not, and would
``get_peft_model``                  freeze its value head; ours leaves the head outside: trained whole, its name kept.
``fsdp.transformer_impl.``          casts the value head to bfloat16 with all other weights; ours shards a
``apply_fsdp2``                     ``value_head.Float32Head`` by itself and lets it keep its float32 weights.
``fsdp_checkpoint_manager.``        exports a LoRA model under peft's names, of which transformers knows none: it would
``get_fsdp_full_state_dict``        start a random model; ours merges the adapter and exports the whole model.
``FSDPCheckpointManager.``          unpickles whatever a checkpoint holds; ours reads tensors, numbers and strings,
``load_checkpoint``                 with FSDP2.
``verl.utils.fsdp_utils.``          merges the LoRA layers inside the blocks that FSDP2 wraps, and leaves out those
``fsdp_merge_unmerge``              beside them (a vision model's projector); ours merges them too.
``PPOTrainer._build_replay_...``    treats every trainer name but "sync" as asynchronous (six places); handled by an
                                    override in ``TempoTrainer``, listed here for completeness, no patch.
==================================  ================================================================================
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

from tempo_verl.errors import UserError

SUPPORTED_VERL = ">=0.9.1,<0.10"

# Set on the Hugging Face config of a critic by ``tempo_verl.trainer.critic_config`` for the loader below.
ALLOW_NEW_VALUE_HEAD = "tempo_allow_new_value_head"
FLOAT32_HEAD = "tempo_float32_head"

WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # read by torch.load


def check_verl_version() -> None:
    """Stop if the installed verl is outside the supported range.

    Raises:
        UserError: verl is missing or has another version.
    """
    from importlib.metadata import PackageNotFoundError, version

    from packaging.specifiers import SpecifierSet

    try:
        installed = version("verl")
    except PackageNotFoundError:
        raise UserError(f"verl is not installed; install 'verl{SUPPORTED_VERL}'") from None
    if not SpecifierSet(SUPPORTED_VERL).contains(installed, prereleases=True):
        raise UserError(f"verl {installed} is installed, tempo-verl needs verl{SUPPORTED_VERL}")


def patch_process_group(distributed: ModuleType) -> None:
    """Let verl's workers start their process group on a CPU platform."""
    original = distributed.initialize_global_process_group_ray

    @functools.wraps(original)
    def initialize_global_process_group_ray(timeout_second=None, backend=None):
        if backend is None and distributed.get_device_name() == "cpu":
            backend = "cpu:gloo"
            if os.environ.get("WORLD_SIZE") == "1" and "DIST_INIT_METHOD" not in os.environ:
                # Nobody joins it, so any port will do. verl chose one some time ago; another process may have it now.
                os.environ["MASTER_PORT"] = "0"
        return original(timeout_second=timeout_second, backend=backend)

    distributed.initialize_global_process_group_ray = initialize_global_process_group_ray


def patch_offload_policy(transformer_impl: ModuleType) -> None:
    """Let a forward-only model (reference policy) stay where it is on a CPU platform."""
    original = transformer_impl.CPUOffloadPolicy

    @functools.wraps(original)
    def offload_policy(*args, **kwargs):
        return None if transformer_impl.get_device_name() == "cpu" else original(*args, **kwargs)

    transformer_impl.CPUOffloadPolicy = offload_policy


def patch_fsdp_engine(transformer_impl: ModuleType) -> None:
    """All patches of verl's FSDP engine."""
    patch_offload_policy(transformer_impl)
    patch_critic_lora(transformer_impl)
    patch_float32_head(transformer_impl)


def patch_critic_lora(transformer_impl: ModuleType) -> None:
    """Give a critic with ``critic.model.lora_rank`` an adapter on its backbone, and a head that is trained whole."""
    import torch

    from tempo_verl.value_head import head_of, is_critic

    original = transformer_impl.get_peft_model

    @functools.wraps(original)
    def get_peft_model(model, peft_config, *args, **kwargs):
        if not is_critic(model):
            return original(model, peft_config, *args, **kwargs)
        peft_config.task_type = None  # peft's own class for token classification would rename the head
        head = head_of(model)
        for name in head:
            setattr(model, name, torch.nn.Identity())  # out of peft's sight: neither frozen nor adapted
        adapted = original(model, peft_config, *args, **kwargs)
        for name, module in head.items():
            setattr(model, name, module)
        return adapted

    transformer_impl.get_peft_model = get_peft_model


def patch_float32_head(transformer_impl: ModuleType) -> None:
    """Keep the weights of a ``Float32Head`` in float32 under FSDP2's mixed precision."""
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    from tempo_verl.value_head import Float32Head

    original = transformer_impl.apply_fsdp2

    @functools.wraps(original)
    def apply_fsdp2(model, fsdp_kwargs, config):
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        for module in [module for module in model.modules() if isinstance(module, Float32Head)]:
            fully_shard(module, **(fsdp_kwargs | {"mp_policy": policy}))
        return original(model, fsdp_kwargs, config)

    transformer_impl.apply_fsdp2 = apply_fsdp2


@contextmanager
def only_weights() -> Iterator[None]:
    """Let ``torch.load`` run no code that a file names, whatever its caller asks for.

    A checkpoint holds tensors, numbers and strings, and numpy's state of its generator, which is an array.
    """
    import numpy as np
    import torch.distributed.tensor  # its own kinds of tensors are allowed from then on

    array = np.random.get_state()[1]
    rebuild = array.__reduce__()[0]
    before = os.environ.get(WEIGHTS_ONLY)
    os.environ[WEIGHTS_ONLY] = "1"
    try:
        with torch.serialization.safe_globals([rebuild, np.ndarray, np.dtype, type(array.dtype)]):
            yield
    finally:
        if before is None:
            del os.environ[WEIGHTS_ONLY]
        else:
            os.environ[WEIGHTS_ONLY] = before


def patch_checkpoint_manager(checkpoint_manager: ModuleType) -> None:
    """All patches of verl's FSDP checkpoint manager."""
    patch_lora_export(checkpoint_manager)
    patch_checkpoint_loading(checkpoint_manager)


def patch_checkpoint_loading(checkpoint_manager: ModuleType) -> None:
    """Load FSDP2's shards without unpickling anything but what they need. FSDP1's are objects of other kinds."""
    manager = checkpoint_manager.FSDPCheckpointManager
    original = manager.load_checkpoint

    @functools.wraps(original)
    def load_checkpoint(self, *args, **kwargs):
        with only_weights() if checkpoint_manager.fsdp_version(self.model) == 2 else nullcontext():
            return original(self, *args, **kwargs)

    manager.load_checkpoint = load_checkpoint


def patch_lora_export(checkpoint_manager: ModuleType) -> None:
    """Save a LoRA model's Hugging Face directory with the adapter merged, under the names of the plain model."""
    original = checkpoint_manager.get_fsdp_full_state_dict

    @functools.wraps(original)
    def get_fsdp_full_state_dict(model, *args, **kwargs):
        from verl.utils.fsdp_utils import merged_lora_context, normalize_peft_param_name

        if not hasattr(getattr(model, "_fsdp_wrapped_module", model), "peft_config"):
            return original(model, *args, **kwargs)
        with merged_lora_context(model, backup_adapters=True):
            weights = normalize_peft_param_name(original(model, *args, **kwargs))
            for name, weight in weights.items():  # they may be the live ones, which are put back below
                weights[name] = weight.clone()
        return weights

    checkpoint_manager.get_fsdp_full_state_dict = get_fsdp_full_state_dict


def patch_lora_merge(fsdp_utils: ModuleType) -> None:
    """Merge every LoRA layer of an FSDP2 model, those outside the wrapped blocks as well."""
    original = fsdp_utils.fsdp_merge_unmerge

    @functools.wraps(original)
    def fsdp_merge_unmerge(module, do_merge):
        original(module, do_merge)
        if fsdp_utils.fsdp_version(module) == 2:
            fsdp_utils._merge_or_unmerge_lora_(module, merge=do_merge)  # what is merged already is left alone

    fsdp_utils.fsdp_merge_unmerge = fsdp_merge_unmerge


def patch_value_head_loading(model_utils: ModuleType) -> None:
    """Replace verl's critic loader by :func:`load_valuehead_model`."""
    model_utils.load_valuehead_model = load_valuehead_model


def load_valuehead_model(local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool):
    """Load a critic: a language-model backbone with a scalar head on every position.

    Args:
        local_path: Hugging Face directory of a critic, or of a causal language model if a new head is allowed.
        torch_dtype: dtype of the loaded weights.
        model_config: the directory's config with ``num_labels=1``; its attention implementation is kept. Our marks,
            :data:`ALLOW_NEW_VALUE_HEAD` and :data:`FLOAT32_HEAD`, are taken off it.
        trust_remote_code: as in transformers.

    Returns:
        A ``...ForTokenClassification`` model. A new head is zero: V = 0 before the first update.

    Raises:
        UserError: the directory lacks the value head and ``critic.allow_new_value_head`` is false, or the backbone
            itself is incomplete.
    """
    from transformers import AutoModelForTokenClassification

    from tempo_verl.value_head import use_float32_head

    # ours alone: they must not reach a saved config.json
    allow_new_head, float32_head = (
        model_config.__dict__.pop(mark, False) for mark in (ALLOW_NEW_VALUE_HEAD, FLOAT32_HEAD)
    )
    register_critic_class(model_config)
    module, info = AutoModelForTokenClassification.from_pretrained(
        local_path,
        dtype=torch_dtype,
        config=model_config,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # told below, like weights that are missing
    )
    backbone_prefix = module.base_model_prefix + "."
    missing = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])
    missing_backbone = [key for key in missing if key.startswith(backbone_prefix)]
    if missing_backbone:
        raise UserError(
            f"critic.model.path={local_path}: {len(missing_backbone)} weights missing, {missing_backbone[0]}"
        )
    if missing and not allow_new_head:
        raise UserError(missing_head_message(local_path, missing))
    for name, parameter in module.named_parameters():
        if name in missing:
            parameter.data.zero_()
    if float32_head:
        use_float32_head(module)
    module.config.architectures = [type(module).__name__]  # so that verl's checkpoint manager saves the head as well
    return module


def register_critic_class(model_config: Any) -> None:
    """Give ``AutoModelForTokenClassification`` a class for a model type that transformers has none for (e.g. OLMo 3).

    Built as transformers builds its own: the generic head on the model type's backbone.

    Raises:
        UserError: transformers has no backbone for it.
    """
    from transformers import AutoModel, AutoModelForTokenClassification
    from transformers.modeling_layers import GenericForTokenClassification

    if type(model_config) in AutoModelForTokenClassification._model_mapping:
        return
    if type(model_config) not in AutoModel._model_mapping:
        raise UserError(
            f"critic.model.path={model_config.name_or_path}: transformers knows no text model of type "
            f"{model_config.model_type}; use a language model"
        )
    backbone = AutoModel._model_mapping[type(model_config)]
    name = backbone.__name__.removesuffix("Model") + "ForTokenClassification"
    # the text part of a model for images shares its base class, which names the configuration of the whole
    attributes = {"__module__": backbone.__module__, "config_class": type(model_config)}
    critic_class = type(name, (GenericForTokenClassification, backbone.__bases__[0]), attributes)
    AutoModelForTokenClassification.register(type(model_config), critic_class)


def patch_megatron_value_head(mcore_bridge: ModuleType) -> None:
    """Give the critic's head a bias, as transformers' critics have one, and no values before some are loaded."""
    original = mcore_bridge.make_value_model

    @functools.wraps(original)
    def make_value_model(hidden_size: int, sequence_parallel: bool) -> Callable:
        replace_output_layer = original(hidden_size, sequence_parallel)

        def hook(model):
            replace_output_layer(model)
            for head in _heads(model):
                head.bias = type(head.weight)(head.weight.new_empty(1))
                for parameter in head.parameters():
                    parameter.data.fill_(float("nan"))
                    if sequence_parallel:  # each rank has the gradient of its positions: Megatron adds them up
                        parameter.sequence_parallel = True
            return model

        return hook

    mcore_bridge.make_value_model = make_value_model


def patch_megatron_critic(transformer_impl: ModuleType) -> None:
    """Let Megatron read and write critics in FSDP's format. A new head is zero, if one is allowed at all."""
    engine = transformer_impl.MegatronEngineWithValueHead
    build_config, build_module = engine._build_tf_config, engine._build_megatron_module

    @functools.wraps(build_config)
    def _build_tf_config(self):
        from transformers import AutoModelForTokenClassification
        from verl.models.mcore import bridge as mcore_bridge

        hf_config = self.model_config.hf_config
        self.allow_new_value_head = vars(hf_config).pop(ALLOW_NEW_VALUE_HEAD, False)
        register_critic_class(hf_config)
        hf_config.architectures = [AutoModelForTokenClassification._model_mapping[type(hf_config)].__name__]
        hf_config.num_labels = 1
        auto_bridge = mcore_bridge.AutoBridge
        mcore_bridge.AutoBridge = critic_bridge(auto_bridge)  # which the method imports when it is called
        try:
            build_config(self)
        finally:
            mcore_bridge.AutoBridge = auto_bridge

    @functools.wraps(build_module)
    def _build_megatron_module(self):
        module = build_module(self)
        weights = [item for head in _heads(module) for item in head.named_parameters()]
        missing = [f"score.{name}" for name, weight in weights if weight.isnan().any()]
        if missing and not self.allow_new_value_head:
            raise UserError(missing_head_message(self.model_config.local_path, missing))
        for name, weight in weights:
            if f"score.{name}" in missing:
                weight.data.zero_()
        return module

    engine._build_tf_config, engine._build_megatron_module = _build_tf_config, _build_megatron_module


def critic_bridge(auto_bridge: type) -> type:
    """Megatron-Bridge's ``AutoBridge`` for critics.

    It is made from the config alone. Then it opens critics of FSDP, which call themselves no causal language model, and
    writes every weight of the model: one that has its weights writes the files of the model that training began with,
    which lack a head or have another.
    """
    from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
    from megatron.bridge.models.conversion.param_mapping import AutoMapping
    from transformers import AutoConfig, AutoModelForCausalLM

    def with_value_head(registry):
        backbone = [mapping for mapping in registry if not mapping.megatron_param.startswith("output_layer.")]
        head = [AutoMapping(f"output_layer.{name}", f"score.{name}") for name in ("weight", "bias")]
        return MegatronMappingRegistry(*backbone, *head)

    class CriticBridge(auto_bridge):
        @classmethod
        def from_hf_pretrained(cls, path: str, trust_remote_code: bool = False):
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
            config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
            config.trust_remote_code = trust_remote_code  # the bridge looks there when it opens the weights
            return cls.from_hf_config(config)

        @property
        def _model_bridge(self):
            bridge = super()._model_bridge
            registry = bridge.mapping_registry
            bridge.mapping_registry = lambda: with_value_head(registry())
            return bridge

    return CriticBridge


def _heads(chunks: Any) -> list[Any]:
    """The value head among Megatron's chunks of a critic: one on the last pipeline stage, none elsewhere."""
    from verl.utils.megatron_utils import unwrap_model

    models = [unwrap_model(chunk) for chunk in (chunks if isinstance(chunks, list) else [chunks])]
    return [model.output_layer for model in models if model.post_process]


def missing_head_message(path: str, missing: list[str]) -> str:
    """The one line told when a critic directory holds no trained value head."""
    return (
        f"critic.model.path={path}: no trained value head (missing weight {', '.join(missing)}); "
        "point it at a critic saved by stage 0 (method=ppo), or set critic.allow_new_value_head=true to start a new one"
    )
