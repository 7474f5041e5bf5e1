# SPDX-License-Identifier: Apache-2.0
"""``tempo-verl train --dry-run``: every check of a run and its estimate. Nothing starts, the run folder is not made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from tempo_verl.config.checks import check_settings
from tempo_verl.config.cluster import check_ray, is_local
from tempo_verl.config.layout import roles
from tempo_verl.config.preflight import check_contents
from tempo_verl.config.resume import check_folder
from tempo_verl.config.schema import read_settings
from tempo_verl.config.space import check_disk, free_bytes, weights
from tempo_verl.console import tell
from tempo_verl.errors import Skipped, UserError
from tempo_verl.launch import compose
from tempo_verl.planning.architecture import Architecture, find
from tempo_verl.planning.estimate import BANDWIDTH_SHARE, MFU, assumed, estimate
from tempo_verl.planning.machine import Machine
from tempo_verl.planning.shown import show, size
from tempo_verl.run import Run, resolved
from tempo_verl.trainer.manifest import write_text


def dry_run(run: Run, overrides: Sequence[str], console: Console, out: Path | None = None) -> Path:
    """Check as ``train`` does, tell what the run would do, and write its configuration.

    Args:
        out: file of the configuration; None: beside the run folder, ``RUN_DIR.dry-run.yaml``.

    Returns:
        That file.

    Raises:
        UserError: the mistake that would end the run before it starts.
    """
    with console.status("checking"):
        _, config = compose(run, overrides)
        check_settings(config, ray=False)
        not_here = _what_this_machine_lacks(config)
        check_folder(run.folder, config)
        check_contents(config)
        try:
            disk = check_disk(config)
        except Skipped as why:
            disk = f"disk not checked: {why}; {size(free_bytes(run.folder))} are free"
    machine = Machine(config.trainer.nnodes, config.trainer.n_gpus_per_node, None)
    try:
        models = _models(config)
    except UserError as why:
        tell(console, f"memory and work are not estimated: {why}")
    else:
        show(estimate(config, models, machine, assumed(config, None, None, MFU, BANDWIDTH_SHARE)), console)
    tell(console, disk)
    if not_here:
        tell(console, f"to be run elsewhere, or in a Ray cluster: {not_here}")
    for line in _round(config):
        tell(console, line)
    tell(console, f"{run.folder} would hold: {', '.join(_files(run, config))}")
    folder = run.folder.absolute()
    path = out or folder.with_name(f"{folder.name}.dry-run.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, resolved(config))
    tell(console, f"configuration: {path}")
    tell(console, f"all {'other ' * bool(not_here)}checks passed; nothing was started")
    return path


def _what_this_machine_lacks(config: DictConfig) -> str | None:
    """In words; a run may be looked at where it is submitted, which is not where it runs.

    Raises:
        UserError: it makes a Ray of its own here, and lacks something for it.
    """
    try:
        check_ray(config)
    except UserError as lack:
        if is_local(config):
            raise
        return str(lack)
    return None


def _models(config: DictConfig) -> dict[str, tuple[Architecture, int]]:
    """Weights as stored, where they are here. Of a critic that was made from a policy, its own head's."""
    found = {}
    for name, role in roles(config).items():
        if name == "reference":
            continue
        path = str(role.get(f"{role.model}.path"))
        model = find(path)
        count = model.critic_parameters if name == "critic" else weights(Path(path)) or model.policy_parameters
        found[name] = (model, count)
    return found


def _round(config: DictConfig) -> list[str]:
    method, rollout = read_settings(config), config.actor_rollout_ref.rollout
    settings, actor = method.settings, config.actor_rollout_ref.actor
    both = method.mixes_streams or settings.actor_on_labeled
    learns_on = ("labeled", "unlabeled") if both else (method.learns_on(),)
    batch = sum(getattr(settings, stream).batch_size for stream in learns_on)
    updates = batch // actor.ppo_mini_batch_size * actor.ppo_epochs
    lines = [f"a round: {updates} updates of the policy, {rollout.n} responses a prompt"]
    if config.critic.enable and method.fits_critic:
        calibration = settings.calibration
        fitted = settings.labeled.batch_size + calibration.replay.prompts
        steps = fitted // calibration.mini_batch_size * calibration.epochs
        lines[0] += f"; up to {steps} of the critic where it is fitted"
    every = config.trainer.save_freq
    lines.append(f"checkpoints: every {every} rounds, and the last" if every > 0 else "checkpoints: none")
    return lines


def _files(run: Run, config: DictConfig) -> list[str]:
    files = [run.config, run.metrics, run.status, run.log]
    if config.trainer.save_freq > 0:
        files.append(run.checkpoints)
    method = read_settings(config)
    if method.needs.unlabeled and method.settings.predictions.file is not None:
        files.append(run.predictions)
    return [str(file.relative_to(run.folder)) for file in files] + ["run.json", "report.html"]
