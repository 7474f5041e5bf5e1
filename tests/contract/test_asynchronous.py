# SPDX-License-Identifier: Apache-2.0
"""verl's asynchronous trainers: what of them is borrowed, and why one of them cannot be (docs/asynchronous.md).

A test of a limit that fails tells that verl has lifted it.
"""

from __future__ import annotations

import inspect
import re

import pytest
import verl.trainer.ppo.v1.trainer_separate_async as separate
from omegaconf import open_dict
from verl.experimental.separation import ray_trainer as separation
from verl.trainer.ppo.v1 import PPOTrainer, PPOTrainerColocateAsync, PPOTrainerSeparateAsync, PPOTrainerSync
from verl.utils.config import omega_conf_to_dataclass

from tempo_verl.trainer.trainer import TempoTrainer

BORROWED = ("get_llm_client", "on_sample_end", "on_step_end")


@pytest.mark.parametrize("trainer", [PPOTrainerSync, PPOTrainerColocateAsync])
def test_hooks_of_the_engine_ask_for_nothing_but_a_ppo_trainer(trainer: type) -> None:
    known = inspect.getsource(PPOTrainer)
    for name in BORROWED:
        source = inspect.getsource(getattr(trainer, name))
        assert "super()" not in source
        for attribute in re.findall(r"self\.(\w+)", source):
            assert f"self.{attribute}" in known or hasattr(PPOTrainer, attribute), attribute


def test_colocate_async_has_no_other_hook_that_a_round_would_miss() -> None:
    hooks = {name for name, value in vars(PPOTrainerColocateAsync).items() if inspect.isfunction(value)}
    # at the start both do the same; warm-up batches are submitted by the rollout of a round here
    assert hooks - set(BORROWED) == {"on_init_end", "on_train_begin"}
    assert inspect.getsource(PPOTrainerColocateAsync.on_init_end) == inspect.getsource(PPOTrainerSync.on_init_end)


def test_the_engine_is_interrupted_before_it_sleeps_and_goes_on_after_the_update() -> None:
    end_of_sample = inspect.getsource(PPOTrainerColocateAsync.on_sample_end)
    assert end_of_sample.index("abort_replicas()") < end_of_sample.index("sleep_replicas()")
    end_of_step = inspect.getsource(PPOTrainerColocateAsync.on_step_end)
    assert end_of_step.index("update_weights(") < end_of_step.index("resume_generation_replicas()")


# ---------------------------------------------------------------------- limits


@pytest.mark.parametrize("name", ["_setup", "_init_resource_pool_mgr", "prepare_step", "_rollout_server_managers"])
def test_separate_async_can_only_be_inherited(name: str) -> None:
    """Its servers, workers and steps are made by methods that no other class of trainer can borrow."""
    with pytest.raises(TypeError, match=r"super\(type, obj\)"):
        getattr(PPOTrainerSeparateAsync, name)(object.__new__(TempoTrainer))


def test_separate_async_needs_a_transfer_of_weights_that_a_cpu_has_not(compose) -> None:
    config = compose(["trainer.v1.trainer_mode=separate_async"])
    with open_dict(config):
        config.trainer.v1.separate_async.parameter_sync_step = 1
        config.actor_rollout_ref.rollout.nnodes = config.actor_rollout_ref.rollout.n_gpus_per_node = 1
    assert config.actor_rollout_ref.rollout.checkpoint_engine.backend == "naive"
    with pytest.raises(AssertionError, match="please use nccl/nixl/mooncake"):
        PPOTrainerSeparateAsync(config)


def test_separate_async_counts_prompts_whatever_stream_they_are_of() -> None:
    for wait in (PPOTrainerSeparateAsync.on_step_begin, PPOTrainerSeparateAsync._wait_for_sampleable_and_switch):
        assert '"train"' in inspect.getsource(wait)
    assert "self.replay_buffer.sample(" in inspect.getsource(PPOTrainer._step_once)


def test_the_issue_about_critics_is_of_the_older_trainers(compose) -> None:
    """verl #7822: they look for the critic's engine where it is not. Those of v1 build it in ``PPOTrainer._setup``."""
    source = inspect.getsource(separation)
    assert "self.orig_critic_cfg.model.fsdp_config" in source
    assert not hasattr(omega_conf_to_dataclass(compose().critic).model, "fsdp_config")
    assert re.findall(r"from verl\.experimental\.separation\S* import (\w+)", inspect.getsource(separate)) == [
        "DetachActorWorker"
    ]
    assert "critic_cfg.engine" in inspect.getsource(PPOTrainer._setup)
