# SPDX-License-Identifier: Apache-2.0
"""``tempo.start_from``: actor and critic of an earlier run's checkpoint."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from tempo_verl.config.schema import TempoSettings
from tempo_verl.errors import UserError
from tempo_verl.trainer.checkpoints import Checkpoints


def start_path(role: str, run_dir: str | None, which: str) -> str | None:
    """Hugging Face directory of a role in the chosen checkpoint of a run; the default of ``model.path``.

    Args:
        role: ``actor`` or ``critic``.
        run_dir: ``tempo.start_from``; None: no default.
        which: ``tempo.start_checkpoint``, ``last`` or ``best``.

    Raises:
        UserError: there is no such checkpoint.
    """
    if run_dir is None:
        return None
    saved = Checkpoints.of_run(Path(run_dir).expanduser()).chosen(which).absolute() / role
    by_megatron = saved / "model" / "huggingface"  # verl's FSDP writes no folder "model"
    return str(by_megatron if by_megatron.is_dir() else saved / "huggingface")


def check_start(config: DictConfig, settings: TempoSettings) -> None:
    """See that the run to start from has the checkpoint, and in it the models that this run takes from there.

    Raises:
        UserError: it has not.
    """
    if settings.start_from is None:
        return
    where = f"tempo.start_from={settings.start_from}"
    try:
        paths = {role: start_path(role, settings.start_from, settings.start_checkpoint) for role in ("actor", "critic")}
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if config.actor_rollout_ref.model.path == paths["actor"] and not _holds_model(paths["actor"]):
        raise UserError(
            f"{where}: {paths['actor']} holds no model; that run has to save hf_model "
            "(actor_rollout_ref.actor.checkpoint.save_contents)"
        )
    if config.critic.enable and config.critic.model.path == paths["critic"] and not _holds_model(paths["critic"]):
        raise UserError(
            f"{where}: {paths['critic']} holds no critic; start from a run that has one, or set critic.model.path"
        )


def _holds_model(path: str | None) -> bool:
    """Weights as well: verl writes a config.json at every save, and Megatron's LoRA no more than an adapter."""
    return (Path(str(path)) / "config.json").is_file() and any(Path(str(path)).glob("*.safetensors"))
