# SPDX-License-Identifier: Apache-2.0
"""Real trainings on a Ray cluster of their own: verl, FSDP2, TransferQueue, reward workers, rollouts.

A :class:`Tour` starts the processes once and trains several legs in them, each from the same weights and with empty
optimisers, as a run of its own would: another method, other data, other options. What the workers were built with
(learning rates, the actor's loss) stays. It records only what a leg is asked for.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification

from tempo_verl.algo.jagged import pad
from tempo_verl.config.preflight import check
from tempo_verl.config.schema import read_settings
from tempo_verl.evaluation.samples import Sample
from tempo_verl.methods import Trained
from tempo_verl.trainer.batch import Samples

UNUSED = 10**6  # a policy version that no leg reaches
MOMENTS = ("start", "between", "end")  # of a round: before it, before the policy's update, after it


@dataclass
class Evidence:
    """What one leg left behind, by round (from 1)."""

    folder: Path
    saved: dict[tuple[int, str, str], Path] = field(default_factory=dict)  # (round, role, moment) -> verl's folder
    rows: dict[int, dict] = field(default_factory=dict)  # of the policy's update
    metrics: dict[int, dict] = field(default_factory=dict)
    arrays: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)  # of the unlabelled rows, token by token
    fitted: dict[int, dict] = field(default_factory=dict)  # row key -> (input ids, c(x, y)) of the E-step
    critic_passes: dict[int, int] = field(default_factory=dict)
    reads: dict[int, Counter[tuple[str, str]]] = field(default_factory=dict)  # of a row's field: (field, key) -> times
    drawn: tuple[list[Sample], list[Sample]] = ((), ())  # for the predictions: of D_U, and of D_L
    left_in_queue: set[str] = field(default_factory=set)  # keys of rollouts, after all is done

    def model(self, number: int, role: str, moment: str) -> Path:
        """Hugging Face directory of a role."""
        return self.saved[number, role, moment] / "huggingface"

    def weights_of(self, number: int, role: str, moment: str) -> dict[str, torch.Tensor]:
        return load_file(self.model(number, role, moment) / "model.safetensors")

    def changed(self, number: int, role: str, first: str = "start", second: str = "end") -> bool:
        """Whether any weight of a role differs between two moments of a round."""
        return not equal(*(self.weights_of(number, role, moment) for moment in (first, second)))

    def values(self, number: int, moment: str) -> np.ndarray:
        """(B, T + 1) V(x, y_1:t), t = 0..T, of the rows of the policy's update: by a plain pass, padded with 0."""
        model = AutoModelForTokenClassification.from_pretrained(
            self.model(number, "critic", moment), dtype=torch.float32
        )
        rows = self.rows[number]
        values = np.zeros((len(rows["lengths"]), rows["mask"].shape[1] + 1))
        with torch.inference_mode():
            for row, (ids, length) in enumerate(zip(rows["input_ids"], rows["lengths"], strict=True)):
                values[row, : length + 1] = model.eval()(input_ids=ids.unsqueeze(0)).logits[0, -(length + 1) :, 0]
        return values

    def dump(self, number: int) -> dict[str, np.ndarray]:
        """What the trainer wrote of a round: a few numbers of each row."""
        return dict(np.load(self.folder / "rounds" / f"round_{number:06d}.npz"))

    def tokens(self, number: int) -> dict[str, np.ndarray]:
        """All that a round was trained on: what the trainer wrote of labelled rows, every token of unlabelled ones."""
        dump = self.dump(number)
        labeled = {name: dump[name] for name in ("labeled_value", "labeled_correct") if name in dump}
        return labeled | self.arrays[number]


class Tour:
    """A cluster, one trainer with actor and critic, and the weights that every leg starts from.

    Args:
        config: of the first leg; what the workers are built with.
        folder: for all that is written.
    """

    def __init__(self, config: DictConfig, folder: Path):
        import ray
        import transfer_queue as tq
        from verl.trainer.constants_ppo import get_ppo_ray_runtime_env
        from verl.trainer.main_ppo import TaskRunnerV1

        self._ray, self._tq, self.folder, self._legs = ray, tq, folder, 0
        config = _ready(config)
        options = OmegaConf.to_container(config.ray_kwargs.ray_init)
        variables = {**get_ppo_ray_runtime_env(config)["env_vars"], **options["runtime_env"]["env_vars"]}
        ray.init(
            num_cpus=options["num_cpus"],
            num_gpus=options["num_gpus"],
            include_dashboard=False,
            runtime_env={"env_vars": variables | {"TRANSFER_QUEUE_ENABLE": "1", "PYTHONPATH": _with_tests()}},
        )
        try:
            tq.init(config.transfer_queue)
            # verl's own task runner without its Ray actor, so that the trainer is in reach of the test
            self._runner = TaskRunnerV1.__ray_metadata__.modified_class()
            self._runner.config = config
            self._runner.trainer = self._trainer = _recording_trainer()(config)
            self._trainer.init()
            self._start = folder / "start"
            for role, workers in self._workers():
                workers.save_checkpoint(str(self._start / role), None, 0)
        except BaseException:
            self.close()
            raise

    def leg(
        self, config: DictConfig, *, moments: Sequence[str] = (), rows: bool = False, folder: Path | None = None
    ) -> Evidence:
        """Train as ``config`` says, from the start.

        Args:
            moments: of :data:`MOMENTS`, at which the weights of each round are kept.
            rows: keep the rows of the E-step and of the policy's update.
        """
        self._legs += 1
        found = Evidence(folder or self.folder / f"leg_{self._legs}")
        config.tempo.dump_dir = str(found.folder / "rounds")
        config.trainer.default_local_dir = str(found.folder / "checkpoints")
        config = _ready(config)
        trainer = self._trainer
        trainer.found, trainer.moments, trainer.keeps_rows = found, moments, rows
        self._begin_anew(config)
        self._runner.config = config
        self._runner.init_agent_loop_manager()
        trainer.fit(self._runner.agent_loop_manager)
        found.left_in_queue = set((self._tq.kv_list() or {}).get("train", {}))
        return found

    def agents(self, config: DictConfig, llm_client: Any) -> Any:
        """The trainer as ``config`` says, and its streams, with verl's agent loop on another inference client."""
        from verl.trainer.ppo.v1 import AgentLoopManagerTQ

        config, trainer = _ready(config), self._trainer
        self._begin_anew(config)
        trainer.agent_loop_manager = AgentLoopManagerTQ.create(
            config=config, llm_client=llm_client, reward_loop_worker_handles=trainer.get_reward_handles()
        )
        return trainer

    def _begin_anew(self, config: DictConfig) -> None:
        trainer = self._trainer
        self.clear()
        trainer.config, trainer.method = config, read_settings(config)
        trainer.use_critic, trainer.global_steps = bool(config.critic.enable), 0
        for role, workers in self._workers():
            workers.load_checkpoint(str(self._start / role))
        trainer.checkpoint_manager.update_weights(UNUSED)  # the rollout counts samples anew for another policy version
        trainer.begin(config)

    def clear(self) -> None:
        """Drop what a leg that failed left in the queue."""
        for partition, rows in (self._tq.kv_list() or {}).items():
            if rows:
                self._tq.kv_clear(keys=list(rows), partition_id=partition)

    def _workers(self) -> list[tuple[str, Any]]:
        trainer = self._trainer
        return [("actor", trainer.actor_rollout_wg), *([("critic", trainer.critic_wg)] if trainer.use_critic else [])]

    def close(self) -> None:
        self._tq.close()  # else the next cluster would look for this one's actors
        self._ray.shutdown()


def train(config: DictConfig, folder: Path, **options: Any) -> Evidence:
    """One training in a cluster of its own."""
    config.tempo.dump_dir = str(folder / "rounds")
    config.trainer.default_local_dir = str(folder / "checkpoints")
    tour = Tour(config, folder)
    try:
        return tour.leg(config, folder=folder, **options)
    finally:
        tour.close()


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def _with_tests() -> str:
    """Ray's workers find the modules beside this one, too."""
    return os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))


def _ready(config: DictConfig) -> DictConfig:
    check(config)
    config.transfer_queue.enable = True
    OmegaConf.resolve(config)
    return config


def _recording_trainer() -> type:
    from tempo_verl.trainer import trainer as ours

    class RecordingTrainer(ours.TempoTrainer):
        found: Evidence
        moments: Sequence[str] = ()
        keeps_rows = False

        def begin(self, config: DictConfig) -> None:
            """What ``__init__`` and ``init`` do of what depends on the configuration."""
            self.keeper, self.resumed = ours.Keeper.from_config(config, self.method), None
            self.replay_buffer = self._build_replay_buffer()
            self._init_dump_executor()
            self._init_dataloader()
            self._assemble()
            self.on_init_end()

        def keep(self, moment: str) -> None:
            if moment not in self.moments:
                return
            roles = [("actor", self.actor_rollout_wg)] + ([("critic", self.critic_wg)] if self.use_critic else [])
            for role, workers in roles:
                path = self.found.folder / f"round_{self.global_steps}_{moment}" / role
                workers.save_checkpoint(str(path), None, self.global_steps)
                self.found.saved[self.global_steps, role, moment] = path

        def step(self, metrics, timing_raw):
            self.keep("start")
            reads = self.found.reads[self.global_steps] = Counter()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Samples, "read", _before(Samples.read, partial(_count, reads)))
                patch.setattr(self.method, "step", _after(self.method.step, self._keep_tokens))
                patch.setattr(self.port, "update_actor", _before(self.port.update_actor, self._before_update))
                if self.use_critic:
                    patch.setattr(self.port, "train_critic", _before(self.port.train_critic, self._before_fit))
                    patch.setattr(self.port, "values", _before(self.port.values, self._count_pass))
                batch = super().step(metrics, timing_raw)
            self.keep("end")
            self.found.metrics[self.global_steps] = dict(metrics)
            return batch

        def fit(self, agent_loop_manager) -> None:
            written = self.predictions.write
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(self.predictions, "write", lambda *args: setattr(self.found, "drawn", written(*args)))
                super().fit(agent_loop_manager)

        def _count_pass(self, samples) -> None:
            self.found.critic_passes[self.global_steps] = self.found.critic_passes.get(self.global_steps, 0) + 1

        def _keep_tokens(self, trained: Trained) -> None:
            rows, kept = trained.unlabeled, {}
            if rows is not None:
                kept = {
                    "unlabeled_reward": trained.reward,
                    "unlabeled_advantages": trained.advantages,
                    "unlabeled_mask": trained.samples.response_mask,
                }
                kept |= {} if trained.values is None else {"unlabeled_values": trained.values}
            self.found.arrays[self.global_steps] = {
                name: _padded(tensor)[rows].numpy() for name, tensor in kept.items()
            }

        def _before_fit(self, samples, **_options) -> None:
            if self.keeps_rows and not ours.LOSSES[self.method.critic_loss].on_policy_batch:
                stored = samples.read("input_ids", "outcome")
                rows = zip(samples.meta.keys, stored["input_ids"].unbind(), stored["outcome"].unbind(), strict=True)
                self.found.fitted[self.global_steps] = {key: (ids.tolist(), c.item()) for key, ids, c in rows}

        def _before_update(self, samples, *_options) -> None:
            self.keep("between")
            if self.keeps_rows:
                self.found.rows[self.global_steps] = {
                    "real": samples.real,
                    "input_ids": [ids.clone() for ids in samples.read("input_ids")["input_ids"].unbind()],
                    "lengths": samples.response_lengths,
                    "mask": _padded(samples.response_mask),
                    "advantages": [row.clone() for row in samples.read("advantages")["advantages"].unbind()],
                    "reward_model": samples.read_once("reward_model"),
                    "infos": samples.reward_info,
                    "prompts": samples.prompts,
                    "sessions": samples.sessions,
                    "ends": samples.ends,
                    "reward": [row.sum().item() for row in samples.read("rm_scores")["rm_scores"].unbind()],
                    "rollout_log_probs": list(samples.read("rollout_log_probs")["rollout_log_probs"].unbind()),
                }

    return RecordingTrainer


def _count(reads: Counter, samples: Samples, *names: str) -> None:
    reads.update((name, key) for name in names for key in samples.meta.keys)


def _padded(tensor: torch.Tensor) -> torch.Tensor:
    """(B,) as it is, a jagged one (B, T) with 0 behind its rows; a mask as 0 and 1."""
    padded = pad(tensor)
    return padded.long() if padded.dtype == torch.bool else padded


def _after(function, look):
    def wrapped(*args):
        found = function(*args)
        look(found)
        return found

    return wrapped


def _before(function, look):
    def wrapped(samples, *args, **options):
        look(samples, *args, **options)
        return function(samples, *args, **options)

    return wrapped
