# SPDX-License-Identifier: Apache-2.0
"""What may change when a run folder is used again: verl resumes whatever checkpoint it finds there."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from tempo_verl.config.files import written
from tempo_verl.config.flat import flatten
from tempo_verl.errors import UserError
from tempo_verl.trainer.checkpoints import Checkpoints

# Settings that change nothing in what is trained, or what follows from another one: by the start of their name.
FREE = (
    "hydra", "ray_kwargs", "transfer_queue", "global_profiler", "trainer.logger", "trainer.project_name",
    "trainer.experiment_name", "trainer.test_freq", "trainer.save_freq", "trainer.val_", "trainer.validation_data_dir",
    "trainer.rollout_data_dir", "trainer.log_", "trainer.default_local_dir", "trainer.total_training_steps",
    "trainer.max_actor_ckpt_to_keep", "trainer.max_critic_ckpt_to_keep", "trainer.resume", "data.val_",
    "actor_rollout_ref.rollout.val_kwargs", "tempo.rounds", "tempo.allow_changes", "tempo.checkpoint",
    "tempo.predictions", "tempo.alarms", "tempo.dump_dir", "tempo.status_file", "tempo.poll_interval",
    "tempo.rollout_timeout", "tempo.monitor_oracle", "tempo.verifier", "reward.num_workers",
)  # fmt: skip
# What only decides whether a run fits in memory, by the end of its name.
MEMORY = ("_token_len_per_gpu", "_micro_batch_size_per_gpu", "_offload", ".gpu_memory_utilization", ".max_num_seqs")
SHOWN = 3  # differences


def check_folder(folder: Path, config: DictConfig) -> None:
    """See that a run goes on as it began: its method, data, batches, learning rates and models.

    Args:
        folder: of the run; its ``config.yaml`` is that of the run so far.
        config: of the run now.

    Raises:
        UserError: it would not, with the differences.
    """
    earlier = folder / "config.yaml"
    latest = Checkpoints.from_config(config).latest()
    if not earlier.is_file():
        return
    method = OmegaConf.load(earlier).tempo.method
    if method != config.tempo.method and not config.tempo.allow_changes:
        raise UserError(
            f"--run-dir={folder} holds a run of method={method}; name another folder (with "
            f"tempo.start_from={folder} to begin with its weights)"
        )
    if latest is None or config.trainer.resume_mode != "auto" or config.tempo.allow_changes:
        return
    before, now = (flatten(OmegaConf.to_container(of, resolve=True)) for of in (OmegaConf.load(earlier), config))
    changed = [name for name in sorted(before.keys() & now.keys()) if before[name] != now[name]]
    changed = [name for name in changed if not name.startswith(FREE) and not name.endswith(MEMORY)]
    if changed:
        told = ", ".join(f"{name}={written(now[name])} was {written(before[name])}" for name in changed[:SHOWN])
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise UserError(
            f"--run-dir={folder} holds a run with other settings ({told}{more}); name another folder (with "
            f"tempo.start_from={folder} to begin with its weights), or set tempo.allow_changes=true to go on with them"
        )
