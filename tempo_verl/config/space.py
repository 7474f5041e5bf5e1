# SPDX-License-Identifier: Apache-2.0
"""What a run will write to disks and to shared memory, estimated, and whether there is room for it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from tempo_verl.config.layout import Role, roles
from tempo_verl.errors import Skipped, UserError

# Bytes of a weight, by what a checkpoint is asked to hold: float32 weights, Adam's two moments, weights once more.
# With LoRA, a frozen part or bfloat16 it is less.
BYTES = {"model": 4, "optimizer": 8, "hf_model": 4}
SHARED_BY_ENGINES = 2**30  # bytes of /dev/shm for NCCL and the processes of an inference engine; a guess
SHM = Path("/dev/shm")


def weights(model: Path) -> int:
    """Number of weights in a model's directory, by the headers of its safetensors; 0 where there are none."""
    from safetensors import safe_open

    count = 0
    for file in model.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as stored:
            count += sum(math.prod(stored.get_slice(name).get_shape()) for name in stored.keys())  # noqa: SIM118
    return count


def bytes_a_weight(config: DictConfig, role: str) -> int:
    """Bytes that a checkpoint holds for each weight of a role: actor or critic."""
    section = "critic" if role == "critic" else "actor_rollout_ref.actor"
    return sum(BYTES.get(part, 0) for part in OmegaConf.select(config, f"{section}.checkpoint.save_contents"))


def kept(config: DictConfig, role: str) -> int:
    """Checkpoints of a role that are on the disk at a time, at most: one that is to go stays until the next is whole.

    Args:
        role: actor or critic.
    """
    rounds, every = config.trainer.total_training_steps, config.trainer.save_freq
    saved = 0 if every <= 0 else -(-rounds // every)
    most = {"all": config.trainer[f"max_{role}_ckpt_to_keep"], "last": 1, "best": 2, "both": 2}[
        config.tempo.checkpoint.keep
    ]
    if config.tempo.checkpoint.keep in ("best", "both"):  # saved whenever a validation is better
        return most + 1
    return saved if most is None else min(saved, most + 1)


def free_bytes(folder: Path) -> int:
    """Bytes that are free where a folder is, or would be."""
    return shutil.disk_usage(_existing(folder.absolute())).free


def check_disk(config: DictConfig) -> str:
    """See that there is room for the checkpoints.

    Returns:
        The estimate, in words.

    Raises:
        UserError: there is not.
    """
    folder, needed, parts = Path(config.trainer.default_local_dir).absolute(), 0, []
    for role in _trained(config):
        size, number, each = _weights(role), kept(config, role.name), bytes_a_weight(config, role.name)
        needed += size * each * number
        parts.append(f"{role.name} {size / 1e6:,.1f}M weights x {each} bytes x {number}")
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    free = free_bytes(folder)
    told = f"checkpoints take up to {_gb(needed)} ({'; '.join(parts)}), {_gb(there)} of it there"
    if needed - there > free:
        raise UserError(
            f"trainer.default_local_dir={folder}: {told}, and {_gb(free)} are free; raise trainer.save_freq, keep "
            "fewer (tempo.checkpoint.keep), or name another disk"
        )
    return f"{told}; {_gb(free)} are free in {_existing(folder)}"


def check_shared_memory(config: DictConfig) -> str:
    """See that /dev/shm holds what passes through it. It is 64 MB in a container by default.

    Returns:
        The estimate, in words.

    Raises:
        UserError: it does not.
    """
    if not SHM.is_dir():
        return f"no {SHM} on this system"
    on_cpu = config.trainer.device == "cpu"
    policy = next(role for role in _trained(config) if role.name == "actor")
    # on a CPU a round hands the policy to the rollout through Ray's object store
    needed = 4 * _weights(policy) if on_cpu else SHARED_BY_ENGINES
    for role in _trained(config):
        if role.get(f"{role.model}.use_shm"):
            needed += sum(file.stat().st_size for file in _model(role).glob("*") if file.is_file())
    free = shutil.disk_usage(SHM).free
    told = f"about {_gb(needed)} are needed, {_gb(free)} are free"
    if needed > free:
        raise UserError(f"{SHM}: {told}; raise it, of a container with --shm-size")
    return told


def _trained(config: DictConfig) -> list[Role]:
    """The roles with weights of their own, whose models are here.

    Raises:
        Skipped: a model is not in a local directory.
    """
    found = [role for name, role in roles(config).items() if name != "reference"]
    for role in found:
        if not _model(role).is_dir():
            raise Skipped(f"{role.model}.path={_model(role)} is no directory here")
    return found


def _model(role: Role) -> Path:
    return Path(str(role.get(f"{role.model}.path")))


def _weights(role: Role) -> int:
    return weights(_model(role))


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"
