# SPDX-License-Identifier: Apache-2.0
"""Every hook of verl that we rely on, so that an upgrade of verl fails here and not in a run."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import verl
import verl.trainer.main_ppo as main_ppo
import verl.workers.engine
import verl.workers.engine.fsdp
import verl.workers.rollout.replica as rollout_replica
import verl.workers.utils.losses
from omegaconf import DictConfig, OmegaConf
from transfer_queue import KVBatchMeta
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.single_controller.base.decorator import MAGIC_ATTR
from verl.trainer.ppo.v1 import AgentLoopManagerTQ, PPOTrainer, PPOTrainerSync, get_trainer_cls
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.engine_workers import TrainingWorker
from verl.workers.rollout.base import get_rollout_class
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput

import tempo_verl.doctor
from tempo_verl import local, plugin
from tempo_verl.backends.adapter import TransformersAdapter
from tempo_verl.backends.batch_rollout import BatchRolloutManager
from tempo_verl.backends.replica import TransformersReplica, TransformersServer
from tempo_verl.compat import ALLOW_NEW_VALUE_HEAD, FLOAT32_HEAD
from tempo_verl.config.checks import SYNTHETIC_TOKENS
from tempo_verl.config.schema import read_settings
from tempo_verl.errors import UserError
from tempo_verl.launch import resolve_config
from tempo_verl.methods import known
from tempo_verl.trainer.arrivals import Arrivals
from tempo_verl.trainer.batch import NOT_FOR_ACTOR, NOT_FOR_CRITIC, select
from tempo_verl.trainer.critic_config import FSDPCriticConfig
from tempo_verl.trainer.losses import LOSSES, clipped_value_loss, value_calibration_loss
from tempo_verl.trainer.trainer import TempoTrainer

CONFIG = Path(plugin.__file__).parent / "config"
METHODS = sorted(path.stem for path in (CONFIG / "method").glob("*.yaml"))
HARDWARE = sorted(path.stem for path in (CONFIG / "hardware").glob("*.yaml"))


def python(code: list[str], **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *code],
        env={**os.environ, "COLUMNS": "300", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def can_be_called(function: Any, *args: Any, **options: Any) -> None:
    """The signature takes these arguments (``self`` included)."""
    inspect.signature(function).bind(*args, **options)


# ---------------------------------------------------------------------- plugin

DISCOVERY = """
import json, sys
import verl
early = [name for name in sys.modules if name.startswith("tempo_verl.")]
from tempo_verl.doctor import check_plugin
check_plugin()
from verl.plugin.platform import PlatformRegistry
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.workers.engine import EngineRegistry
from verl.workers.rollout import base, replica
import verl.utils.distributed, verl.utils.model
print(json.dumps({
    "early": sorted(early),
    "trainer": get_trainer_cls("tempo").__module__,
    "platforms": PlatformRegistry.registered_names(),
    "engines": {
        kind: EngineRegistry._engines[kind]["fsdp2"]["cpu"].__name__ for kind in ("language_model", "value_model")
    },
    "adapter": base._ROLLOUT_REGISTRY["transformers", "async"],
    "replica": replica.RolloutReplicaRegistry.get("transformers").__name__,
    "loader": verl.utils.model.load_valuehead_model.__module__,
    "group": hasattr(verl.utils.distributed.initialize_global_process_group_ray, "__wrapped__"),
}))
"""


def test_import_verl_alone_brings_everything_in() -> None:
    result = python(["-c", DISCOVERY])
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # verl's warnings of engines that are not installed would drown what matters
    found = json.loads(result.stdout.splitlines()[-1])
    # nothing else of ours is loaded into processes that may never need it
    assert set(found["early"]) <= {
        "tempo_verl.plugin", "tempo_verl.lazy", "tempo_verl.backends", "tempo_verl.backends.cpu_platform",
    }  # fmt: skip
    assert found["trainer"] == "tempo_verl.trainer.trainer"
    assert found["platforms"][-1] == "cpu"  # last in line
    assert found["engines"] == {"language_model": "FSDPEngineWithLMHead", "value_model": "FSDPEngineWithValueHead"}
    assert found["adapter"] == "tempo_verl.backends.adapter.TransformersAdapter"
    assert found["replica"] == "TransformersReplica"
    assert found["loader"] == "tempo_verl.compat"
    assert found["group"]


def test_verl_hides_a_broken_plugin_and_the_doctor_tells_of_it(tmp_path: Path) -> None:
    (tmp_path / "wrapt.py").write_text("raise ImportError('wrapt is broken on purpose')\n")
    result = python(["-m", "tempo_verl.cli.main", "doctor"], PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert "not in order" in result.stdout
    assert "the plugin does not load: ImportError: wrapt is broken on purpose" in result.stdout
    assert "Traceback" not in result.stderr


def test_a_missing_entry_point_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    other = EntryPoint("other", "other.plugin", "verl.plugins")
    monkeypatch.setattr(tempo_verl.doctor, "entry_points", lambda group: [other])
    with pytest.raises(UserError, match=r"entry point verl\.plugins/tempo is missing; reinstall"):
        tempo_verl.doctor.check_plugin()


@pytest.mark.parametrize("plugins", ["none", "other, another"])
def test_a_plugin_left_out_by_the_environment_is_told(monkeypatch: pytest.MonkeyPatch, plugins: str) -> None:
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", plugins)
    with pytest.raises(UserError, match=f"VERL_USE_EXTERNAL_PLUGINS={plugins} leaves out 'tempo'"):
        tempo_verl.doctor.check_plugin()


@pytest.mark.parametrize("plugins", ["auto", "tempo", "other, tempo"])
def test_a_plugin_named_by_the_environment_is_in_order(monkeypatch: pytest.MonkeyPatch, plugins: str) -> None:
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", plugins)
    tempo_verl.doctor.check_plugin()


def test_verl_still_reads_that_variable_and_hides_errors() -> None:
    source = inspect.getsource(verl)
    assert 'os.getenv("VERL_USE_EXTERNAL_PLUGINS", "auto")' in source
    assert '_entry_points(group="verl.plugins")' in source


@pytest.mark.parametrize("target", plugin.HOOKS.values())
def test_every_hook_names_a_function(target: str) -> None:
    module, _, function = target.partition(":")
    can_be_called(getattr(__import__(module, fromlist=[function]), function), ModuleType("verl"))


# ---------------------------------------------------------------------- trainer

META, BATCH, METRICS, TIMES = object(), object(), {}, {}


@pytest.mark.parametrize(
    ("name", "args", "options"),
    [
        # overridden: verl calls them so
        ("step", (METRICS, TIMES), {}),
        ("_build_replay_buffer", (), {}),
        ("_setup", (), {}),
        ("_init_dataloader", (), {}),
        ("_val_metrics_update", ([], [], {}, []), {"expected_acc_counts": {}}),
        ("fit", (object(),), {}),
        ("on_validate_end", (), {}),
        ("on_step_end", (), {}),
        ("get_llm_client", (), {}),
        ("_save_checkpoint", (), {}),
        # called by us so
        ("on_sample_begin", (), {}),
        ("on_sample_end", (), {}),
        ("_submit_batch_to_rollout", (BATCH,), {}),
        ("_compute_old_log_prob", (META,), {"metrics": METRICS}),
        ("_compute_ref_log_prob", (META,), {"metrics": METRICS}),
        ("_update_actor", (META,), {"metrics": METRICS}),
    ],
)
def test_a_trainer_method_takes_what_is_passed(name: str, args: tuple, options: dict[str, Any]) -> None:
    can_be_called(getattr(PPOTrainerSync, name), None, *args, **options)
    can_be_called(getattr(TempoTrainer, name), None, *args, **options)


def test_every_method_we_override_exists_in_verl() -> None:
    ours = {name for name, value in vars(TempoTrainer).items() if inspect.isfunction(value) and name[:2] != "__"}
    own = {"_assemble", "_end_early", "_save", "_save_due", "_tell_validation"}
    assert own <= ours
    for name in ours - own:
        assert hasattr(PPOTrainerSync, name), f"{name} overrides nothing"
    for name in own:
        assert not hasattr(PPOTrainerSync, name), f"verl has a {name} now, ours hides it"


def test_the_attributes_we_set_are_not_verls() -> None:
    ours = {"method", "status", "keeper", "streams", "watch", "monitor", "predictions", "port", "rollout", "replay",
            "resumed", "lifeguard"}  # fmt: skip
    source = inspect.getsource(PPOTrainer) + inspect.getsource(PPOTrainerSync)
    assert not ours & set(re.findall(r"self\.(\w+)", source))


def test_the_trainer_is_registered_under_its_name() -> None:
    assert get_trainer_cls("tempo") is TempoTrainer
    assert issubclass(TempoTrainer, PPOTrainerSync)


def replay_buffer(trainer_class: type, config: DictConfig) -> tuple[PPOTrainer, ReplayBuffer]:
    trainer = object.__new__(trainer_class)
    trainer.config, trainer.trainer_mode = config, config.trainer.v1.trainer_mode
    trainer.method = read_settings(config)
    return trainer, trainer._build_replay_buffer()


def test_verl_takes_any_name_but_sync_for_an_asynchronous_trainer(compose) -> None:
    trainer, buffer = replay_buffer(PPOTrainerSync, compose())
    assert trainer.trainer_mode == "tempo"
    assert type(buffer) is ReplayBufferAsync
    assert buffer.poll_interval == 2.0


def test_ours_rolls_out_in_sync_and_polls_as_configured(compose) -> None:
    trainer, buffer = replay_buffer(TempoTrainer, compose(["tempo.poll_interval=0.125", "tempo.rollout_timeout=9"]))
    assert trainer.trainer_mode == "sync"
    assert type(buffer) is Arrivals
    assert buffer.trainer_mode == "sync"
    assert (buffer.poll_interval, buffer.timeout) == (0.125, 9.0)
    assert "self.poll_interval" in inspect.getsource(ReplayBuffer._wait_for_next_poll)
    can_be_called(buffer.sample, global_steps=1, partition_id="train", batch_size=2)
    # verl asks no more of it: a trainer in sync only samples
    assert set(re.findall(r"replay_buffer\.(\w+)", inspect.getsource(PPOTrainer))) == {"sample"}


def test_accelerators_are_polled_ten_times_as_seldom_as_a_cpu(compose) -> None:
    asked = {hardware: compose([f"hardware={hardware}"]).tempo.poll_interval for hardware in HARDWARE}
    assert asked == {"cpu": 0.05, "fsdp": 0.5, "megatron": 0.5}


def test_verl_makes_its_replay_buffer_before_it_looks_at_the_mode_again() -> None:
    source = inspect.getsource(PPOTrainer.__init__)
    assert source.index("self.trainer_mode =") < source.index("self._build_replay_buffer()")


def test_every_validation_is_followed_by_the_hook_that_keeps_its_checkpoint() -> None:
    source = inspect.getsource(PPOTrainer.fit)
    followed = re.findall(r"= self\._validate\(\)\n +self\.on_validate_end\(\)", source)
    assert len(followed) == source.count("_validate()") == 2
    # verl names the newest checkpoint after it is saved, and resumes what is named
    saving = inspect.getsource(PPOTrainer._save_checkpoint)
    assert saving.index("critic_wg.save_checkpoint") < saving.index('"latest_checkpointed_iteration.txt"')
    assert 'f"global_step_{self.global_steps}"' in saving
    # the engine sleeps while weights are read or written, and gets them again when it wakes
    assert "self.checkpoint_manager.sleep_replicas()" in inspect.getsource(PPOTrainer._setup)
    assert "self.checkpoint_manager.update_weights(self.global_steps)" in inspect.getsource(PPOTrainerSync.on_init_end)


def test_padding_rows_are_marked_as_we_read_it() -> None:
    from verl.trainer.ppo import padding_utils

    assert "is_padding" in inspect.getsource(padding_utils.construct_minimal_padding_template)
    assert padding_utils.SYNTHETIC_PADDING_SEQ_LEN == SYNTHETIC_TOKENS


# ---------------------------------------------------------------------- workers and queue


@pytest.mark.parametrize(
    ("name", "argument"), [("set_loss_fn", "loss_fn"), ("infer_batch", "data"), ("train_mini_batch", "data")]
)
def test_the_worker_group_api_of_the_critic(name: str, argument: str) -> None:
    function = getattr(TrainingWorker, name)
    taken = [
        name for name in inspect.signature(function).parameters if name != "_ray_trace_ctx"
    ]  # Ray adds it to actors
    assert taken == ["self", argument]
    assert hasattr(function, MAGIC_ATTR)  # offered by the worker group


def test_the_worker_reads_the_keys_that_we_set() -> None:
    training = inspect.getsource(TrainingWorker.train_mini_batch)
    for key in ("mini_batch_size", "epochs", "seed", "dataloader_kwargs"):
        assert f'key="{key}"' in training
    assert 'key="compute_loss"' in inspect.getsource(TrainingWorker.infer_batch)
    engine = inspect.getsource(verl.workers.engine.fsdp.transformer_impl.FSDPEngine.forward_backward_batch)
    for told in ('data["loss_mask"].sum()', "batch_num_tokens=", "dp_size="):
        assert told in engine


def test_no_pass_reads_what_it_is_not_sent() -> None:
    def read_by(*functions) -> set[str]:
        source = "\n".join(map(inspect.getsource, functions))
        names = re.findall(r"""\b\w*(?:data|batch)\w*(?:\[|\.get\()["'](\w+)["']""", source)
        return set(names) | set(re.findall(r"""key=["'](\w+)["']""", source))

    for engine in (
        verl.workers.engine.fsdp.transformer_impl.FSDPEngine,
        verl.workers.engine.fsdp.transformer_impl.FSDPEngineWithLMHead,
        verl.workers.engine.fsdp.transformer_impl.FSDPEngineWithValueHead,
        TrainingWorker,
    ):
        assert not read_by(engine) & (NOT_FOR_ACTOR | NOT_FOR_CRITIC)
    policy = read_by(verl.workers.utils.losses.ppo_loss)
    assert {"old_log_probs", "advantages", "response_mask", "rollout_is_weights"} <= policy
    assert not policy & NOT_FOR_ACTOR
    assert not read_by(value_calibration_loss) & NOT_FOR_CRITIC
    assert read_by(clipped_value_loss) & NOT_FOR_CRITIC <= LOSSES["clipped"].reads


def test_verls_own_trainer_corrects_rollouts_in_what_is_not_called_here() -> None:
    source = inspect.getsource(PPOTrainer._compute_advantage)
    assert "compute_rollout_correction_and_add_to_batch(data, rollout_corr_config)" in source
    assert {"response_mask", "rollout_is_weights"} <= set(re.findall(r'fields\.append\("(\w+)"\)', source))
    assert "loss_mask" not in source  # the loss is divided by all tokens, rejected ones too


def test_rollouts_and_synthetic_rows_come_with_a_loss_mask() -> None:
    """The response mask, so that ``Policy.store`` writes it only where an E-step has written another one."""
    rollouts = inspect.getsource(verl.trainer.ppo.v1.agent_loop_tq)
    assert 'field["loss_mask"] = field["response_mask"]' in rollouts
    synthetic = inspect.getsource(verl.trainer.ppo.padding_utils)
    assert "response_mask=response_mask,\n        loss_mask=response_mask," in synthetic
    assert "response_mask = torch.zeros_like(responses)" in synthetic


def test_rows_are_selected_by_key_with_their_tags() -> None:
    keys = ["a_0_0", "b_0_0", "a_1_0"]
    meta = KVBatchMeta(keys=keys, tags=[{"seq_len": n} for n in range(3)], partition_id="train", extra_info={"t": 1.0})
    chosen = meta.select_keys(["a_1_0", "b_0_0"])
    assert (chosen.keys, chosen.tags) == (["a_1_0", "b_0_0"], [{"seq_len": 2}, {"seq_len": 1}])
    assert (chosen.partition_id, chosen.extra_info) == ("train", {"t": 1.0})
    with pytest.raises(RuntimeError):
        meta.select_keys(["c_0_0"])

    (ours,) = (part.meta for part in select(meta, {"a"}))
    assert ours.keys == ["a_0_0", "a_1_0"]
    several = KVBatchMeta(keys=["a_10_0", "a_2_10", "a_2_9"], tags=[{}] * 3, partition_id="train")
    assert select(several, {"a"})[0].meta.keys == ["a_2_9", "a_2_10", "a_10_0"]
    ours.extra_info["t"] = 2.0
    assert meta.extra_info == {"t": 1.0}


# ---------------------------------------------------------------------- rollout


def test_the_rollout_is_found_by_its_name() -> None:
    assert RolloutReplicaRegistry.get("transformers") is TransformersReplica
    assert get_rollout_class("transformers", "async") is TransformersAdapter


def test_nothing_abstract_is_left_open() -> None:
    assert not TransformersAdapter.__abstractmethods__
    assert not TransformersReplica.__abstractmethods__


def test_the_server_answers_what_a_replica_asks_in_a_round() -> None:
    asked = set(re.findall(r"server\.(\w+)\.remote", inspect.getsource(rollout_replica)))
    # kept in memory by some engines, and profiling: nothing that a run without them calls
    assert {name for name in asked if not hasattr(TransformersServer, name)} <= {
        "release_kv_cache", "resume_kv_cache", "start_profile", "stop_profile",
    }  # fmt: skip
    can_be_called(TransformersServer.abort_all_requests, None, reject_request=True)
    can_be_called(TransformersServer.generate, None, "id", prompt_ids=[1], sampling_params={}, image_data=None)
    assert {"token_ids", "log_probs", "stop_reason", "extra_fields"} <= set(TokenOutput.model_fields)
    can_be_called(RolloutReplica.launch_servers, None)


def test_the_batched_rollout_stands_in_for_verls_agent_loop() -> None:
    ours, verls = (
        inspect.signature(manager.generate_sequences) for manager in (BatchRolloutManager, AgentLoopManagerTQ)
    )
    assert list(ours.parameters) == list(verls.parameters)
    source = inspect.getsource(main_ppo)
    assert '.get("agent_loop_manager_class")' in source
    passed = re.search(r"agent_loop_manager_cls\.create\((.*?)\n +\)", source, re.DOTALL)
    assert passed is not None
    can_be_called(BatchRolloutManager.create, **dict.fromkeys(re.findall(r"(\w+)=", passed.group(1))))
    can_be_called(RewardLoopWorker.compute_score_batch, None, object())


# ---------------------------------------------------------------------- configuration


@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("method", METHODS)
def test_every_shipped_configuration_composes(method: str, hardware: str) -> None:
    config = resolve_config([
        f"method={method}", f"hardware={hardware}", "tempo.labeled.files=labeled.parquet",
        "tempo.unlabeled.files=unlabeled.parquet", "tempo.rounds=7", "tempo.calibration.lr=0.25",
        "tempo.allow_labels_on_unlabeled=true",
    ])  # fmt: skip
    OmegaConf.resolve(config)
    assert config.trainer.v1.trainer_mode == "tempo"
    assert config.trainer.total_training_steps == 7
    assert config.critic.optim.lr == 0.25
    assert config.critic._target_.startswith("tempo_verl.trainer.critic_config.")
    strategy = "megatron" if hardware == "megatron" else "fsdp2"
    assert config.actor_rollout_ref.actor.strategy == config.critic.strategy == strategy
    assert config.actor_rollout_ref.rollout.name == ("transformers" if hardware == "cpu" else "vllm")
    chosen = read_settings(config)
    assert (chosen.name, type(chosen)) == (method, known()[method])
    if chosen.needs.critic is not None:
        assert config.critic.enable == chosen.needs.critic
    assert config.critic.enable or config.tempo.advantage == "group"
    assert config.data.train_files == config.tempo[chosen.learns_on()].files
    assert config.data.train_batch_size == config.tempo[chosen.learns_on()].batch_size
    assert (config.algorithm.adv_estimator, config.algorithm.gamma, config.algorithm.lam) == ("gae", 1.0, 1.0)


def test_the_groups_that_are_promised_are_shipped() -> None:
    assert set(METHODS) == set(known())
    assert {"cpu", "fsdp", "megatron"} <= set(HARDWARE)


@pytest.mark.parametrize("on", [True, False])
def test_verl_builds_our_critic_config(compose, on: bool) -> None:
    fields = {"allow_new_value_head": ALLOW_NEW_VALUE_HEAD, "float32_head": FLOAT32_HEAD}
    config = omega_conf_to_dataclass(compose([f"critic.{field}={str(on).lower()}" for field in fields]).critic)
    assert isinstance(config, FSDPCriticConfig)
    for field, mark in fields.items():
        assert getattr(config, field) is on
        assert getattr(config.model.hf_config, mark) is on  # the way it takes to the loader
    assert config.model.hf_config._attn_implementation == "sdpa"
    assert config.engine.strategy == "fsdp2"


def test_verl_builds_its_own_configs_from_ours(compose) -> None:
    section = compose().actor_rollout_ref
    assert omega_conf_to_dataclass(section.rollout).name == "transformers"
    assert omega_conf_to_dataclass(section.actor).strategy == "fsdp2"
    assert omega_conf_to_dataclass(section.model).hf_config.vocab_size == 16


def test_verls_launcher_runs_the_trainer_in_its_own_process_if_told_to(monkeypatch) -> None:
    """``tempo_verl.local`` puts its stand-in where the launcher takes the runner from."""
    source = inspect.getsource(main_ppo)
    assert "run_ppo(config, task_runner_class=TaskRunnerV1)" in source
    assert "runner = task_runner_class.remote()" in source
    assert "ray.get(runner.run.remote(config))" in source
    of_ray = SimpleNamespace(runtime_env={"env_vars": {"TEMPO_OF_RAY": "1"}})
    monkeypatch.setattr(local, "ray", SimpleNamespace(get_runtime_context=lambda: of_ray, put=lambda result: result))
    monkeypatch.setenv("TEMPO_OF_RAY", "0")
    runner = local.Here(main_ppo.TaskRunnerV1).remote()
    monkeypatch.setattr(main_ppo.TaskRunnerV1.__ray_metadata__.modified_class, "run", lambda self, config: config)
    assert runner.run.remote("the configuration") == "the configuration"
    assert os.environ["TEMPO_OF_RAY"] == "1"


def test_verl_takes_its_trainer_from_the_mode() -> None:
    assert "get_trainer_cls(config.trainer.v1.trainer_mode)" in inspect.getsource(main_ppo)
