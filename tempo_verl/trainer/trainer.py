# SPDX-License-Identifier: Apache-2.0
"""``trainer.v1.trainer_mode=tempo``: verl's synchronous trainer with a round of its own.

A round: roll out, let the method learn, then look at what happened. What a round learns from is in
``tempo_verl/methods``; the parts that it works with are in the other files of this folder. Only verl's worker-group API
is used, so FSDP or Megatron and vLLM or SGLang stay verl's business.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import torch
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.trainer.ppo.v1 import PPOTrainer, PPOTrainerColocateAsync, PPOTrainerSync, register_trainer
from verl.utils.debug import marked_timer

from tempo_verl.backends.cpu_platform import use_platform_for
from tempo_verl.backends.replica import TransformersReplica
from tempo_verl.compat import only_weights
from tempo_verl.config.ahead import PARTIAL
from tempo_verl.config.files import lacks_predictions, round_of
from tempo_verl.config.models import check_fetched
from tempo_verl.config.schema import read_settings
from tempo_verl.data.monitor import Monitor, verdicts
from tempo_verl.data.streams import Streams
from tempo_verl.methods import Method, Round
from tempo_verl.trainer.arrivals import Arrivals
from tempo_verl.trainer.batch import KVBatchMeta, clear
from tempo_verl.trainer.critic import Critic
from tempo_verl.trainer.keeper import Keeper
from tempo_verl.trainer.lifeguard import Lifeguard
from tempo_verl.trainer.log import Log, peak_memory
from tempo_verl.trainer.losses import LOSSES
from tempo_verl.trainer.metrics import measure_policy, validation_metrics
from tempo_verl.trainer.policy import Policy
from tempo_verl.trainer.port import Port, read_dataset
from tempo_verl.trainer.predictions import Predictions
from tempo_verl.trainer.replay import Replay
from tempo_verl.trainer.rollout import Rollout
from tempo_verl.trainer.status import Status
from tempo_verl.trainer.watch import Watch

logger = logging.getLogger(__name__)


@register_trainer("tempo")
class TempoTrainer(PPOTrainerSync):
    """Rounds of rollout, E-step and M-step, or whatever the method makes of them.

    Attributes:
        method: what a round learns from.
        streams: the prompts of D_L and D_U.
        monitor: looks at answers of D_U, after the update.
        status: tells other processes how far the run is and why it ended.
    """

    def __init__(self, config):
        use_platform_for(config.trainer.device)
        self.method: Method = read_settings(config)
        self.status = Status(self.method.settings.status_file)
        self.lifeguard = Lifeguard(self.status)
        with self.status.of_failure():
            self.keeper = Keeper.from_config(config, self.method)
            super().__init__(config)

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        """One round. Returns the rows whose metrics verl logs and which it then clears from the queue."""
        number, log = self.global_steps, Log(metrics, timing_raw)
        plan = self.method.plan(number, self.watch.gate_open)
        with log.time("gen"):
            labeled, unlabeled = self.rollout.draw(number, plan, log, last=number >= self.total_training_steps)
        critic = Critic(self.port, self.method, self.replay, number, log) if self.use_critic else None
        policy = Policy(self.port, self.method, log)
        checks = {}
        if unlabeled is not None:
            answered = unlabeled.by_session()
            checks = self.monitor.begin(answered.meta.keys, partial(self.port.reader, answered))

        trained = self.method.step(Round(number, plan, labeled, unlabeled, critic, policy, log))

        measure_policy(trained, self.port.computes_entropy, self.port.logs_mean_entropy, log)
        if trained.unlabeled is not None:
            learnt = trained.samples.rows(trained.unlabeled)
            rows = learnt.by_session()
            reward = rows.align(trained.samples, trained.reward)
            with log.time("monitor"):  # what is left to wait for
                correct = verdicts(checks, rows.meta.keys)
            log.metrics.update(self.monitor.metrics(correct, rows.prompts, reward.numpy()))
            log.arrays["unlabeled_correct"] = learnt.align(rows, torch.from_numpy(correct)).numpy()
            self.streams.unlabeled.observe(rows.prompts, reward.tolist())
        clear([labeled, unlabeled], but=trained.samples)
        log.finish(number, self.method.settings.dump_dir)
        log.metrics["tempo/memory/driver_gb"] = peak_memory()
        log.metrics.update(self.watch.observe(number, log.metrics))
        self._end_early()
        self.status.round(number, self.total_training_steps)
        return trained.samples.meta

    def _end_early(self) -> None:
        if self.watch.ends is not None and self.watch.ends < self.total_training_steps:
            self.total_training_steps = self.watch.ends
            logger.warning("the run ends with round %d: %s", self.watch.ends, self.watch.stop)
            self.status.ends_early(self.watch.stop)

    # ------------------------------------------------------------------ verl's hooks

    def init(self) -> None:
        with self.status.of_failure(self.lifeguard.explain), self.lifeguard:
            super().init()

    def fit(self, agent_loop_manager) -> None:
        with self.status.of_failure(self.lifeguard.explain), self.lifeguard:
            super().fit(agent_loop_manager)
            self._save_due()
            self.keeper.finish()
            self.predictions.write(self.port, self.global_steps)
        self.status.done()

    def _setup(self) -> None:
        super()._setup()
        self._assemble()

    def _assemble(self) -> None:
        """Hand each part what it needs."""
        settings, loss = self.method.settings, LOSSES[self.method.critic_loss]
        self.port = Port(self, loss.reads)
        self.rollout = Rollout(self.port, self.method, self.streams)
        self.replay = Replay(settings.calibration.replay.window, settings.labeled.seed)
        if self.resumed is not None:
            self.replay.load(self.resumed)
        if self.use_critic:
            self.critic_wg.set_loss_fn(loss.build(self.config))

    def _init_dataloader(self) -> None:
        """verl reads ``data.train_files`` (the stream the policy learns on) and the validation set; we make streams."""
        super()._init_dataloader()
        check_fetched(self.config, self.method, self.tokenizer)
        self.steps_per_epoch = max(1, self.steps_per_epoch)  # a batch may be larger than the set
        method, settings = self.method, self.method.settings
        other = None
        if method.needs.unlabeled and settings.labeled.files and method.draws_labeled(self.use_critic):
            other = read_dataset(settings.labeled.files, self)
        self.watch = Watch(settings.alarms, settings.calibration.gate, settings.guard)
        self.streams, answers = Streams.build(method, self.train_dataset, other, self.watch)
        verifier = settings.verifier
        self.monitor = Monitor(answers, method.labels_by_vote, verifier.timeout, verifier.read_unfinished)
        self.predictions = Predictions(self.config, method, self.streams, self.monitor.judge)
        # From here on only answers-free rows are in reach of the policy update; verl saves and restores the streams.
        self.train_dataset = None
        self.train_dataloader = self.streams

    @property
    def engine_hooks(self) -> type[PPOTrainer]:
        """verl's trainer whose hooks put the inference engine to sleep and wake it.

        ``PPOTrainerColocateAsync`` interrupts requests that are under way, and lets them go on after the update. Its
        hooks ask no more of a trainer than ``PPOTrainer`` has, so they are borrowed, not inherited.
        """
        ahead = self.method.settings.ahead
        return PPOTrainerColocateAsync if ahead.streams and ahead.mode == PARTIAL else PPOTrainerSync

    def get_llm_client(self):
        return self.engine_hooks.get_llm_client(self)

    def on_sample_end(self) -> None:
        self.engine_hooks.on_sample_end(self)

    def on_step_end(self) -> None:
        self.rollout.settle(self.timing_raw)
        self.engine_hooks.on_step_end(self)

    def _build_replay_buffer(self):
        # verl takes any trainer name but "sync" for an asynchronous one, in six places; this one rolls out in sync.
        self.trainer_mode = "sync"
        return Arrivals(self.method.settings.poll_interval, self.method.settings.rollout_timeout)

    def _val_metrics_update(
        self, data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts=None
    ) -> dict[str, float]:
        metrics = validation_metrics(
            data_sources,
            sample_uids,
            reward_extra_infos_dict,
            expected_acc_counts or {},
            self.method.settings.verifier.timeout,
        )
        self.keeper.validated(metrics)
        return metrics

    def on_validate_begin(self) -> None:
        super().on_validate_begin()
        self._tell_validation(True)

    def on_validate_end(self) -> None:
        """A round that is better than all before it is to be saved, if it is not anyway."""
        super().on_validate_end()
        self._tell_validation(False)
        self.keeper.judge(self.global_steps)

    def _tell_validation(self, on: bool) -> None:
        for replica in self.llm_server_manager.get_replicas():
            if isinstance(replica, TransformersReplica):
                replica.validate(on)

    def _save_checkpoint(self) -> None:
        """verl asks for it within a round; it is written when the round is over, validated and logged."""
        self.keeper.due = True

    def on_train_begin(self) -> None:
        """The policy that the run starts with answers D_U, as in a validation with random numbers of its own."""
        super().on_train_begin()
        self._tell_validation(True)
        for line in self.predictions.before(self.port, self.global_steps):
            logger.warning(line)
            self.status.notice(line)
        self._tell_validation(False)

    def on_step_begin(self) -> None:
        super().on_step_begin()
        with marked_timer("save_checkpoint", self.timing_raw):
            self._save_due()

    def _save_due(self) -> None:
        number = self.global_steps - 1
        folder = self.keeper.save(number, self._save)
        if folder is not None:
            self.checkpoint_callback.on_save(
                trainer=self, global_step=number, checkpoint_dir=str(folder), async_save=False
            )

    def _save(self, folder: Path) -> None:
        """Write all that a run goes on from, between two rounds: the inference engine is up, and has to make room."""
        number = self.global_steps
        self.checkpoint_manager.sleep_replicas()
        self.global_steps = round_of(folder)  # verl names the folder by it
        callback, self.checkpoint_callback = self.checkpoint_callback, CheckpointCallback()  # ours to call, at the end
        super()._save_checkpoint()
        self.global_steps, self.checkpoint_callback = number, callback
        with only_weights():
            torch.load(folder / "data.pt", weights_only=True)  # what cannot be read again is no checkpoint
        self.replay.save(folder)
        self.checkpoint_manager.update_weights(number - 1)

    def _load_checkpoint(self) -> None:
        self.resumed, told = self.keeper.settle(self.config)
        for line in told:
            logger.warning(line)
            self.status.notice(line)
        with only_weights():
            super()._load_checkpoint()
        if self.resumed is not None and self.config.trainer.resume_mode == "auto" and not self.config.trainer.val_only:
            self.config.trainer.val_before_train = False  # these weights were validated when they were new
        if self.resumed is None or not lacks_predictions(self.method, self.resumed):
            self.watch.go_on(self.global_steps)
        self._end_early()
