# SPDX-License-Identifier: Apache-2.0
"""TEMPO on verl's v1 synchronous trainer: ``trainer.v1.trainer_mode=tempo``.

One round: roll out D_L and D_U together; E-step: fit the critic on D_L; M-step: improve the policy on D_U with the
critic's final value as reward. Source: arXiv 2604.19295, with the indices fixed in ``tempo_verl.algo.advantage``.
Only verl's worker-group API is used, so FSDP or Megatron and vLLM or SGLang stay verl's business.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path

import numpy as np
import ray
import torch
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import create_rl_dataset
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer
from verl.utils import tensordict_utils as tu
from verl.utils.debug import marked_timer
from verl.utils.metric import reduce_metrics
from verl.utils.py_functional import rename_dict

from tempo_verl.algo.advantage import advantage, clip_values, final_value, group_advantage
from tempo_verl.algo.calibration import position_mask
from tempo_verl.algo.shaping import format_penalty, length_penalty, overlong_penalty
from tempo_verl.backends.cpu_platform import use_platform_for
from tempo_verl.data.monitor import MonitorStore, label_metrics, oracle_metrics
from tempo_verl.data.streams import Stream, Streams, WithoutAnswers
from tempo_verl.data.validation import read_judging_sources
from tempo_verl.errors import UserError
from tempo_verl.trainer.checkpoints import Best, Checkpoints
from tempo_verl.trainer.critic_loss import official_value_loss, value_calibration_loss
from tempo_verl.trainer.metrics import (
    labeled_metrics,
    prefixed,
    unlabeled_metrics,
    validation_accuracy,
    validation_metrics,
    verifier_metrics,
)
from tempo_verl.trainer.official_round import OfficialRound
from tempo_verl.trainer.predict import Predictions
from tempo_verl.trainer.queue import NOT_FOR_ACTOR, NOT_FOR_CRITIC, Samples, concatenate, final_values_of, select
from tempo_verl.trainer.replay import Replay
from tempo_verl.trainer.settings import TempoSettings, plan_round
from tempo_verl.trainer.signals import cluster_signal, first_samples, majority_signal, random_signal
from tempo_verl.trainer.watch import ENDS_EARLY, Watch

logger = logging.getLogger(__name__)


@register_trainer("tempo")
class TempoTrainer(OfficialRound, Predictions, PPOTrainerSync):
    """Rounds of rollout, E-step and M-step; the other methods leave a part out or put another in its place."""

    def __init__(self, config):
        use_platform_for(config.trainer.device)
        self.settings = TempoSettings.from_config(config)
        self.checkpoints = Checkpoints.from_config(config)
        self.judging_sources: list[str] = []
        self._validated = False
        if self.checkpoints.keeps_best:
            self.judging_sources = read_judging_sources(
                config.data.val_files, self.settings.unlabeled.files, self.settings.checkpoint.validation
            )
        super().__init__(config)

    # ------------------------------------------------------------------ one round

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        """One round. Returns the rows whose metrics verl logs and which it then clears from the queue."""
        plan = plan_round(self.settings, self.global_steps, gate_open=self.streams.watch.gate_open)
        self._record: dict[str, np.ndarray] = {}

        with marked_timer("gen", timing_raw):
            labeled, unlabeled = self._rollout(plan, metrics)

        judged = None
        if self.settings.kind.learns_on == "labeled":
            trained = self._labeled_step(labeled, plan, metrics, timing_raw)
        elif self.settings.kind.reward == "official":
            trained, judged, reward = self._official_step(labeled, unlabeled, metrics, timing_raw)
        else:
            if labeled is not None and self.use_critic:
                with marked_timer("e_step", timing_raw):
                    self._e_step(labeled, metrics)
            if plan.improve:
                with marked_timer("m_step", timing_raw):
                    trained, judged, reward = self._m_step(unlabeled, labeled, metrics, timing_raw)
            else:
                trained = labeled
                self._store_advantage(labeled, self._values(labeled), self._outcome(labeled))  # for verl's metrics
        if judged is not None:
            self._monitor(judged, reward, metrics)
            self.streams.unlabeled.observe(judged.prompts, reward.tolist())

        if labeled is not None and labeled is not trained:
            self._clear_except(labeled, trained)
        phases = {"rollout": "gen", "e_step": "e_step", "m_step": "m_step"}
        metrics.update({f"tempo/time/{name}_s": timing_raw[key] for name, key in phases.items() if key in timing_raw})
        self._dump(self._record)
        metrics.update(self.streams.watch.observe(self.global_steps, metrics))
        if self.streams.watch.stop and self.global_steps + 1 < self.total_training_steps:
            logger.warning("%s%s", ENDS_EARLY, self.streams.watch.stop)
            self.total_training_steps = self.global_steps + 1  # verl saves and validates in a last round
        return trained.meta

    def _rollout(self, plan, metrics: dict) -> tuple[Samples | None, KVBatchMeta | None]:
        """Generate for both streams in one phase, so that the inference engine is filled once."""
        submitted: dict[str, set[str]] = {}
        if plan.label and self.streams.labeled is not None:
            submitted["labeled"] = self._submit(self.streams.labeled.next_batch(), n=self.settings.labeled.n)
        if plan.improve and self.streams.unlabeled is not None:
            votes = self.settings.ttrl.n_votes if self.settings.kind.reward == "majority" else None
            submitted["unlabeled"] = self._submit(self.streams.unlabeled.next_batch(), n=votes)
        self.on_sample_begin()
        batch, sample_metrics = self.replay_buffer.sample(
            global_steps=self.global_steps, partition_id="train", batch_size=sum(map(len, submitted.values()))
        )
        metrics.update(sample_metrics)
        self.on_sample_end()
        for name in submitted:
            metrics[f"tempo/{name}/epoch"] = getattr(self.streams, name).epoch

        parts = {name: select(batch, prompts) for name, prompts in submitted.items()}
        for name, part in parts.items():
            if len(part) == 0:
                raise RuntimeError(f"no {name} rollout of round {self.global_steps} succeeded; see the agent-loop log")
            self._count_failed_verdicts(name, Samples(part), metrics)
        labeled, unlabeled = parts.get("labeled"), parts.get("unlabeled")
        if labeled is not None:
            multiple = self._critic_mini_batch if self.use_critic else 1
            if self.settings.kind.learns_on == "labeled":
                multiple = math.lcm(multiple, self._actor_mini_batch)
            labeled = self._balanced(labeled, multiple, metrics, "labeled_seqlen")
        return labeled, unlabeled

    def _e_step(self, labeled: Samples, metrics: dict) -> None:
        """Fit the critic on D_L; nothing else touches it. Its calibration is measured before the fit."""
        outcome = self._outcome(labeled)
        self._measure_critic(labeled, self._values(labeled), outcome, metrics)
        if self.settings.kind.fits_critic:
            self._fit_critic(labeled, outcome, metrics)

    def _m_step(
        self, unlabeled: KVBatchMeta, labeled: Samples | None, metrics: dict, timing_raw: dict
    ) -> tuple[Samples, Samples, torch.Tensor]:
        """Improve the policy on D_U, rewarded by the critic as it is after this round's E-step, or as the method says.

        Returns:
            All rows trained on; of them the real unlabelled ones, and their reward R.
        """
        settings = self.settings
        unlabeled, own_reward = self._self_reward(unlabeled, metrics)
        on_policy, guided = unlabeled, None
        if settings.actor_on_labeled and labeled is not None:
            guided = select(
                labeled.meta, {prompt for prompt, real in zip(labeled.prompts, labeled.real, strict=True) if real}
            )
            on_policy = concatenate(unlabeled, guided)
        samples = self._balanced(on_policy, self._actor_mini_batch, metrics, "global_seqlen")

        values = clip_values(self._values(samples), settings.value_range) if self.use_critic else None
        if own_reward is not None:
            reward = torch.tensor([own_reward.get(key, 0.0) for key in samples.meta.keys])
        elif settings.kind.reward == "verdict":
            reward = self._outcome(samples)
        else:
            reward = final_value(values, samples.response_mask, settings.final_value)
        if guided is not None:
            with_label = np.flatnonzero(np.isin(samples.meta.keys, guided.keys))
            reward[with_label] = self._outcome(samples.rows(with_label))
        advantages = self._store_advantage(samples, values, reward + self._shaping(samples, metrics))
        entropy = self._update_policy(samples, metrics, timing_raw)
        judged = np.flatnonzero(np.isin(samples.meta.keys, unlabeled.keys))
        self._measure_policy(samples, judged, values, reward, advantages, entropy, metrics)
        return samples, samples.rows(judged), reward[judged]

    def _self_reward(self, unlabeled: KVBatchMeta, metrics: dict) -> tuple[KVBatchMeta, dict[str, float] | None]:
        """Rewards by row key that the answers alone decide; of TTRL's voters, only those to train on are kept."""
        kind, samples = self.settings.kind, Samples(unlabeled)
        if kind.reward == "random":
            reward = random_signal(len(samples), self.settings.unlabeled.seed, self.global_steps)
            return unlabeled, dict(zip(unlabeled.keys, reward.tolist(), strict=True))
        if kind.reward not in ("majority", "cluster"):
            return unlabeled, None
        infos = self._reward_info(samples)
        answers = [info["pred"] or None for info in infos]
        if kind.reward == "cluster":
            styles = [info["style"] for info in infos]
            reward, measured = cluster_signal(answers, samples.prompts, styles, self.settings.verifier.timeout)
        else:
            reward, measured = majority_signal(answers, samples.prompts)
            kept = samples.rows(first_samples(samples.prompts, self.settings.ttrl.n_train))
            self._clear_except(samples, kept)
            unlabeled = kept.meta
        metrics.update(prefixed("tempo/unlabeled", measured))
        return unlabeled, dict(zip(samples.meta.keys, reward.tolist(), strict=True))

    def _labeled_step(self, labeled: Samples, plan, metrics: dict, timing_raw: dict) -> Samples:
        """PPO on D_L: with gamma = lambda = 1, GAE is c(x, y) - V(x, y_1:t-1) and every return is c(x, y). Or GRPO."""
        outcome, values = self._outcome(labeled), None
        if self.use_critic:
            values = self._values(labeled)
            self._measure_critic(labeled, values, outcome, metrics)
            with marked_timer("update_critic", timing_raw):
                self._fit_critic(labeled, outcome, metrics)
        else:
            metrics["tempo/labeled/accuracy"] = outcome[torch.from_numpy(labeled.real)].mean().item()
        self._store_advantage(labeled, values, outcome + self._shaping(labeled, metrics))
        if plan.improve:
            self._update_policy(labeled, metrics, timing_raw)
        return labeled

    # ------------------------------------------------------------------ the critic

    def _values(self, samples: Samples) -> torch.Tensor:
        """(B, T + 1) values V(x, y_1:t), t = 0..T, of the critic as it is now."""
        order = samples.order(NOT_FOR_CRITIC, compute_loss=False, temperature=self._temperature)
        ray.get(self.critic_wg.infer_batch(order).futures)
        return final_values_of(samples.read("values")["values"].float(), samples.response_lengths)

    def _judgement(self, samples: Samples, values: torch.Tensor) -> torch.Tensor:
        """(B,) the final value that rewards, as P(right): ``official`` fits its critic to +1 and -1."""
        final = final_value(values, samples.response_mask, self.settings.final_value)
        return (1 + final) / 2 if self.settings.kind.reward == "official" else final

    def _outcome(self, samples: Samples) -> torch.Tensor:
        """(B,) c(x, y) in {0, 1} as the verifier found it. For labelled rows: a row without a verdict is an error."""
        return torch.tensor([float(info["acc"]) for info in self._reward_info(samples)])

    @staticmethod
    def _reward_info(samples: Samples) -> list[dict]:
        """What the reward manager told of each row: ``acc`` (rows with an answer), ``pred``, ``format``, ..."""
        return [extra["reward_extra_info"] for extra in samples.read_objects("extra_fields")]

    def _responses(self, samples: Samples) -> list[str]:
        """The text of each row's response."""
        token_ids = [ids.tolist() for ids in samples.read("responses")["responses"].unbind()]
        return self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)

    def _count_failed_verdicts(self, name: str, samples: Samples, metrics: dict) -> None:
        """A response that the verifier failed on counts as wrong; too many of them, and it is the verifier that is."""
        errors = [info.get("verifier_error", "") for info in self._reward_info(samples)]
        metrics.update(prefixed(f"tempo/{name}", verifier_metrics(errors)))
        failed = [error for error in errors if error]
        limit = self.settings.verifier.max_error_share
        if len(failed) > limit * len(errors):
            raise UserError(
                f"{len(failed)} of {len(errors)} {name} responses of round {self.global_steps} got no verdict, more "
                f"than tempo.verifier.max_error_share={limit:g} allows (first: {failed[0]}); mend the verifier, or "
                "raise tempo.verifier.timeout or the limit"
            )

    def _fit_critic(self, samples: Samples, outcome: torch.Tensor, metrics: dict) -> None:
        """Minimise the mean squared error between every V(x, y_1:t), t = 0..T, and c(x, y)."""
        samples.write(
            outcome=outcome.unsqueeze(-1),
            loss_mask=samples.unpadded(position_mask(samples.response_mask), extra=1),
        )
        if self.settings.calibration.replay.prompts:
            count = self.settings.calibration.replay.prompts * self.settings.labeled.n
            joined = self.replay.join(samples, count, self._critic_mini_batch, self.global_steps)
            metrics["tempo/labeled/replayed"] = float(len(joined) - len(samples))
            samples = self._balanced(joined, self._critic_mini_batch, metrics, "replay_seqlen")
        self._train_critic(samples, metrics)

    def _train_critic(self, samples: Samples, metrics: dict) -> None:
        """Updates in mini-batches, by the loss that was set for the method."""
        order = samples.order(
            NOT_FOR_CRITIC - self._critic_loss_reads,
            global_batch_size=self._critic_mini_batch,
            mini_batch_size=self._critic_mini_batch,
            epochs=self.settings.calibration.epochs,
            seed=self.config.critic.data_loader_seed + self.global_steps,
            dataloader_kwargs={"shuffle": True},
            temperature=self._temperature,
        )
        output = rename_dict(self.critic_wg.train_mini_batch(order).get()["metrics"], "critic/")
        output["perf/mfu/critic"] = output.pop("critic/mfu")
        metrics.update(reduce_metrics(output))

    @property
    def _temperature(self) -> float:
        return self.config.actor_rollout_ref.rollout.temperature

    @property
    def _critic_mini_batch(self) -> int:
        """Samples in one critic update."""
        return self.settings.calibration.mini_batch_size * self.settings.labeled.n

    # ------------------------------------------------------------------ the policy

    def _shaping(self, samples: Samples, metrics: dict) -> torch.Tensor:
        """(B,) penalties for the policy alone: neither the critic's target nor any accuracy knows of them."""
        shaping, limit = self.settings.shaping, self.config.data.max_response_length
        total = torch.zeros(len(samples))
        if not shaping.configured:
            return total
        lengths = samples.response_mask.sum(-1)
        formatted = torch.tensor([info["format"] for info in self._reward_info(samples)])
        for name, term in {
            "format": format_penalty(formatted, shaping.format_penalty),
            "overlong": overlong_penalty(lengths, limit, shaping.overlong_buffer, shaping.overlong_penalty),
            "length": length_penalty(lengths, limit, shaping.length_penalty),
        }.items():
            metrics[f"tempo/shaping/{name}"] = term[torch.from_numpy(samples.real)].mean().item()
            total += term
        return total

    def _store_advantage(self, samples: Samples, values: torch.Tensor | None, reward: torch.Tensor) -> torch.Tensor:
        """A_t = R - V(x, y_1:t-1), whitened over the round, or R against its group; where verl's losses read it."""
        mask = samples.response_mask
        if self.settings.advantage == "group":
            advantages = group_advantage(reward, samples.prompts, mask)
        else:
            advantages = advantage(values, reward, mask, whiten_advantage=self.settings.whiten)
        samples.write(
            advantages=samples.unpadded(advantages),
            returns=samples.unpadded(reward.unsqueeze(-1) * mask),
            rm_scores=samples.unpadded(self._at_the_end(samples, reward)),
            loss_mask=samples.unpadded(mask),
            **({} if values is None else {"values": samples.unpadded(values[:, :-1])}),
        )
        return advantages

    @staticmethod
    def _at_the_end(samples: Samples, reward: torch.Tensor) -> torch.Tensor:
        """(B, T) the reward on the last token, 0 elsewhere and on synthetic rows."""
        token_reward = torch.zeros(samples.response_mask.shape)
        last = torch.tensor(samples.response_lengths) - 1
        token_reward[torch.arange(len(samples)), last] = reward * torch.from_numpy(samples.real)
        return token_reward

    def _update_policy(self, samples: Samples, metrics: dict, timing_raw: dict) -> torch.Tensor | None:
        """verl's own actor update on the stored advantages. Returns the (B, T) entropy if it was computed."""
        with marked_timer("old_log_prob", timing_raw):
            self._compute_old_log_prob(samples.order(NOT_FOR_ACTOR), metrics=metrics)
        bypass = (self.config.algorithm.get("rollout_correction") or {}).get("bypass_mode", False)
        entropy = None if bypass else samples.read("entropy")["entropy"].to_padded_tensor(0.0)
        if self.use_reference_policy:
            with marked_timer("ref", timing_raw):
                self._compute_ref_log_prob(samples.order(NOT_FOR_ACTOR), metrics=metrics)
        with marked_timer("update_actor", timing_raw):
            self._update_actor(samples.order(NOT_FOR_ACTOR), metrics=metrics)
        return entropy

    @property
    def _actor_mini_batch(self) -> int:
        """Samples in one policy update."""
        return self.config.actor_rollout_ref.actor.ppo_mini_batch_size * self.config.actor_rollout_ref.rollout.n

    # ------------------------------------------------------------------ measuring

    def _measure_critic(self, samples: Samples, values: torch.Tensor, outcome: torch.Tensor, metrics: dict) -> None:
        score = self._judgement(samples, values).numpy()[samples.real]
        correct = outcome.numpy()[samples.real]
        metrics.update(labeled_metrics(score, correct))
        self._record |= {"labeled_value": score, "labeled_correct": correct}

    def _measure_policy(self, samples, rows, values, reward, advantages, entropy, metrics) -> None:
        infos = self._reward_info(samples)
        metrics.update(
            unlabeled_metrics(
                reward=reward[rows],
                first_baseline=None if values is None else values[rows, 0],
                advantages=advantages[rows],
                response_mask=samples.response_mask[rows],
                entropy=None if entropy is None else entropy[rows],
                answers=[infos[row]["pred"] or None for row in rows] if all("pred" in info for info in infos) else None,
                prompts=[samples.prompts[row] for row in rows],
            )
        )
        if entropy is None and "actor/entropy_loss" in metrics:  # bypass mode: as the update saw it, if it was asked to
            metrics["tempo/unlabeled/entropy"] = metrics["actor/entropy_loss"]
        if values is not None:
            self._record["unlabeled_values"] = values[rows].numpy()
        self._record |= {
            "unlabeled_reward": reward[rows].numpy(),
            "unlabeled_advantages": advantages[rows].numpy(),
            "unlabeled_mask": samples.response_mask[rows].numpy(),
        }

    def _monitor(self, samples: Samples, reward: torch.Tensor, metrics: dict) -> None:
        """The ``oracle/`` metrics: D_U's answers are looked at after the update, and by nothing but this."""
        if self.monitor is None:
            return
        correct = self.monitor.correct(samples.prompts, self._responses(samples))
        metrics.update(prefixed("tempo/oracle", oracle_metrics(reward.numpy(), correct)))
        if self.settings.kind.reward == "majority":
            metrics.update(prefixed("tempo/oracle", label_metrics(reward.numpy(), correct, samples.prompts)))

    def _dump(self, record: dict[str, np.ndarray]) -> None:
        if self.settings.dump_dir is not None:
            folder = Path(self.settings.dump_dir)
            folder.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(folder / f"round_{self.global_steps:06d}.npz", **record)

    def _val_metrics_update(
        self, data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts=None
    ) -> dict[str, float]:
        correct = reward_extra_infos_dict.get("acc") or reward_extra_infos_dict["reward"]
        answers = [answer or None for answer in reward_extra_infos_dict.get("pred") or [None] * len(correct)]
        errors = reward_extra_infos_dict.get("verifier_error") or []
        metrics = validation_metrics(data_sources, sample_uids, correct, answers, expected_acc_counts or {})
        if self.checkpoints.keeps_best:
            self._val_accuracy = validation_accuracy(metrics, self.judging_sources)
        return metrics | prefixed("val-aux", verifier_metrics(errors))

    # ------------------------------------------------------------------ checkpoints

    def fit(self, agent_loop_manager) -> None:
        super().fit(agent_loop_manager)
        self.checkpoints.finish()
        self._predict()

    def on_validate_end(self) -> None:
        """A round that is better than all before it has its checkpoint from here on, if not from its end."""
        super().on_validate_end()
        first, self._validated = not self._validated, True
        if first and self.config.trainer.val_before_train and self.global_steps and self.checkpoints.best():
            return  # a resumed round had its chance; more samples of the same weights would give it another
        if not (self.checkpoints.keeps_best and self.checkpoints.is_better(self.global_steps, self._val_accuracy)):
            return
        if not self.checkpoints.is_complete(self.global_steps):
            self.checkpoint_manager.sleep_replicas()  # the inference engine's memory is free whenever verl saves
            self._save_checkpoint()
            self.checkpoint_manager.update_weights(self.global_steps)
        self.checkpoints.set_best(Best(self.global_steps, self._val_accuracy, self.judging_sources))

    def _save_checkpoint(self) -> None:
        super()._save_checkpoint()
        self.checkpoints.prune()

    # ------------------------------------------------------------------ set-up and plumbing

    def _build_replay_buffer(self):
        # verl takes any trainer name but "sync" for an asynchronous one, in six places; this one rolls out in sync.
        self.trainer_mode = "sync"
        buffer = super()._build_replay_buffer()
        buffer.poll_interval = self.settings.poll_interval
        return buffer

    def _setup(self) -> None:
        super()._setup()
        if not self.use_critic:
            return
        self.replay = Replay(self.settings.calibration.replay.window, self.settings.labeled.seed)
        self._critic_loss_reads: frozenset[str] = frozenset()
        if self.settings.kind.reward == "official":
            self._critic_loss_reads = frozenset({"values", "returns"})
            loss = partial(official_value_loss, cliprange_value=self.config.critic.cliprange_value)
        else:
            loss = partial(value_calibration_loss, loss_agg_mode=self.settings.calibration.loss_agg_mode)
        self.critic_wg.set_loss_fn(loss)

    def _init_dataloader(self) -> None:
        """verl reads ``data.train_files`` (the stream the policy learns on) and the validation set; we make streams."""
        super()._init_dataloader()
        self.steps_per_epoch = max(1, self.steps_per_epoch)  # a batch may be larger than the set
        settings = self.settings

        self.monitor = None
        if settings.uses_unlabeled:
            labeled_rows = None
            if settings.labeled.files and (self.use_critic or settings.actor_on_labeled):
                labeled_rows = create_rl_dataset(
                    settings.labeled.files, self.config.data, self.tokenizer, self.processor
                )
            questions = WithoutAnswers(self.train_dataset)
            if settings.monitor_oracle:
                self.monitor = MonitorStore(questions.monitoring_answers())
            options = settings.unlabeled
            unlabeled = Stream(
                "unlabeled",
                self.train_dataset if settings.kind.reward == "verdict" else questions,
                options.batch_size,
                options.shuffle,
                options.seed,
                options.repeat,
                options.focus,
            )
        else:
            labeled_rows, unlabeled = self.train_dataset, None
        options = settings.labeled
        labeled = None
        if labeled_rows is not None:
            labeled = Stream("labeled", labeled_rows, options.batch_size, options.shuffle, options.seed)
        self.streams = Streams(labeled, unlabeled, Watch(settings.alarms, settings.calibration.gate))
        # From here on only answers-free rows are in reach of the policy update; verl saves and restores the streams.
        self.train_dataset = None
        self.train_dataloader = self.streams
        self._read_questions()

    def _submit(self, batch: dict, n: int | None = None) -> set[str]:
        """Send prompts to the agent loop, for n responses each (default: rollout.n). Returns their uids."""
        if n is not None:
            batch["__rollout_n__"] = [n] * len(batch["uid"])
        prompts = tu.get_tensordict(batch)
        tu.assign_non_tensor_data(prompts, "global_steps", self.global_steps)
        self._submit_batch_to_rollout(prompts)
        return set(batch["uid"])

    def _balanced(self, meta: KVBatchMeta, multiple: int, metrics: dict, prefix: str) -> Samples:
        """Spread rows evenly over the data-parallel ranks, in whole mini-batches (verl may add synthetic rows)."""
        if self.actor_rollout_wg.world_size == 1 and len(meta) % multiple == 0:
            return Samples(meta)  # verl would still weigh every row against every other
        self._phase_multiple = multiple
        return Samples(self._balance_batch(meta, metrics, logging_prefix=prefix))

    def _get_required_batch_multiple(self, dp_size: int) -> int:
        # Each phase has its own batch, so only its own mini-batch counts.
        return math.lcm(dp_size, self._phase_multiple)

    def _clear_except(self, samples: Samples, kept: Samples) -> None:
        rest = sorted(set(samples.meta.keys) - set(kept.meta.keys))
        if rest:
            Samples(samples.meta.select_keys(rest)).clear()
