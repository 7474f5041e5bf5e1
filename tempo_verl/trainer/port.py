# SPDX-License-Identifier: Apache-2.0
"""Every call into verl's trainer and its workers, for verl >=0.9.1,<0.10.

The parts of the trainer are handed a :class:`Port`, never the trainer itself.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch
from omegaconf import DictConfig
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.utils import create_rl_dataset
from verl.utils import tensordict_utils as tu
from verl.utils.metric import reduce_metrics
from verl.utils.py_functional import rename_dict
from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions, log_seqlen_unbalance

from tempo_verl.algo.jagged import Rows, pad, unpad
from tempo_verl.config.layout import Role, roles
from tempo_verl.trainer.batch import NOT_FOR_ACTOR, NOT_FOR_CRITIC, KVBatchMeta, Samples, response_values, select
from tempo_verl.trainer.correction import corrects, rollout_correction
from tempo_verl.trainer.log import Log

if TYPE_CHECKING:
    from verl.trainer.ppo.v1 import PPOTrainerSync


class Port:
    """What verl does for us in a round.

    Args:
        trainer: verl's, set up.

    Attributes:
        config: the whole configuration.
        tokenizer: the policy's.
        has_critic: whether the run has a critic.
        rollout_error: see ``Arrivals.first_error``.
        critic_loss_reads: fields that the critic's loss reads beside the usual ones.
    """

    def __init__(self, trainer: PPOTrainerSync, critic_loss_reads: frozenset[str] = frozenset()):
        self.config: DictConfig = trainer.config
        self.tokenizer = trainer.tokenizer
        self.has_critic: bool = trainer.use_critic
        self._not_for_critic_update = NOT_FOR_CRITIC - critic_loss_reads
        self._use_reference = trainer.use_reference_policy
        self._critic = trainer.critic_wg if trainer.use_critic else None
        self._actor = trainer.actor_rollout_wg
        self._engine = trainer.checkpoint_manager
        # the workers of each role, and verl's name for how they share a batch
        workers = {"actor": (self._actor, "actor"), "critic": (self._critic, "train")}
        if trainer.use_reference_policy and not trainer.ref_in_actor:
            workers["reference"] = (trainer.ref_policy_wg, "ref")
        self._roles = {role: workers[name] for name, role in roles(trainer.config).items() if name in workers}
        # bound methods, so that nothing here leads to what else the trainer holds
        self._collect, self._wait = trainer.replay_buffer.collect, trainer.replay_buffer.wait
        self.rollout_error: Callable[[], str] = trainer.replay_buffer.first_error
        self._submit = trainer._submit_batch_to_rollout
        self._sample_begins, self._sample_ends = trainer.on_sample_begin, trainer.on_sample_end
        self._old_log_prob, self._ref_log_prob = trainer._compute_old_log_prob, trainer._compute_ref_log_prob
        self._update_actor = trainer._update_actor

    # ------------------------------------------------------------------ rollouts

    def submit(self, batch: dict[str, Any], number: int, n: int | None = None) -> set[str]:
        """Send prompts to the agent loop, for n responses each (default: rollout.n). Returns their uids."""
        if n is not None:
            batch["__rollout_n__"] = [n] * len(batch["uid"])
        prompts = tu.get_tensordict(batch)
        tu.assign_non_tensor_data(prompts, "global_steps", number)
        self._submit(prompts)
        return set(batch["uid"])

    def collect(self, number: int, *submitted: set[str]) -> tuple[list[Samples], dict[str, float]]:
        """Wait for all of these prompts. Returns the responses to each of the sets, and verl's metrics."""
        batch, metrics = self._collect(number, set().union(*submitted))
        return select(batch, *submitted, timeout=self.config.tempo.verifier.timeout), metrics

    def collect_in_round(self, number: int, log: Log, *submitted: set[str]) -> list[Samples]:
        """As :meth:`collect`, with verl's hooks of a training step: afterwards the inference engine sleeps."""
        self._sample_begins()
        parts, metrics = self.collect(number, *submitted)
        log.metrics.update(metrics)
        self._sample_ends()
        return parts

    def wait(self, submitted: set[str]) -> None:
        """Wait for prompts, and leave the responses where they are."""
        self._wait(submitted)

    def sleep_engine(self) -> None:
        """Free the inference engine's memory."""
        self._engine.sleep_replicas()

    def wake_engine(self, number: int | None = None) -> None:
        """Bring the inference engine back, with the policy's weights."""
        self._engine.update_weights(number)

    def reader(self, samples: Samples) -> Callable[[int], str]:
        """Fetch the responses. Returns row -> text of its response, decoded when it is asked for, by any thread."""
        token_ids = samples.read("responses")["responses"].unbind()
        return lambda row: self.tokenizer.decode(token_ids[row].tolist(), skip_special_tokens=True)

    def balanced(
        self, samples: Samples, multiple: int, log: Log, prefix: str, *readers: str, updates_only: bool = False
    ) -> Samples:
        """Spread rows evenly over the data-parallel ranks of all readers, where need be with synthetic rows.

        verl does this for the actor alone. The critic may have more ranks, or fewer.

        Args:
            multiple: rows of an update.
            prefix: of the metrics.
            readers: who is to pass over the batch: policy (with its reference), critic.
            updates_only: none of them without gradients, which goes over the whole batch in its own micro-batches.
        """
        found = [role for role in self._roles if ("critic" if role.name == "critic" else "policy") in readers]
        for role in found:
            multiple = math.lcm(multiple, self._ranks(role) * (1 if updates_only else role.rows(role.forward)))
        parts = math.lcm(*map(self._ranks, found))
        if parts == 1 and len(samples) % multiple == 0:
            return samples  # verl would still weigh every row against every other
        whole = upsample_batch_to_divisible_size(samples.meta, multiple, self.tokenizer.eos_token_id)
        lengths = [tag["seq_len"] for tag in whole.tags]
        log.metrics.update(log_seqlen_unbalance(lengths, _spread(whole, parts), prefix))
        return samples.of(whole)

    def in_updates(self, samples: Samples, mini_batch: int, name: str) -> Samples:
        """Rows for updates of a role, less the synthetic rows that would fill whole ones.

        They are there where another pass has larger mini-batches, or more ranks. The optimiser would step on its
        momentum alone, and the mean over tokens in verl's loss of the policy is 0 / 0.
        """
        synthetic = np.flatnonzero(~samples.real)
        surplus = synthetic[: len(synthetic) // mini_batch * mini_batch]
        if not len(surplus):
            return samples
        kept = samples.rows(np.delete(np.arange(len(samples)), surplus))
        _spread(kept.meta, next(self._ranks(role) for role in self._roles if role.name == name))
        return kept

    def _ranks(self, role: Role) -> int:
        """Data-parallel size of a role, as its workers tell."""
        workers, mesh = self._roles[role]
        if mesh not in workers._dispatch_info:
            workers._dispatch_info[mesh] = workers._query_dispatch_info(mesh)
        return max(workers._dispatch_info[mesh]) + 1

    # ------------------------------------------------------------------ the critic

    def values(self, samples: Samples) -> torch.Tensor:
        """Jagged (B, T_i + 1) float32 values V(x, y_1:t), t = 0..T, of the critic as it is now."""
        request = samples.request(NOT_FOR_CRITIC, compute_loss=False, temperature=self._temperature)
        ray.get(self._critic.infer_batch(request).futures)
        return response_values(samples.read("values")["values"], Rows.of(samples.response_mask).lengths)

    def train_critic(self, samples: Samples, *, mini_batch: int, epochs: int, number: int) -> dict[str, float]:
        """Updates of ``mini_batch`` rows by the loss that was set. Returns verl's metrics."""
        request = samples.request(
            self._not_for_critic_update,
            global_batch_size=mini_batch,
            mini_batch_size=mini_batch,
            epochs=epochs,
            seed=self.config.critic.data_loader_seed + number,
            dataloader_kwargs={"shuffle": True},
            temperature=self._temperature,
        )
        with self._unchanged("actor"):
            output = rename_dict(self._critic.train_mini_batch(request).get()["metrics"], "critic/")
        output["perf/mfu/critic"] = output.pop("critic/mfu")
        return reduce_metrics(output)

    # ------------------------------------------------------------------ the policy

    def update_actor(self, samples: Samples, mini_batch: int, log: Log) -> None:
        """verl's old and reference log-probabilities, and its actor update on the stored advantages.

        With ``algorithm.rollout_correction`` the update weighs or rejects tokens. Metrics are of all tokens.
        """
        mask, correction = samples.response_mask, self.config.algorithm.rollout_correction
        with log.time("old_log_prob"):
            self._old_log_prob(samples.request(NOT_FOR_ACTOR), metrics=log.metrics)
            if corrects(correction):
                self._correct_rollout(samples, correction, log)
        if self._use_reference:
            with log.time("ref"):
                self._ref_log_prob(samples.request(NOT_FOR_ACTOR), metrics=log.metrics)
        with log.time("update_actor"):
            rows = self.in_updates(samples, mini_batch, "actor")
            with self._unchanged("critic"):
                self._update_actor(rows.request(NOT_FOR_ACTOR), metrics=log.metrics)
        if corrects(correction) and correction.rollout_rs is not None:
            samples.write(response_mask=mask)

    def _correct_rollout(self, samples: Samples, correction: DictConfig, log: Log) -> None:
        """Store the weights and the mask that the actor's loss reads.

        The loss is divided by the sum of ``loss_mask``, which stays: a rejected token counts as 0 in the mean, as in
        verl's own trainer, and a mini-batch that is rejected as a whole changes nothing.
        """
        stored, mask = samples.read("old_log_probs", "rollout_log_probs"), samples.response_mask
        fields, metrics = rollout_correction(  # verl's, which knows padded tensors alone
            pad(stored["old_log_probs"]),
            pad(stored["rollout_log_probs"]),
            pad(mask).long(),
            correction,
        )
        log.metrics.update(metrics)
        samples.write(**{name: unpad(field, mask) for name, field in fields.items()})

    @contextmanager
    def _unchanged(self, role: str) -> Iterator[None]:
        """With ``tempo.guard.check_frozen``: see that the weights of the role that is not trained stay as they are.

        Raises:
            RuntimeError: they do not.
        """
        workers = {"actor": self._actor, "critic": self._critic}[role]
        if workers is None or not self.config.tempo.guard.check_frozen:
            yield
            return
        before = _weights(workers, role)
        yield
        if _weights(workers, role) != before:
            raise RuntimeError(f"the {role}'s weights have changed while the other model was trained")

    @property
    def computes_entropy(self) -> bool:
        """Whether old log-probabilities, and with them the entropy, are computed (``bypass_mode`` is off)."""
        return not self.config.algorithm.rollout_correction.bypass_mode

    @property
    def logs_mean_entropy(self) -> bool:
        """Whether verl's ``actor/entropy`` is then the mean over all of the policy's own tokens in the batch."""
        return self.computes_entropy and self.config.actor_rollout_ref.actor.loss_agg_mode == "token-mean"

    @property
    def _temperature(self) -> float:
        return self.config.actor_rollout_ref.rollout.temperature


def _weights(workers: Any, role: str) -> list[str]:
    """Hashes of the weights of a role that each worker of a group holds."""
    return ray.get([worker.__ray_call__.remote(_hash_weights, role) for worker in workers.workers])


def _hash_weights(worker: Any, role: str) -> str:
    """Runs in a training worker."""
    colocated = getattr(worker, "worker_dict", {role: worker})  # actor_rollout, critic, ...
    trained = next(part for name, part in colocated.items() if name.startswith(role))
    module, digest = getattr(trained, "actor", trained).engine.module, hashlib.sha256()
    parts = module if isinstance(module, list) else [module]  # Megatron's are several
    for parameter in (parameter for part in parts for parameter in part.parameters()):
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        digest.update(local.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _spread(rows: KVBatchMeta, parts: int) -> list[list[int]]:
    """Reorder rows so that parts of equal size are as much work as each other. Returns which rows are in each."""
    # numbers, not 0-d tensors: the same partitions 15 times as fast
    work = calculate_workload(torch.tensor([tag["seq_len"] for tag in rows.tags])).tolist()
    partitions = get_seqlen_balanced_partitions(work, parts, equal_size=True)
    rows.reorder([row for partition in partitions for row in partition])
    return partitions


def read_dataset(files: Any, trainer: PPOTrainerSync) -> Any:
    """verl's dataset of a file set, with the run's tokenizer and ``data`` section."""
    return create_rl_dataset(files, trainer.config.data, trainer.tokenizer, trainer.processor)
