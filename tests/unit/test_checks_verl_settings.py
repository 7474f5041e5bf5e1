# SPDX-License-Identifier: Apache-2.0
"""Settings of verl that would be ignored or fail late are refused before a run; a run folder belongs to one method."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig, OmegaConf
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.workers.rollout.base import _ROLLOUT_REGISTRY
from verl.workers.rollout.replica import RolloutReplicaRegistry

from tempo_verl.config.checks import WITHOUT_EFFECT
from tempo_verl.config.models import check_models
from tempo_verl.config.preflight import check
from tempo_verl.config.resume import Fingerprint, check_folder, check_resume
from tempo_verl.config.schema import read_settings
from tempo_verl.errors import UserError
from tempo_verl.trainer.manifest import write_manifest


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
        ("critic.ppo_max_token_len_per_gpu=16", "critic.ppo_max_token_len_per_gpu=16 is less than"),
    ],
)
def test_refused(compose, override: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        check(compose([override]))
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_bridge_that_knows_no_value_head_is_refused(compose) -> None:
    check_models(compose(["hardware=megatron"]))  # the head is read by path, as FSDP does
    with pytest.raises(UserError, match=r"critic\.megatron\.vanilla_mbridge=true: .* set it to false"):
        check_models(compose(["hardware=megatron", "critic.megatron.vanilla_mbridge=true"]))


MEGATRON = ("hardware=megatron", "critic.allow_new_value_head=true")
OF_ACTOR, OF_CRITIC = "actor_rollout_ref.model", "critic.model"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([f"{OF_ACTOR}.lora.merge=true"], "rollout.name=transformers takes the adapter as it is; set it to false"),
        ([f"{OF_ACTOR}.lora.rank=8"], f"rank=8: is Megatron's; set {OF_ACTOR}.lora_rank instead"),
        ([f"{OF_CRITIC}.lora.rank=8"], f"rank=8: is Megatron's; set {OF_CRITIC}.lora_rank instead"),
        ([f"{OF_ACTOR}.lora_adapter_path=a"], f"set {OF_ACTOR}.lora_rank to the adapter's rank"),
        ([f"{OF_CRITIC}.lora_rank=8", f"{OF_CRITIC}.lora_adapter_path=a"], "an adapter has no value head"),
        (["+critic.checkpoint.save_lora_only=true"], "it would leave out the value head; set it to false"),
        (["critic.strategy=fsdp", f"{OF_CRITIC}.lora_rank=8"], "its export is untested; set critic.strategy=fsdp2"),
        (
            ["actor_rollout_ref.actor.strategy=fsdp", f"{OF_ACTOR}.lora_rank=8"],
            "its export is untested; set actor_rollout_ref.actor.strategy=fsdp2",
        ),
        ([*MEGATRON, f"{OF_ACTOR}.lora_rank=8"], f"set {OF_ACTOR}.lora.rank instead"),
        ([*MEGATRON, f"{OF_ACTOR}.lora_adapter_path=a"], f"set {OF_ACTOR}.lora.adapter_path instead"),
        ([*MEGATRON, f"{OF_CRITIC}.lora.rank=8"], "leave out the value head; set it to 0"),
        ([*MEGATRON, f"{OF_CRITIC}.lora_rank=8"], "leave out the value head; set it to 0"),
        ([*MEGATRON, "critic.float32_head=true"], "critic.strategy=megatron computes the value head by itself"),
    ],
)
def test_lora_that_would_not_be_read_or_not_be_exported(compose, overrides: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        check(compose(overrides))
    message = str(caught.value)
    field, _, value = overrides[-1].removeprefix("+").partition("=")
    assert f"{field}={value}".lower() in message.lower()
    assert told in message
    assert len(message.splitlines()) == 1


def test_lora_of_policy_and_critic_passes(compose) -> None:
    ranks = [f"{OF_ACTOR}.lora_rank=8", f"{OF_CRITIC}.lora_rank=8"]
    check(compose(ranks))
    check(compose([*ranks, f"{OF_ACTOR}.lora_adapter_path=some/adapter"]))


def test_several_actor_epochs_are_not_taken_for_the_critics(compose) -> None:
    check(compose(["actor_rollout_ref.actor.ppo_epochs=2"]))


def test_the_critics_token_budget_reaches_the_field_verl_reads(compose) -> None:
    assert compose(["critic.ppo_max_token_len_per_gpu=4321"]).critic.ppo_infer_max_token_len_per_gpu == 4321


@pytest.fixture
def used(compose, tmp_path: Path):
    """A folder with a whole checkpoint of round 1; ``used(overrides)``: go on with these."""
    checkpoints = tmp_path / "checkpoints"

    def configure(overrides: list[str]) -> DictConfig:
        return compose([f"trainer.default_local_dir='{checkpoints}'", *overrides])

    def go_on(overrides: list[str]) -> None:
        config = configure(overrides)
        check_resume(config, read_settings(config))

    (checkpoints / "global_step_1").mkdir(parents=True)
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("1")
    first = configure([])
    write_manifest(checkpoints / "global_step_1", Fingerprint.of(first, read_settings(first)).as_json())
    return go_on


def test_a_run_goes_on_as_it_began(used) -> None:
    used([])
    used(
        [
            "tempo.rounds=5",
            "trainer.save_freq=1",
            "trainer.test_freq=3",
            "tempo.predictions.n=4",
            "tempo.alarms.window=5",
        ]
    )
    used(["reward.num_workers=3"])  # a machine with another number of cores


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("tempo.labeled.batch_size=4", "tempo.labeled.batch_size=4 was 8"),
        ("actor_rollout_ref.actor.optim.lr=1e-5", "actor_rollout_ref.actor.optim.lr=1e-05 was 1e-06"),
        ("tempo.calibration.lr=1e-5", "critic.optim.lr=1e-05 was 1e-06, tempo.calibration.lr=1e-05 was 1e-06"),
        ("actor_rollout_ref.rollout.n=4", "actor_rollout_ref.rollout.n=4 was 2"),
        ("tempo.unlabeled.seed=7", "tempo.unlabeled.seed=7 was 2"),
        ("method=frozen_critic", "tempo.method=frozen_critic was tempo"),
    ],
)
def test_other_settings_are_refused_with_the_difference(used, override: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        used([override])
    message = str(caught.value)
    assert told in message
    assert "global_step_1 was saved by a run with other settings (" in message
    assert "tempo.start_from" in message
    assert len(message.splitlines()) == 1
    used([override, "tempo.resume.allow_changes=true"])


def test_the_same_questions_may_be_moved_and_others_are_refused(used, compose, tmp_path: Path) -> None:
    files = Path(compose().tempo.unlabeled.files)
    moved = tmp_path / "moved.parquet"
    moved.write_bytes(files.read_bytes())
    used([f"tempo.unlabeled.files='{moved}'"])
    pq.write_table(pq.read_table(files).slice(1), moved)
    with pytest.raises(UserError, match=r"other settings \(tempo\.unlabeled\.files has other questions\); set them"):
        used([f"tempo.unlabeled.files='{moved}'"])


def test_a_folder_with_a_run_of_another_method_is_refused_even_without_a_checkpoint(compose, tmp_path: Path) -> None:
    OmegaConf.save(compose(["method=ppo"]), tmp_path / "config.yaml", resolve=True)
    with pytest.raises(UserError, match=r"holds a run of method=ppo; name another folder \(with tempo\.start_from="):
        check_folder(tmp_path, compose([f"trainer.default_local_dir='{tmp_path / 'checkpoints'}'"]))


def test_what_messages_advise_may_change(used) -> None:
    used(["tempo.verifier.timeout=20", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=1000"])
    used(["actor_rollout_ref.actor.fsdp_config.param_offload=true"])


@pytest.mark.parametrize("name", ["vllm", "sglang"])
@pytest.mark.parametrize("hardware", [["fsdp"], ["megatron", "critic.allow_new_value_head=true"]])
def test_either_inference_engine_of_verl_passes_every_check(compose, hardware: list[str], name: str) -> None:
    """Ours, and verl's own of the whole and of its parts."""
    cluster = ["ray_kwargs.ray_init.num_cpus=64", "++ray_kwargs.ray_init.address=local"]
    config = compose([f"hardware={hardware[0]}", *hardware[1:], f"actor_rollout_ref.rollout.name={name}", *cluster])
    check(config)
    OmegaConf.resolve(config)
    validate_config(config, use_reference_policy=False, use_critic=config.critic.enable)
    rollout = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    assert (rollout.name, rollout.mode, rollout.agent.agent_loop_manager_class) == (name, "async", None)
    assert rollout.free_cache_engine and rollout.calculate_log_probs
    assert (name, "async") in _ROLLOUT_REGISTRY
    assert name in RolloutReplicaRegistry._registry
