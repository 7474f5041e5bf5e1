# SPDX-License-Identifier: Apache-2.0
"""Trains on a Ray cluster of its own, with weights, optimisers and rows recorded at every phase boundary."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from tempo_verl.evaluation.samples import Sample
from tempo_verl.config.checks import check


@dataclass
class Evidence:
    """What one run left behind, by round (from 1)."""

    folder: Path
    weights: dict[tuple[int, str, str], Path] = field(default_factory=dict)  # (round, role, moment) -> HF directory
    rows: dict[int, dict] = field(default_factory=dict)
    metrics: dict[int, dict] = field(default_factory=dict)
    fitted: dict[int, dict] = field(default_factory=dict)  # round -> row key -> (input ids, c(x, y)) of the E-step
    drawn: list[list[Sample]] = field(default_factory=list)  # for the predictions: of D_U, and of D_L
    left_in_queue: set[str] = field(default_factory=set)  # keys of rollouts, after all is done

    def weights_of(self, number: int, role: str, moment: str) -> dict[str, torch.Tensor]:
        return load_file(self.weights[number, role, moment] / "model.safetensors")

    def dump(self, number: int):
        return np.load(self.folder / "rounds" / f"round_{number:06d}.npz")


def train(compose, folder: Path, overrides: list[str]) -> Evidence:
    """Train on a Ray cluster of our own, with weights and rows recorded at every phase boundary."""
    import ray
    import transfer_queue as tq
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env
    from verl.trainer.main_ppo import TaskRunnerV1

    from tempo_verl.trainer.trainer import TempoTrainer

    found = Evidence(folder)

    class RecordingTrainer(TempoTrainer):
        def _weights(self, moment: str) -> None:
            roles = [("actor", self.actor_rollout_wg)] + ([("critic", self.critic_wg)] if self.use_critic else [])
            for role, workers in roles:
                path = folder / f"round_{self.global_steps}_{moment}" / role
                workers.save_checkpoint(str(path), None, self.global_steps)
                found.weights[self.global_steps, role, moment] = path / "huggingface"

        def step(self, metrics, timing_raw):
            self._weights("start")
            batch = super().step(metrics, timing_raw)
            self._weights("end")
            found.metrics[self.global_steps] = dict(metrics)
            return batch

    config = compose(
        [
            f"tempo.dump_dir='{folder / 'rounds'}'",
            f"trainer.default_local_dir='{folder / 'checkpoints'}'",
            "tempo.calibration.lr=1e-3",
            "actor_rollout_ref.actor.optim.lr=1e-3",
            *overrides,
        ]
    )
    check(config)
    config.transfer_queue.enable = True
    OmegaConf.resolve(config)
    options = OmegaConf.to_container(config.ray_kwargs.ray_init)
    environment = {**get_ppo_ray_runtime_env(config)["env_vars"], **options["runtime_env"]["env_vars"]}
    ray.init(
        num_cpus=options["num_cpus"],
        num_gpus=options["num_gpus"],
        include_dashboard=False,
        runtime_env={"env_vars": environment | {"TRANSFER_QUEUE_ENABLE": "1"}},
    )
    try:
        tq.init(config.transfer_queue)
        # verl's own task runner without its Ray actor, so that the trainer is in reach of the test
        runner = TaskRunnerV1.__ray_metadata__.modified_class()
        runner.config = config
        runner.trainer = RecordingTrainer(config)
        runner.trainer.init()
        runner.init_agent_loop_manager()
        runner.trainer.fit(runner.agent_loop_manager)
        found.left_in_queue = set((tq.kv_list() or {}).get("train", {}))
    finally:
        tq.close()  # else the next run would look for this one's actors
        ray.shutdown()
    return found


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)
