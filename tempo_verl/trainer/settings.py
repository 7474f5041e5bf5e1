# SPDX-License-Identifier: Apache-2.0
"""The ``tempo`` section of the configuration, typed. The comments for users are in ``config/tempo_trainer.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tempo_verl.algo.calibration import FEWEST_LABELED
from tempo_verl.errors import UserError
from tempo_verl.trainer.checkpoints import KEEP
from tempo_verl.trainer.methods import METHODS, Method

ALARM_NAMES = ("auroc", "gap", "entropy", "diversity", "length")
ADVANTAGES = ("baseline", "group")
OFFICIAL_ADVANTAGES = ("em_token", "em")
FINAL_VALUES = ("after_last_token", "before_last_token")


@dataclass
class LabeledSettings:
    files: Any = None
    batch_size: int = 32
    n: int = 8
    shuffle: bool = True
    seed: int = 1


@dataclass
class UnlabeledSettings:
    files: Any = None
    batch_size: int = 32
    repeat: int = 1
    focus: float = 0.0
    shuffle: bool = True
    seed: int = 2


@dataclass
class GateSettings:
    min_auroc: float | None = None
    window: int = 3
    max_closed: int = 20


@dataclass
class AlarmSettings:
    window: int = 3
    min_auroc: float | None = 0.6
    max_gap: float | None = 0.3
    min_entropy: float | None = 0.3
    min_diversity: float | None = 0.5
    max_length: float | None = 2.0
    stop: list[str] = field(default_factory=list)


@dataclass
class ReplaySettings:
    prompts: int = 0
    window: int = 20


@dataclass
class CalibrationSettings:
    interval: int = 1
    epochs: int = 1
    lr: float = 1e-6
    mini_batch_size: int = 32
    warmup_rounds: int = 0
    loss_agg_mode: str = "token-mean"
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    gate: GateSettings = field(default_factory=GateSettings)


@dataclass
class TTRLSettings:
    n_votes: int = 64
    n_train: int = 32


@dataclass
class OfficialSettings:
    advantage: str = "em_token"
    filter_groups: bool = True


@dataclass
class ShapingSettings:
    format_penalty: float = 0.0
    overlong_buffer: int = 0
    overlong_penalty: float = 1.0
    length_penalty: float = 0.0

    @property
    def configured(self) -> bool:
        """Whether any penalty is on."""
        return bool(self.format_penalty or self.length_penalty or (self.overlong_buffer and self.overlong_penalty))


@dataclass
class VerifierSettings:
    timeout: float = 10.0
    max_error_share: float = 0.2


@dataclass
class CheckpointSettings:
    keep: str = "all"
    validation: Any = None


@dataclass
class PredictionSettings:
    file: str | None = None
    n: int = 16
    labeled: int = 128


@dataclass
class TempoSettings:
    """See ``config/tempo_trainer.yaml`` for the meaning of every field."""

    method: str = MISSING
    rounds: int = 100
    labeled: LabeledSettings = field(default_factory=LabeledSettings)
    unlabeled: UnlabeledSettings = field(default_factory=UnlabeledSettings)
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    final_value: str = "after_last_token"
    value_range: tuple[float, float] | None = (0.0, 1.0)
    whiten: bool = True
    advantage: str = "baseline"
    actor_on_labeled: bool = False
    ttrl: TTRLSettings = field(default_factory=TTRLSettings)
    official: OfficialSettings = field(default_factory=OfficialSettings)
    shaping: ShapingSettings = field(default_factory=ShapingSettings)
    verifier: VerifierSettings = field(default_factory=VerifierSettings)
    alarms: AlarmSettings = field(default_factory=AlarmSettings)
    predictions: PredictionSettings = field(default_factory=PredictionSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    allow_labels_on_unlabeled: bool = False
    monitor_oracle: bool = True
    dump_dir: str | None = None
    poll_interval: float = 0.05

    @classmethod
    def from_config(cls, config: DictConfig) -> TempoSettings:
        """Read and check ``config.tempo``.

        Raises:
            UserError: an unknown field, a wrong type or a value out of range, named in one line.
        """
        try:
            section = OmegaConf.create(OmegaConf.to_container(config.tempo, resolve=True))
            settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), section))
        except OmegaConfBaseException as error:
            key = str(error.full_key or "").removeprefix("tempo.")
            raise UserError(
                f"tempo.{key}: {str(error).splitlines()[0]}; the fields and their types are in "
                "tempo_verl/config/tempo_trainer.yaml"
            ) from error
        settings._check()
        if settings.value_range is not None:
            settings.value_range = tuple(settings.value_range)  # OmegaConf makes it a list
        return settings

    def _check(self) -> None:
        calibration = self.calibration
        for name, value, least in (
            ("rounds", self.rounds, 1),
            ("labeled.batch_size", self.labeled.batch_size, 1),
            ("labeled.n", self.labeled.n, 1),
            ("unlabeled.batch_size", self.unlabeled.batch_size, 1),
            ("unlabeled.repeat", self.unlabeled.repeat, 1),
            ("unlabeled.focus", self.unlabeled.focus, 0),
            ("shaping.overlong_buffer", self.shaping.overlong_buffer, 0),
            ("verifier.max_error_share", self.verifier.max_error_share, 0),
            ("calibration.interval", calibration.interval, 0),
            ("calibration.epochs", calibration.epochs, 1),
            ("calibration.mini_batch_size", calibration.mini_batch_size, 1),
            ("calibration.warmup_rounds", calibration.warmup_rounds, 0),
            ("calibration.replay.prompts", calibration.replay.prompts, 0),
            ("calibration.replay.window", calibration.replay.window, 1),
            ("calibration.gate.window", calibration.gate.window, 1),
            ("calibration.gate.max_closed", calibration.gate.max_closed, 1),
            ("alarms.window", self.alarms.window, 1),
            ("predictions.n", self.predictions.n, 1),
            ("predictions.labeled", self.predictions.labeled, 0),
            ("ttrl.n_train", self.ttrl.n_train, 1),
            ("ttrl.n_votes", self.ttrl.n_votes, self.ttrl.n_train),
        ):
            if value < least:
                raise UserError(f"tempo.{name}={value} must be at least {least}")
        if 0 < self.predictions.labeled < FEWEST_LABELED:
            raise UserError(
                f"tempo.predictions.labeled={self.predictions.labeled}: no probability is calibrated on fewer than "
                f"{FEWEST_LABELED} questions; raise it, or set it to 0"
            )
        for name, value, known in (
            ("method", self.method, METHODS),
            ("advantage", self.advantage, ADVANTAGES),
            ("official.advantage", self.official.advantage, OFFICIAL_ADVANTAGES),
            ("final_value", self.final_value, FINAL_VALUES),
            ("checkpoint.keep", self.checkpoint.keep, KEEP),
            ("calibration.loss_agg_mode", calibration.loss_agg_mode, ("token-mean", "seq-mean-token-mean")),
            *(("alarms.stop", name, ALARM_NAMES) for name in self.alarms.stop),
        ):
            if value not in known:
                raise UserError(f"tempo.{name}={value} is unknown; choose one of {', '.join(known)}")
        if self.unlabeled.focus >= 1:
            raise UserError(
                f"tempo.unlabeled.focus={self.unlabeled.focus} must be less than 1: every question keeps some chance"
            )
        if self.verifier.timeout <= 0:
            raise UserError(f"tempo.verifier.timeout={self.verifier.timeout} must be more than 0 seconds")
        if self.method == "oracle" and not self.allow_labels_on_unlabeled:
            raise UserError(
                "method=oracle trains on the answers of D_U, an upper bound and no test-time training; "
                "set tempo.allow_labels_on_unlabeled=true if that is what you want"
            )
        if calibration.gate.min_auroc is not None and not (self.kind.reward == "value" and calibration.interval):
            raise UserError(
                f"tempo.calibration.gate.min_auroc={calibration.gate.min_auroc}: the gate is for rewards of a critic "
                "whose AUROC on D_L is measured (tempo, or frozen_critic with calibration.interval); set it to null"
            )
        replayed = calibration.replay.prompts
        fits = self.kind.fits_critic and self.kind.reward != "official"
        ever = self.kind.learns_on == "labeled" or calibration.interval or calibration.warmup_rounds
        if replayed and not (fits and (ever or calibration.gate.min_auroc is not None)):
            raise UserError(
                f"tempo.calibration.replay.prompts={replayed} would have no effect: this run (method={self.method}, "
                f"tempo.calibration.interval={calibration.interval}) has no E-step that could replay; leave it at 0"
            )
        if replayed % calibration.mini_batch_size:
            raise UserError(
                f"tempo.calibration.replay.prompts={replayed} must be a multiple of "
                f"tempo.calibration.mini_batch_size={calibration.mini_batch_size}, the prompts of a critic update"
            )
        if self.kind.reward == "official" and calibration.warmup_rounds:
            raise UserError(
                f"tempo.calibration.warmup_rounds={calibration.warmup_rounds} would have no effect: method=official "
                "has no warm-up; leave it at 0"
            )
        limits = self.value_range
        if limits is not None and not (len(limits) == 2 and limits[0] < limits[1]):
            raise UserError(f"tempo.value_range={list(limits)} must be [low, high] with low < high, or null")

    @property
    def kind(self) -> Method:
        """What the method is rewarded for, and what it needs."""
        return METHODS[self.method]

    @property
    def uses_unlabeled(self) -> bool:
        """Whether the method rolls out D_U."""
        return self.kind.learns_on == "unlabeled"


@dataclass(frozen=True)
class Round:
    """What one round does.

    Attributes:
        label: roll out D_L: to fit the critic, to measure a frozen one, or to train the policy on.
        improve: update the policy.
    """

    label: bool
    improve: bool


def plan_round(settings: TempoSettings, number: int, gate_open: bool = True) -> Round:
    """The schedule: D_L every ``interval`` rounds (0: never), M-step in every round after ``warmup_rounds``.

    Args:
        number: round, counted from 1.
        gate_open: False turns the M-step into another E-step.
    """
    calibration = settings.calibration
    warming_up = number <= calibration.warmup_rounds
    due = calibration.interval > 0 and (number - 1) % calibration.interval == 0
    always = settings.kind.learns_on == "labeled" or settings.kind.reward == "official"
    return Round(label=always or warming_up or due or not gate_open, improve=gate_open and not warming_up)
