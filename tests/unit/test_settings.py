# SPDX-License-Identifier: Apache-2.0
"""The ``tempo`` section: typed, checked, and turned into a schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fields import CONFIG, method_of, section
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tempo_verl.config.schema import read_settings
from tempo_verl.errors import UserError
from tempo_verl.methods import Plan, known

BOTH, E_STEP, M_STEP = Plan(True, True), Plan(True, False), Plan(False, True)


def schedule(rounds: int, method: str = "tempo", **calibration: int) -> list[Plan]:
    planning = method_of(method, **{f"calibration__{name}": value for name, value in calibration.items()})
    return [planning.plan(number) for number in range(1, rounds + 1)]


# ---------------------------------------------------------------------- fields


def test_the_defaults_are_those_of_the_paper_with_the_indices_put_right() -> None:
    settings = method_of().settings
    assert settings.final_value == "after_last_token"
    assert settings.value_range == (0.0, 1.0)
    assert settings.whiten
    assert not settings.actor_on_labeled
    assert settings.calibration.interval == 1
    assert settings.calibration.warmup_rounds == 0


def test_defaults_stand_in_the_yaml_alone() -> None:
    """No field of the section has a default in Python, and each is in the file."""
    from pydantic import BaseModel

    from tempo_verl.config.schema import TempoSettings

    def fields(model: type[BaseModel], prefix: str = "") -> set[str]:
        names = set()
        for name, field in model.model_fields.items():
            assert field.is_required(), f"{prefix}{name} has a default in Python"
            of = field.annotation
            names |= (
                fields(of, f"{prefix}{name}.")
                if isinstance(of, type) and issubclass(of, BaseModel)
                else {prefix + name}
            )
        return names

    def shipped(tree: dict[str, Any], prefix: str = "") -> set[str]:
        return set().union(
            *(shipped(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k} for k, v in tree.items())
        )

    base = OmegaConf.to_container(OmegaConf.load(CONFIG / "tempo_trainer.yaml").tempo)
    assert shipped(base) == fields(TempoSettings)
    for name, method in known().items():
        own = OmegaConf.to_container(OmegaConf.load(CONFIG / "method" / f"{name}.yaml").tempo).get(name, {})
        assert shipped(own) == fields(method.Options)


def test_values_are_converted_to_their_types() -> None:
    settings = method_of(value_range=[-1, 1], calibration__lr="1e-3", unlabeled__shuffle="no").settings
    assert settings.value_range == (-1.0, 1.0)
    assert settings.calibration.lr == 1e-3
    assert settings.unlabeled.shuffle is False


def test_every_checkpoint_is_kept_by_default() -> None:
    assert method_of().settings.checkpoint.model_dump() == {"keep": "all", "hashes": True, "validation": None}


@pytest.mark.parametrize("validation", ["aime", ["aime", "math"]])
def test_one_or_several_data_sources_choose_the_best(validation: str | list[str]) -> None:
    settings = method_of(checkpoint__keep="best", checkpoint__validation=validation).settings
    assert settings.checkpoint.model_dump() == {"keep": "best", "hashes": True, "validation": validation}


def test_the_value_range_can_be_turned_off() -> None:
    assert method_of(value_range=None).settings.value_range is None


@pytest.mark.parametrize(
    ("method", "stream"), [("tempo", "unlabeled"), ("ttrl", "unlabeled"), ("ppo", "labeled"), ("grpo", "labeled")]
)
def test_which_stream_a_method_learns_on(method: str, stream: str) -> None:
    assert method_of(method).learns_on() == stream


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
    settings = method_of(**{f"shaping.{name}": value for name, value in changes.items()}).settings
    assert settings.shaping.configured is configured


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("method", "foo", "tempo.method=foo is unknown; choose one of tempo, empo, frozen_critic"),
        ("method", "???", "tempo.method: Missing mandatory value"),
        ("method", "no_such_module:Mine", "tempo.method=no_such_module:Mine cannot be imported (No module named"),
        (
            "method",
            "fields:Mine",
            "tempo.method=fields:Mine cannot be imported (module 'fields' has no attribute 'Mine'",
        ),
        ("method", "fields:section", "is not a class derived from tempo_verl.methods.Method"),
        ("method", "tempo_verl.methods.base:Method", "lacks name, title, needs"),
        ("start_checkpoint", "first", "tempo.start_checkpoint=first is unknown; choose one of last, best"),
        ("calibration.lr", -1e-6, "tempo.calibration.lr=-1e-06 must be at least 0"),
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
        ("predictions.n", "all", "tempo.predictions.n='all' does not fit: input should be a valid integer"),
        ("predictions.before", -1, "tempo.predictions.before=-1 must be a whole number, 0 or more, or equal"),
        ("predictions.before", "all", "tempo.predictions.before=all must be a whole number, 0 or more, or equal"),
        ("predictions.before", True, "tempo.predictions.before=True must be a whole number, 0 or more, or equal"),
        ("unlabeled.focus", 1, "tempo.unlabeled.focus=1 must be less than 1"),
        ("shaping.overlong_buffer", -1, "tempo.shaping.overlong_buffer=-1 must be at least 0"),
        ("verifier.timeout", 0, "tempo.verifier.timeout=0 must be more than 0"),
        ("verifier.max_error_share", -1, "tempo.verifier.max_error_share=-1 must be at least 0"),
        ("calibration.interval", -1, "tempo.calibration.interval=-1 must be at least 0"),
        ("calibration.gate.window", 0, "tempo.calibration.gate.window=0 must be at least 1"),
        ("checkpoint.keep", "some", "tempo.checkpoint.keep=some is unknown; choose one of all, last, best, both"),
        ("checkpoint.every", 2, "tempo.checkpoint.every is no field of this run; there are keep, hashes, validation"),
        ("advantage", "gae", "tempo.advantage=gae is unknown; choose one of baseline, group"),
        ("alarms.stop", ["auroc", "rain"], "tempo.alarms.stop=rain is unknown; choose one of auroc, gap, entropy"),
        ("calibration.epochs", 0, "tempo.calibration.epochs=0 must be at least 1"),
        ("calibration.mini_batch_size", 0, "tempo.calibration.mini_batch_size=0 must be at least 1"),
        ("calibration.warmup_rounds", -1, "tempo.calibration.warmup_rounds=-1 must be at least 0"),
        ("value_range", [1, 0], "tempo.value_range=[1, 0] must be [low, high] with low < high, or null"),
        ("value_range", [0.5, 0.5], "low < high"),
        ("value_range", [0.5], "tempo.value_range=[0.5] must be [low, high]"),
        ("value_range", [0, 1, 2], "tempo.value_range=[0, 1, 2] must be [low, high]"),
        ("value_range", "wide", "tempo.value_range"),
        ("rounds", "many", "tempo.rounds='many' does not fit"),
        ("labeled.n", 2.5, "tempo.labeled.n=2.5 does not fit"),
        ("whiten", "perhaps", "tempo.whiten='perhaps' does not fit"),
        ("colour", "red", "tempo.colour is no field of this run"),
        (
            "calibration.intervall",
            1,
            "tempo.calibration.intervall is no field of this run; did you mean tempo.calibration.interval?",
        ),
        ("labelled", {"n": 2}, "tempo.labelled is no field of this run; did you mean tempo.labeled?"),
        ("ttrl.n_votes", 8, "tempo.ttrl is for method=ttrl only; leave it out, or choose that method"),
    ],
)
def test_a_mistake_is_named_in_one_line(field: str, value: Any, told: str) -> None:
    with pytest.raises(UserError) as caught:
        read_settings(section(**{field: value}))
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_options_of_a_method_are_checked_with_it() -> None:
    with pytest.raises(UserError, match=r"tempo\.official\.advantage=gae is unknown; choose one of em_token, em"):
        method_of("official", official__advantage="gae")
    with pytest.raises(UserError, match=r"n_trian is no field of this run; did you mean tempo\.ttrl\.n_train"):
        method_of("ttrl", ttrl__n_trian=4)
    config = section("ttrl")
    config.actor_rollout_ref.rollout.n = 32
    method_of("ttrl").check(config)
    with pytest.raises(UserError, match=r"tempo\.ttrl\.n_votes=8 must be at least 32"):
        method_of("ttrl", ttrl__n_votes=8).check(config)
    config.actor_rollout_ref.rollout.n = 8
    with pytest.raises(UserError, match=r"rollout\.n=8 must equal tempo\.ttrl\.n_train=32"):
        method_of("ttrl").check(config)


def test_a_method_of_ones_own_is_found_by_module_and_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "method_of_mine.py").write_text(
        "from tempo_verl.methods import Method, Needs, Options\n"
        "class MyOptions(Options):\n    strength: float = 0.5\n"
        "class Mine(Method):\n"
        "    name, title, needs, Options = 'mine', 'mine', Needs(None, True, None), MyOptions\n"
        "    def step(self, round): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert method_of(method="method_of_mine:Mine").options.strength == 0.5
    assert read_settings(section(**{"method": "method_of_mine:Mine", "mine.strength": 2})).options.strength == 2.0
    with pytest.raises(UserError, match=r"strenght is no field of this run; did you mean tempo\.mine\.strength"):
        read_settings(section(**{"method": "method_of_mine:Mine", "mine.strenght": 2}))


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
        return [plan.label for plan in schedule(3, method, interval=interval)]

    assert labels("frozen_critic", 0) == [False, False, False]
    assert labels("frozen_critic", 2) == [True, False, True]
    assert labels("grpo", 0) == labels("official", 2) == [True, True, True]


def test_a_closed_gate_makes_an_e_step_of_every_round() -> None:
    method = method_of(calibration__interval=5)
    assert method.plan(2, gate_open=False) == E_STEP
    assert method.plan(2, gate_open=True) == M_STEP
