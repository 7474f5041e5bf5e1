# SPDX-License-Identifier: Apache-2.0
"""What ``import verl`` loads in every process (entry-point group ``verl.plugins``).

verl imports this module at the end of its own ``__init__``, in Ray workers too, and hides whatever goes wrong here at
DEBUG level. So nothing heavy happens at import: each registration is a post-import hook that runs when (and only if)
the verl module it extends is imported, outside verl's try/except, where an error is seen by everybody.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt
from omegaconf import OmegaConf

# verl module -> the tempo_verl function ("module:function") that extends it once it is imported
HOOKS = {
    "verl.plugin.platform": "tempo_verl.backends.cpu_platform:register",
    "verl.trainer.ppo.v1": "tempo_verl.trainer:register",
    "verl.workers.engine.fsdp.transformer_impl": "tempo_verl.compat:patch_fsdp_engine",
    "verl.workers.engine": "tempo_verl.backends.cpu_engine:register",
    "verl.workers.rollout.base": "tempo_verl.backends.transformers_rollout:register_adapter",
    "verl.workers.rollout.replica": "tempo_verl.backends.transformers_rollout:register_replica",
    "verl.utils.model": "tempo_verl.compat:patch_value_head_loading",
    "verl.utils.fsdp_utils": "tempo_verl.compat:patch_lora_merge",
    "verl.utils.checkpoint.fsdp_checkpoint_manager": "tempo_verl.compat:patch_checkpoint_manager",
    "verl.utils.distributed": "tempo_verl.compat:patch_process_group",
    "verl.models.mcore.bridge": "tempo_verl.compat:patch_megatron_value_head",
    "verl.workers.engine.megatron.transformer_impl": "tempo_verl.compat:patch_megatron_critic",
}


def _extend(module: ModuleType) -> None:
    target_module, _, function = HOOKS[module.__name__].partition(":")
    getattr(importlib.import_module(target_module), function)(module)


for _name in HOOKS:
    wrapt.register_post_import_hook(_extend, _name)


def _default_hardware() -> str:
    from tempo_verl.config.cluster import default_hardware

    return default_hardware()


def _required_cpus(num_ranks: int, num_storage_units: int) -> int:
    from tempo_verl.config.cluster import required_cpus

    return required_cpus(num_ranks, num_storage_units)


def _workers() -> int:
    from tempo_verl.config.cluster import workers

    return workers()


def _start_path(role: str, run_dir: str | None, which: str, otherwise: str | None = None) -> str | None:
    if run_dir is None:
        return otherwise
    from tempo_verl.config.start import start_path

    return start_path(role, run_dir, which)


def _of_recipes(function: str) -> Callable[..., Any]:
    """A function of ``tempo_verl.config.recipes``, imported when it is called."""

    def call(*arguments: Any) -> Any:
        return getattr(importlib.import_module("tempo_verl.config.recipes"), function)(*arguments)

    return call


# Used by the shipped YAML; registered here because Hydra composes it right after `import verl`.
OmegaConf.register_new_resolver("tempo_hardware", _default_hardware, replace=True)
OmegaConf.register_new_resolver("tempo_required_cpus", _required_cpus, replace=True)
OmegaConf.register_new_resolver("tempo_workers", _workers, replace=True)
OmegaConf.register_new_resolver("tempo_start_path", _start_path, replace=True)
OmegaConf.register_new_resolver("tempo_is_null", lambda value: value is None, replace=True)
OmegaConf.register_new_resolver("tempo_if", lambda condition, yes, no: yes if condition else no, replace=True)
for _name, _function in {
    "tempo_learns_on": "learns_on",
    "tempo_reads_answers": "reads_answers",
    "tempo_stream_files": "stream_files",
    "tempo_files": "set_files",
    "tempo_batch_size": "batch_size",
    "tempo_prompts": "prompts",
}.items():
    OmegaConf.register_new_resolver(_name, _of_recipes(_function), replace=True)
