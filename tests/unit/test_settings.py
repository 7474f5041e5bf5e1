# SPDX-License-Identifier: Apache-2.0
"""The ``tempo`` section: typed, checked, and turned into a schedule."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from tempo_verl.trainer.settings import CalibrationSettings, CheckpointSettings, Round, TempoSettings, plan_round

from tempo_verl.errors import UserError

BOTH, E_STEP, M_STEP = Round(True, True), Round(True, False), Round(False, True)


def section(**changes: Any) -> DictConfig:
    """A configuration with only a ``tempo`` section; dots in ``changes`` are written as ``__``."""
    config = OmegaConf.create({"tempo": {"method": "tempo", "labeled": {"files": "labeled.parquet"}}})
    for field, value in changes.items():
        OmegaConf.update(config.tempo, field.replace("__", "."), value)
    return config


def schedule(rounds: int, method: str = "tempo", **calibration: int) -> list[Round]:
    settings = TempoSettings(method=method, calibration=CalibrationSettings(**calibration))
    return [plan_round(settings, number) for number in range(1, rounds + 1)]


# ---------------------------------------------------------------------- fields


def test_the_defaults_are_those_of_the_paper_with_the_indices_put_right() -> None:
    settings = TempoSettings.from_config(section())
    assert settings.final_value == "after_last_token"
    assert settings.value_range == (0.0, 1.0)
    assert settings.whiten
    assert not settings.actor_on_labeled
    assert settings.calibration.interval == 1
    assert settings.calibration.warmup_rounds == 0


def test_the_shipped_file_has_every_field_with_the_same_default(compose) -> None:
    shipped = OmegaConf.to_container(compose().tempo, resolve=True)
    typed = OmegaConf.to_container(OmegaConf.structured(TempoSettings))

    def names(tree: dict[str, Any], prefix: str = "") -> set[str]:
        return set().union(
            *(names(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k} for k, v in tree.items())
        )

    assert names(shipped) == names(typed)
    for name in ("final_value", "value_range", "whiten", "actor_on_labeled", "monitor_oracle", "poll_interval"):
        assert shipped[name] == typed[name]


def test_values_are_converted_to_their_types() -> None:
    settings = TempoSettings.from_config(section(value_range=[-1, 1], calibration__lr="1e-3", unlabeled__shuffle="no"))
    assert settings.value_range == (-1.0, 1.0)
    assert settings.calibration.lr == 1e-3
    assert settings.unlabeled.shuffle is False


def test_every_checkpoint_is_kept_by_default() -> None:
    assert TempoSettings.from_config(section()).checkpoint == CheckpointSettings(keep="all", validation=None)


@pytest.mark.parametrize("validation", ["aime", ["aime", "math"]])
def test_one_or_several_data_sources_choose_the_best(validation: str | list[str]) -> None:
    settings = TempoSettings.from_config(section(checkpoint__keep="best", checkpoint__validation=validation))
    assert settings.checkpoint == CheckpointSettings(keep="best", validation=validation)


def test_the_value_range_can_be_turned_off() -> None:
    assert TempoSettings.from_config(section(value_range=None)).value_range is None


@pytest.mark.parametrize(("method", "uses"), [("tempo", True), ("ttrl", True), ("ppo", False), ("grpo", False)])
def test_which_methods_use_unlabeled_questions(method: str, uses: bool) -> None:
    assert TempoSettings.from_config(section(method=method)).uses_unlabeled is uses


def test_the_oracle_may_run_if_it_is_allowed_to() -> None:
    assert TempoSettings.from_config(section(method="oracle", allow_labels_on_unlabeled=True)).uses_unlabeled


@pytest.mark.parametrize(
    ("changes", "configured"),
    [
        ({}, False),
        ({"overlong_penalty": 2.0}, False),
        ({"overlong_buffer": 10}, True),
        ({"format_penalty": 0.1}, True),
        ({"length_penalty": 0.1}, True),
    ],
)
def test_shaping_is_off_until_it_is_configured(changes: dict[str, float], configured: bool) -> None:
    settings = TempoSettings.from_config(section(**{f"shaping.{name}": value for name, value in changes.items()}))
    assert settings.shaping.configured is configured


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("method", "foo", "tempo.method=foo is unknown; choose one of tempo, frozen_critic, ttrl"),
        ("method", "???", "tempo.method"),
        ("final_value", "last", "tempo.final_value=last is unknown; choose one of after_last_token, before_last_token"),
        ("calibration.loss_agg_mode", "sum", "choose one of token-mean, seq-mean-token-mean"),
        ("rounds", 0, "tempo.rounds=0 must be at least 1"),
        ("labeled.batch_size", 0, "tempo.labeled.batch_size=0 must be at least 1"),
        ("labeled.n", -1, "tempo.labeled.n=-1 must be at least 1"),
        ("unlabeled.batch_size", 0, "tempo.unlabeled.batch_size=0 must be at least 1"),
        ("unlabeled.repeat", 0, "tempo.unlabeled.repeat=0 must be at least 1"),
        ("unlabeled.focus", -0.1, "tempo.unlabeled.focus=-0.1 must be at least 0"),
        ("predictions.n", 0, "tempo.predictions.n=0 must be at least 1"),
        ("predictions.labeled", -1, "tempo.predictions.labeled=-1 must be at least 0"),
        ("predictions.labeled", 19, "tempo.predictions.labeled=19: no probability is calibrated on fewer than 20"),
        ("predictions.n", "all", "tempo.predictions.n: Value 'all'"),
        ("unlabeled.focus", 1, "tempo.unlabeled.focus=1.0 must be less than 1"),
        ("shaping.overlong_buffer", -1, "tempo.shaping.overlong_buffer=-1 must be at least 0"),
        ("verifier.timeout", 0, "tempo.verifier.timeout=0.0 must be more than 0 seconds"),
        ("verifier.max_error_share", -1, "tempo.verifier.max_error_share=-1.0 must be at least 0"),
        ("method", "oracle", "set tempo.allow_labels_on_unlabeled=true if that is what you want"),
        ("calibration.interval", -1, "tempo.calibration.interval=-1 must be at least 0"),
        ("calibration.gate.window", 0, "tempo.calibration.gate.window=0 must be at least 1"),
        ("ttrl.n_votes", 8, "tempo.ttrl.n_votes=8 must be at least 32"),
        ("checkpoint.keep", "some", "tempo.checkpoint.keep=some is unknown; choose one of all, last, best, both"),
        ("checkpoint.every", 2, "tempo.checkpoint.every: Key 'every'"),
        ("advantage", "gae", "tempo.advantage=gae is unknown; choose one of baseline, group"),
        ("official.advantage", "gae", "tempo.official.advantage=gae is unknown; choose one of em_token, em"),
        ("alarms.stop", ["auroc", "rain"], "tempo.alarms.stop=rain is unknown; choose one of auroc, gap, entropy"),
        ("calibration.epochs", 0, "tempo.calibration.epochs=0 must be at least 1"),
        ("calibration.mini_batch_size", 0, "tempo.calibration.mini_batch_size=0 must be at least 1"),
        ("calibration.warmup_rounds", -1, "tempo.calibration.warmup_rounds=-1 must be at least 0"),
        ("value_range", [1, 0], "tempo.value_range=[1.0, 0.0] must be [low, high] with low < high, or null"),
        ("value_range", [0.5, 0.5], "low < high"),
        ("value_range", [0.5], "tempo.value_range=[0.5] must be [low, high]"),
        ("value_range", [0, 1, 2], "tempo.value_range=[0.0, 1.0, 2.0] must be [low, high]"),
        ("value_range", "wide", "tempo.value_range"),
        ("rounds", "many", "tempo.rounds: Value 'many'"),
        ("labeled.n", 2.5, "tempo.labeled.n: Value '2.5'"),
        ("whiten", "perhaps", "tempo.whiten: Value 'perhaps'"),
        ("colour", "red", "tempo.colour: Key 'colour'"),
        ("calibration.speed", 1, "tempo.calibration.speed: Key 'speed'"),
    ],
)
def test_a_mistake_is_named_in_one_line(field: str, value: Any, told: str) -> None:
    with pytest.raises(UserError) as caught:
        TempoSettings.from_config(section(**{field: value}))
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# ---------------------------------------------------------------------- schedule


def test_every_round_does_both_steps_by_default() -> None:
    assert schedule(3) == [BOTH, BOTH, BOTH]


def test_an_interval_starts_with_the_first_round() -> None:
    assert schedule(7, interval=3) == [BOTH, M_STEP, M_STEP, BOTH, M_STEP, M_STEP, BOTH]


def test_the_critic_alone_is_trained_in_the_warm_up() -> None:
    assert schedule(4, warmup_rounds=2) == [E_STEP, E_STEP, BOTH, BOTH]


def test_the_warm_up_calibrates_in_every_round_and_does_not_shift_the_interval() -> None:
    assert schedule(6, warmup_rounds=2, interval=3) == [E_STEP, E_STEP, M_STEP, BOTH, M_STEP, M_STEP]


def test_ppo_fits_its_critic_in_every_round() -> None:
    assert schedule(4, method="ppo", interval=3, warmup_rounds=1) == [E_STEP, BOTH, BOTH, BOTH]


@given(st.integers(1, 20), st.integers(0, 20), st.sampled_from(["tempo", "ppo"]))
@hypothesis_settings(derandomize=True, deadline=None, max_examples=50)
def test_no_round_is_idle_and_no_policy_is_updated_before_a_calibration(
    interval: int, warmup: int, method: str
) -> None:
    plan = schedule(45, method=method, interval=interval, warmup_rounds=warmup)
    assert plan[0].label
    assert all(step.label or step.improve for step in plan)
    assert [step.improve for step in plan] == [number > warmup for number in range(1, 46)]
    if method == "tempo":
        after = [number for number in range(warmup + 1, 46) if plan[number - 1].label]
        assert after == [number for number in range(warmup + 1, 46) if number % interval == 1 % interval]


def test_labeled_questions_are_rolled_out_for_what_needs_them() -> None:
    def labels(method: str, interval: int) -> list[bool]:
        settings = TempoSettings(method=method, calibration=CalibrationSettings(interval=interval))
        return [plan_round(settings, number).label for number in (1, 2, 3)]

    assert labels("frozen_critic", 0) == [False, False, False]
    assert labels("frozen_critic", 2) == [True, False, True]
    assert labels("grpo", 0) == labels("official", 2) == [True, True, True]


def test_a_closed_gate_makes_an_e_step_of_every_round() -> None:
    settings = TempoSettings(method="tempo", calibration=CalibrationSettings(interval=5))
    assert plan_round(settings, 2, gate_open=False) == E_STEP
    assert plan_round(settings, 2, gate_open=True) == M_STEP


@pytest.mark.parametrize("method", ["ttrl", "official", "ppo"])
def test_the_gate_is_for_rewards_of_a_measured_critic(method: str) -> None:
    with pytest.raises(UserError, match=r"gate.min_auroc=0.7: the gate is for rewards of a critic"):
        TempoSettings.from_config(section(method=method, calibration__gate__min_auroc=0.7))
    with pytest.raises(UserError, match="the gate is for rewards"):
        TempoSettings.from_config(
            section(method="frozen_critic", calibration__gate__min_auroc=0.7, calibration__interval=0)
        )


@pytest.mark.parametrize("method", ["frozen_critic", "ttrl", "official", "tempo"])
def test_replay_is_for_runs_with_e_steps(method: str) -> None:
    replay = {"calibration__replay__prompts": 64, "calibration__interval": 0}
    with pytest.raises(UserError, match=r"replay\.prompts=64 would have no effect"):
        TempoSettings.from_config(section(method=method, **replay))
    TempoSettings.from_config(section(method="tempo", **replay, calibration__warmup_rounds=2))
    TempoSettings.from_config(section(method="ppo", **replay))


def test_official_has_no_warm_up() -> None:
    with pytest.raises(UserError, match="warmup_rounds=2 would have no effect"):
        TempoSettings.from_config(section(method="official", calibration__warmup_rounds=2))
