# SPDX-License-Identifier: Apache-2.0
"""The ``tempo`` section: types and limits of its fields, and what has to hold between them.

The defaults, and what each field means, are in ``tempo_trainer.yaml`` and ``method/*.yaml``, and nowhere else.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tempo_verl.algo.calibration import FEWEST_LABELED
from tempo_verl.errors import UserError

Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0)]
Files = str | list[str] | None


class Section(BaseModel):
    """Fields without defaults: the YAML holds them."""

    model_config = ConfigDict(extra="forbid")


class Resume(Section):
    allow_changes: bool


class Labeled(Section):
    files: Files
    batch_size: Count
    n: Count
    shuffle: bool
    seed: int


class Unlabeled(Section):
    files: Files
    batch_size: Count
    repeat: Count
    focus: Annotated[float, Field(ge=0, lt=1)]
    shuffle: bool
    seed: int


class Replay(Section):
    prompts: CountOrNone
    window: Count


class Gate(Section):
    min_auroc: float | None
    window: Count
    max_closed: Count


class Ahead(Section):
    streams: list[Literal["labeled", "unlabeled"]]
    mode: Literal["partial", "overlap"]


class Calibration(Section):
    interval: CountOrNone
    epochs: Count
    lr: Annotated[float, Field(ge=0)]
    mini_batch_size: Count
    warmup_rounds: CountOrNone
    loss_agg_mode: Literal["token-mean", "seq-mean-token-mean"]
    replay: Replay
    gate: Gate

    @model_validator(mode="after")
    def _whole_updates(self) -> Calibration:
        if self.replay.prompts % self.mini_batch_size:
            raise ValueError(
                f"tempo.calibration.replay.prompts={self.replay.prompts} must be a multiple of "
                f"tempo.calibration.mini_batch_size={self.mini_batch_size}, the prompts of a critic update"
            )
        return self


class Shaping(Section):
    format_penalty: float
    overlong_buffer: CountOrNone
    overlong_penalty: float
    length_penalty: float

    @property
    def configured(self) -> bool:
        """Whether any penalty is on."""
        return bool(self.format_penalty or self.length_penalty or (self.overlong_buffer and self.overlong_penalty))


class Verifier(Section):
    timeout: Annotated[float, Field(gt=0)]
    read_unfinished: bool
    max_error_share: Share
    allow: list[str]


class Alarms(Section):
    window: Count
    min_auroc: float | None
    max_gap: float | None
    min_entropy: float | None
    min_diversity: float | None
    max_length: float | None
    stop: list[Literal["auroc", "gap", "entropy", "diversity", "length"]]


class Guard(Section):
    max_missing_share: Share
    max_skipped_rounds: Count
    check_frozen: bool


class Checkpoint(Section):
    keep: Literal["all", "last", "best", "both"]
    hashes: bool
    validation: str | list[str] | None


class Predictions(Section):
    file: str | None
    n: Count
    labeled: CountOrNone
    aside: Annotated[float, Field(ge=0, lt=1)]
    before: int | Literal["equal"] | None

    @field_validator("before", mode="before")
    @classmethod
    def _number_or_equal(cls, before: Any) -> Any:
        whole = isinstance(before, int) and not isinstance(before, bool) and before >= 0
        if not (whole or before in ("equal", None)):
            raise ValueError(
                f"tempo.predictions.before={before} must be a whole number, 0 or more, or equal: as many samples a "
                "question as the whole run draws"
            )
        return before

    @field_validator("labeled")
    @classmethod
    def _enough(cls, labeled: int) -> int:
        if 0 < labeled < FEWEST_LABELED:
            raise ValueError(
                f"tempo.predictions.labeled={labeled}: no probability is calibrated on fewer than {FEWEST_LABELED} "
                "questions; raise it, or set it to 0"
            )
        return labeled


class TempoSettings(Section):
    """The whole section. ``options`` are those of the method, from ``tempo.<its name>``."""

    method: str
    rounds: Count
    start_from: str | None
    start_checkpoint: Literal["last", "best"]
    resume: Resume
    labeled: Labeled
    unlabeled: Unlabeled
    ahead: Ahead
    calibration: Calibration
    final_value: Literal["after_last_token", "before_last_token"]
    value_range: tuple[float, float] | None
    whiten: bool
    advantage: Literal["baseline", "group"]
    actor_on_labeled: bool
    shaping: Shaping
    verifier: Verifier
    alarms: Alarms
    predictions: Predictions
    checkpoint: Checkpoint
    guard: Guard
    allow_labels_on_unlabeled: bool
    monitor_oracle: bool
    dump_dir: str | None
    status_file: str | None
    poll_interval: Annotated[float, Field(gt=0)]
    rollout_timeout: Annotated[float, Field(gt=0)] | None

    @field_validator("value_range", mode="before")
    @classmethod
    def _low_before_high(cls, limits: Any) -> Any:
        if limits is not None and not (
            isinstance(limits, list | tuple)
            and len(limits) == 2
            and all(isinstance(limit, int | float) for limit in limits)
            and limits[0] < limits[1]
        ):
            raise ValueError(f"tempo.value_range={limits} must be [low, high] with low < high, or null")
        return limits


def read_settings(config: DictConfig):
    """Read and check ``config.tempo``.

    Returns:
        The method, an instance of :class:`tempo_verl.methods.Method`, with its settings and options.

    Raises:
        UserError: an unknown method or field, a wrong type or a value out of range, in one line.
    """
    from tempo_verl.methods import find

    try:
        method = find(str(config.tempo.method))  # first, as other fields may follow from it
        section = OmegaConf.to_container(config.tempo, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = error.full_key or "tempo"
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from error
    if method.name in TempoSettings.model_fields:
        raise UserError(
            f"tempo.method={section['method']}: its name, {method.name}, is a field of tempo; choose another"
        )
    options = section.pop(method.name, None) or {}
    settings = validated(TempoSettings, section, "tempo")
    return method(settings, validated(method.Options, options, f"tempo.{method.name}"))


def validated(model: type[BaseModel], values: Mapping[str, Any], where: str) -> Any:
    """``model`` filled with ``values``.

    Raises:
        UserError: the first mistake: field, value, and what it has to be.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(_told(error.errors()[0], model, where)) from error


def _told(error: Mapping[str, Any], model: type[BaseModel], where: str) -> str:
    from tempo_verl.methods import known

    field = ".".join([where, *(str(part) for part in error["loc"] if isinstance(part, str))])
    given, kind, context = error["input"], error["type"], error.get("ctx") or {}
    if kind == "value_error":
        return str(context["error"])
    if kind == "missing":
        return f"{field} is not set"
    if kind == "extra_forbidden":
        if where == "tempo" and error["loc"][0] in known():
            return f"{field} is for method={error['loc'][0]} only; leave it out, or choose that method"
        return f"{field} is no field of this run{_nearest(error['loc'], model, where)}"
    limits = {
        "greater_than_equal": "at least {ge:g}",
        "greater_than": "more than {gt:g}",
        "less_than": "less than {lt:g}",
    }
    if kind in limits:
        return f"{field}={given} must be {limits[kind].format(**context)}"
    if kind == "literal_error":
        choices = str(context["expected"]).replace("'", "").replace(" or ", ", ")
        return f"{field}={given} is unknown; choose one of {choices}"
    return f"{field}={given!r} does not fit: {error['msg'][0].lower()}{error['msg'][1:]}"


def _nearest(location: tuple[str | int, ...], model: type[BaseModel], where: str) -> str:
    """The field that was probably meant, in words."""
    for part in location[:-1]:
        model = model.model_fields[str(part)].annotation  # type: ignore[assignment]
    close = difflib.get_close_matches(str(location[-1]), model.model_fields, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {'.'.join([where, *map(str, location[:-1]), close[0]])}?"
    return f"; there are {', '.join(model.model_fields)}" if model.model_fields else "; it has none"
