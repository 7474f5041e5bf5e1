# SPDX-License-Identifier: Apache-2.0
"""Settings of verl that would be ignored or fail late are refused before a run; a run folder belongs to one method."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tempo_verl.preflight import WITHOUT_EFFECT, check

from tempo_verl.errors import UserError
from tempo_verl.launch import Run, _check_folder


@pytest.mark.parametrize("field", [field for field, _, _ in WITHOUT_EFFECT])
def test_the_shipped_value_of_a_setting_without_effect_is_the_neutral_one(compose, field: str) -> None:
    neutral = {name: value for name, value, _ in WITHOUT_EFFECT}[field]
    assert OmegaConf.select(compose(), field) in (neutral, None)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("algorithm.adv_estimator=grpo", "algorithm.adv_estimator=grpo would have no effect"),
        ("trainer.critic_warmup=3", "tempo.calibration.warmup_rounds"),
        ("critic.ppo_epochs=2", "tempo.calibration.epochs"),
        ("reward.custom_reward_function.path=mine.py", "reward_model.style"),
        ("algorithm.filter_groups.enable=true", "calibrate the critic"),
        ("actor_rollout_ref.model.path='~/model'", "verl does not expand ~"),
        ("actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.model.lora.merge=true"),
        ("critic.ppo_max_token_len_per_gpu=16", "critic.ppo_max_token_len_per_gpu=16 is less than"),
        ("hardware=megatron", "Megatron reads no Hugging Face value head"),
    ],
)
def test_refused(compose, override: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        check(compose([override]))
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_several_actor_epochs_are_not_taken_for_the_critics(compose) -> None:
    check(compose(["actor_rollout_ref.actor.ppo_epochs=2"]))


def test_the_critics_token_budget_reaches_the_field_verl_reads(compose) -> None:
    assert compose(["critic.ppo_max_token_len_per_gpu=4321"]).critic.ppo_infer_max_token_len_per_gpu == 4321


def test_sequence_parallel_processes_share_a_long_sample(compose) -> None:
    longest = 16 + 24
    budgets = [f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={longest // 2}"]
    budgets += [f"critic.ppo_max_token_len_per_gpu={longest // 2}", "trainer.n_gpus_per_node=2"]
    with pytest.raises(UserError, match="is less than"):
        check(compose(budgets))
    check(compose([*budgets, "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2"]))


def test_a_run_folder_belongs_to_one_method(compose, tmp_path: Path) -> None:
    config = compose(["method=tempo"])
    _check_folder(Run(tmp_path), config)
    (tmp_path / "config.yaml").write_text("tempo: {method: tempo}\n")
    _check_folder(Run(tmp_path), config)
    (tmp_path / "config.yaml").write_text("tempo: {method: ppo}\n")
    with pytest.raises(UserError, match="holds a run of method=ppo; name another folder"):
        _check_folder(Run(tmp_path), config)
