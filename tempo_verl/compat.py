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
``seqlen_balancing.``               the v1 trainer balances a tensor, so each comparison of rows is one of 0-d tensors:
``get_seqlen_balanced_partitions``  1.5 s for 2,048 rows. A list gives the same partitions 15 times as fast.
``PPOTrainer._build_replay_...``    treats every trainer name but "sync" as asynchronous (six places); handled by an
                                    override in ``TempoTrainer``, listed here for completeness, no patch.
==================================  ================================================================================
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from tempo_verl.errors import UserError

SUPPORTED_VERL = ">=0.9.1,<0.10"

# Set on the Hugging Face config of a critic by ``tempo_verl.trainer.critic_config`` for the loader below.
ALLOW_NEW_VALUE_HEAD = "tempo_allow_new_value_head"


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
        return original(timeout_second=timeout_second, backend=backend)

    distributed.initialize_global_process_group_ray = initialize_global_process_group_ray


def patch_offload_policy(transformer_impl: ModuleType) -> None:
    """Let a forward-only model (reference policy) stay where it is on a CPU platform."""
    original = transformer_impl.CPUOffloadPolicy

    @functools.wraps(original)
    def offload_policy(*args, **kwargs):
        return None if transformer_impl.get_device_name() == "cpu" else original(*args, **kwargs)

    transformer_impl.CPUOffloadPolicy = offload_policy


def patch_balancing(seqlen_balancing: ModuleType) -> None:
    """Let verl balance rows by Python integers."""
    original = seqlen_balancing.get_seqlen_balanced_partitions

    @functools.wraps(original)
    def get_seqlen_balanced_partitions(seqlen_list, k_partitions, equal_size):
        plain = seqlen_list.tolist() if hasattr(seqlen_list, "tolist") else seqlen_list
        return original(plain, k_partitions=k_partitions, equal_size=equal_size)

    seqlen_balancing.get_seqlen_balanced_partitions = get_seqlen_balanced_partitions


def patch_value_head_loading(model_utils: ModuleType) -> None:
    """Replace verl's critic loader by :func:`load_valuehead_model`."""
    model_utils.load_valuehead_model = load_valuehead_model


def load_valuehead_model(local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool):
    """Load a critic: a language-model backbone with a scalar head on every position.

    Args:
        local_path: Hugging Face directory of a critic, or of a causal language model if a new head is allowed.
        torch_dtype: dtype of the loaded weights.
        model_config: the directory's config with ``num_labels=1``; its attention implementation is kept.
        trust_remote_code: as in transformers.

    Returns:
        A ``...ForTokenClassification`` model. A new head is zero: V = 0 before the first update.

    Raises:
        UserError: the directory lacks the value head and ``critic.allow_new_value_head`` is false, or the backbone
            itself is incomplete.
    """
    from transformers import AutoModelForTokenClassification

    allow_new_head = getattr(model_config, ALLOW_NEW_VALUE_HEAD, False)
    if hasattr(model_config, ALLOW_NEW_VALUE_HEAD):
        delattr(model_config, ALLOW_NEW_VALUE_HEAD)  # ours alone: it must not reach a saved config.json

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
    module.config.architectures = [type(module).__name__]  # so that verl's checkpoint manager saves the head as well
    return module


def register_critic_class(model_config: Any) -> None:
    """Give ``AutoModelForTokenClassification`` a class for a model type that transformers has none for (e.g. OLMo 3).

    Built as transformers builds its own: the generic head on the model type's backbone.
    """
    from transformers import AutoModel, AutoModelForTokenClassification
    from transformers.modeling_layers import GenericForTokenClassification

    if type(model_config) in AutoModelForTokenClassification._model_mapping:
        return
    backbone = AutoModel._model_mapping[type(model_config)]
    name = backbone.__name__.removesuffix("Model") + "ForTokenClassification"
    critic_class = type(
        name, (GenericForTokenClassification, backbone.__bases__[0]), {"__module__": backbone.__module__}
    )
    AutoModelForTokenClassification.register(type(model_config), critic_class)


def missing_head_message(path: str, missing: list[str]) -> str:
    """The one line told when a critic directory holds no trained value head."""
    return (
        f"critic.model.path={path}: no trained value head (missing weight {', '.join(missing)}); "
        "point it at a critic saved by stage 0 (method=ppo), or set critic.allow_new_value_head=true to start a new one"
    )
