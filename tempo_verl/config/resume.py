# SPDX-License-Identifier: Apache-2.0
"""What a run may go on from: a checkpoint that was saved with the same method, settings and data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tempo_verl.config.files import lacks_predictions, restored_checkpoint, round_of, written
from tempo_verl.config.flat import flatten
from tempo_verl.data.aside import rows_aside
from tempo_verl.data.validation import HDFS
from tempo_verl.errors import UserError
from tempo_verl.methods import Method
from tempo_verl.trainer.manifest import read_manifest, sha256

# Settings that change nothing in what is trained, or what follows from another one: by the start of their name.
FREE = (
    "hydra", "ray_kwargs", "transfer_queue", "global_profiler", "trainer.logger", "trainer.project_name",
    "trainer.experiment_name", "trainer.test_freq", "trainer.save_freq", "trainer.val_",
    "trainer.validation_data_dir", "trainer.rollout_data_dir", "trainer.log_", "trainer.default_local_dir",
    "trainer.total_training_steps", "trainer.max_actor_ckpt_to_keep", "trainer.max_critic_ckpt_to_keep",
    "trainer.resume", "data.val_", "actor_rollout_ref.rollout.val_kwargs", "tempo.rounds", "tempo.resume",
    "tempo.checkpoint", "tempo.predictions", "tempo.alarms", "tempo.dump_dir", "tempo.status_file",
    "tempo.poll_interval", "tempo.rollout_timeout", "tempo.monitor_oracle", "tempo.verifier.allow",
    "tempo.verifier.max_error_share", "tempo.verifier.timeout", "reward.num_workers", "tempo.start_",
    "actor_rollout_ref.rollout.agent.num_workers",
    "tempo.labeled.files", "tempo.unlabeled.files", "data.train_files",
)  # fmt: skip
# What only decides whether a run fits in memory, by the end of its name.
MEMORY = ("_token_len_per_gpu", "_micro_batch_size_per_gpu", "_offload", ".gpu_memory_utilization", ".max_num_seqs")
SHOWN = 3  # differences


@dataclass(frozen=True)
class Fingerprint:
    """What decides how a run goes on.

    Attributes:
        settings: by dotted name, those that change what is trained.
        data: by the field that names them, the hashes of the question files; the name of one on HDFS.
    """

    settings: dict[str, Any]
    data: dict[str, list[str]]

    @classmethod
    def of(cls, config: DictConfig, method: Method) -> Fingerprint:
        """That of a run, whose files are there."""
        tree = {name: value for name, value in config.items() if name != "hydra"}
        values = flatten(OmegaConf.to_container(OmegaConf.create(tree), resolve=True))  # type: ignore[arg-type]
        settings = {
            name: value for name, value in values.items() if not name.startswith(FREE) and not name.endswith(MEMORY)
        }
        if aside := _aside(method):
            settings["tempo.predictions.aside (questions)"] = aside
        streams = {"tempo.labeled.files": method.settings.labeled.files}
        if method.needs.unlabeled:
            streams["tempo.unlabeled.files"] = method.settings.unlabeled.files
        data = {field: _hashes(files) for field, files in streams.items() if files}
        return cls(settings, data)

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def changes(self, earlier: Mapping[str, Any]) -> list[str]:
        """Differences to an earlier run's, in words.

        Args:
            earlier: what :meth:`as_json` gave.
        """
        if "settings" not in earlier:
            return []
        before, now = earlier["settings"], self.settings
        changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
        told = [f"{name}={written(now.get(name))} was {written(before.get(name))}" for name in changed]
        data = earlier.get("data", {})
        return told + [
            f"{field} has other questions" for field in sorted(data.keys() | self.data.keys())
            if data.get(field, []) != self.data.get(field, [])
        ]  # fmt: skip


def _aside(method: Method) -> int:
    """Questions of D_L that the run does not train on."""
    import pyarrow.parquet as pq

    local = [Path(name).expanduser() for name in _names(method.settings.labeled.files) if not name.startswith(HDFS)]
    return len(rows_aside(method, sum(pq.read_metadata(path).num_rows for path in local)))


def _hashes(files: str | list[str]) -> list[str]:
    return [name if name.startswith(HDFS) else sha256(Path(name).expanduser()) for name in _names(files)]


def _names(files: str | list[str] | None) -> list[str]:
    return [files] if isinstance(files, str) else list(files or [])


def check_resume(config: DictConfig, method: Method) -> None:
    """See that a run that goes on from a checkpoint goes on as it began, and has something left to do.

    Raises:
        UserError: it does not, with the differences, or has not; or verl cannot make out the checkpoint.
    """
    restored, rounds = restored_checkpoint(config), method.settings.rounds
    if restored is None or config.trainer.val_only:
        return
    trained = round_of(restored)
    check_unchanged(config, method)
    if trained < rounds or (trained == rounds and lacks_predictions(method, restored)):
        return
    field, remedy = f"trainer.resume_mode=auto: {config.trainer.default_local_dir}", "name another folder"
    if config.trainer.resume_mode == "resume_path":
        field = f"trainer.resume_from_path={config.trainer.resume_from_path}"
        remedy = "start from its weights with tempo.start_from"
    raise UserError(
        f"{field} is trained for {trained} rounds already, tempo.rounds={rounds}; raise the latter, or {remedy}"
    )


def check_unchanged(config: DictConfig, method: Method) -> None:
    """See that method, settings and data are those of the checkpoint that a run goes on from, if it does.

    Raises:
        UserError: they are not, with the differences.
    """
    checkpoint = restored_checkpoint(config)
    if checkpoint is None or method.settings.resume.allow_changes:
        return
    changed = Fingerprint.of(config, method).changes(read_manifest(checkpoint) or {})
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise UserError(
            f"{checkpoint} was saved by a run with other settings ({', '.join(changed[:SHOWN])}{more}); set them back, "
            "name another folder (with tempo.start_from to begin with its weights), or set "
            "tempo.resume.allow_changes=true to go on with them"
        )


def check_folder(folder: Path, config: DictConfig) -> None:
    """See that a folder holds no run of another method.

    Args:
        folder: of the run; its ``config.yaml`` is that of the run so far.
        config: of the run now.

    Raises:
        UserError: it does.
    """
    earlier = folder / "config.yaml"
    if not earlier.is_file() or config.tempo.resume.allow_changes:
        return
    method = OmegaConf.load(earlier).tempo.method
    if method != config.tempo.method:
        raise UserError(
            f"--run-dir={folder} holds a run of method={method}; name another folder (with "
            f"tempo.start_from={folder} to begin with its weights)"
        )
