# SPDX-License-Identifier: Apache-2.0
"""Checks before anything expensive starts: each user's mistake ends in one line that names the place and the remedy.

Runs as a Hydra callback of the shipped configuration, hence under verl's own launcher too, and in ``tempo-verl train``.
No model is loaded and Ray is not started (an existing cluster is asked for its CPUs).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from tempo_verl.compat import check_verl_version, missing_head_message
from tempo_verl.errors import UserError
from tempo_verl.models import missing_value_head
from tempo_verl.trainer.checkpoints import Checkpoints
from tempo_verl.trainer.settings import TempoSettings

SEQUENCE_PARALLEL = "fsdp_config.ulysses_sequence_parallel_size"

# A model may have a few more ids than its tokenizer (padding; 2.3 % in the DeepSeek LLM family), never fewer.
MOST_UNUSED_IDS = 0.05

# Settings of verl that TEMPO does not read: field, the value that asks for nothing, what to use instead.
WITHOUT_EFFECT = (
    ("algorithm.adv_estimator", "gae", "the advantage is TEMPO's own"),
    ("algorithm.filter_groups.enable", False, "prompts that are all right or all wrong calibrate the critic as well"),
    ("algorithm.rollout_correction.rollout_is", None, "rollouts are on-policy"),
    ("algorithm.rollout_correction.rollout_rs", None, "rollouts are on-policy"),
    ("critic.ppo_epochs", 1, "use tempo.calibration.epochs"),
    ("reward.custom_reward_function.path", None, "name your verifier as module:function in reward_model.style"),
    ("reward.reward_model.enable", False, "the reward is the verifier's verdict or the critic's value"),
    ("trainer.critic_warmup", 0, "use tempo.calibration.warmup_rounds"),
    ("trainer.v1.sampler.sync_refill_failed_groups", False, "failed prompts are left out"),
)

# Settings of verl that would remove checkpoints, or end them late, beside tempo.checkpoint.keep: field, neutral value.
IN_THE_WAY_OF_KEEP = (
    ("trainer.max_actor_ckpt_to_keep", None),
    ("trainer.max_critic_ckpt_to_keep", None),
    ("trainer.remove_previous_ckpt_in_save", False),
    ("trainer.del_local_ckpt_after_load", False),
    ("trainer.default_hdfs_dir", None),
    ("actor_rollout_ref.actor.checkpoint.async_save", False),
    ("critic.checkpoint.async_save", False),
)


class PreflightCallback(Callback):
    """Stops the process with status 2 and one line on stderr if :func:`check` finds a mistake."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            check(config)
        except UserError as error:
            # Hydra turns exceptions of callbacks into warnings, but not this one.
            print(f"tempo-verl: {error}", file=sys.stderr)
            raise SystemExit(2) from None


def check(config: DictConfig) -> None:
    """Run every check, cheap ones first.

    Raises:
        UserError: the first mistake found.
    """
    check_verl_version()
    settings = TempoSettings.from_config(config)
    _check_algorithm(config, settings)
    _check_batches(config, settings)
    _check_lengths(config)
    _check_data(config, settings)
    _check_checkpoints(config, settings)
    _check_predictions(settings)
    _check_models(config)
    _check_storage(config, settings)
    _check_ray(config)


# ---------------------------------------------------------------------- configuration


def _check_algorithm(config: DictConfig, settings: TempoSettings) -> None:
    if config.trainer.v1.trainer_mode != "tempo":
        raise UserError(
            f"trainer.v1.trainer_mode={config.trainer.v1.trainer_mode}: must be tempo for this configuration"
        )
    if (config.algorithm.gamma, config.algorithm.lam) != (1.0, 1.0):
        raise UserError(
            f"algorithm.gamma={config.algorithm.gamma}, algorithm.lam={config.algorithm.lam}: must both be 1, "
            "the critic estimates P(correct | prefix)"
        )
    if config.algorithm.use_kl_in_reward:
        raise UserError(
            "algorithm.use_kl_in_reward=true: the reward is the critic's value; "
            "use actor_rollout_ref.actor.use_kl_loss=true to stay close to the reference policy"
        )
    for field, neutral, instead in WITHOUT_EFFECT:
        value = OmegaConf.select(config, field)
        if value not in (neutral, None):
            raise UserError(f"{field}={value} would have no effect ({instead}); leave it at {_written(neutral)}")
    if config.trainer.val_only and not config.trainer.val_before_train:
        raise UserError(
            "trainer.val_only=true would train where trainer.val_before_train=false; set that to true as well"
        )
    _check_critic(config, settings)


def _written(value: Any) -> str:
    """As it is written in an override."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _check_critic(config: DictConfig, settings: TempoSettings) -> None:
    enabled, method = bool(config.critic.enable), settings.method
    if settings.kind.critic is True and not enabled:
        raise UserError(f"critic.enable={config.critic.enable}: method={method} needs a critic, set it to true")
    if settings.kind.critic is False and enabled:
        raise UserError(
            f"critic.enable={config.critic.enable}: method={method} has no use for a critic, set it to false"
        )
    if enabled:
        return
    if settings.advantage == "baseline":
        raise UserError("tempo.advantage=baseline needs a critic: set tempo.advantage=group, or critic.enable=true")
    if settings.calibration.warmup_rounds:
        raise UserError(
            f"tempo.calibration.warmup_rounds={settings.calibration.warmup_rounds}: there is no critic to warm up "
            "(critic.enable=false); set it to 0"
        )
    if settings.calibration.replay.prompts:
        raise UserError(
            f"tempo.calibration.replay.prompts={settings.calibration.replay.prompts}: there is no critic to fit "
            "(critic.enable=false); set it to 0"
        )


def _check_batches(config: DictConfig, settings: TempoSettings) -> None:
    ranks = config.trainer.n_gpus_per_node * config.trainer.nnodes // _sequence_parallel(config)
    actor_mini = config.actor_rollout_ref.actor.ppo_mini_batch_size
    policy_stream = settings.kind.learns_on
    policy_batch = getattr(settings, policy_stream).batch_size
    n = config.actor_rollout_ref.rollout.n
    if not settings.uses_unlabeled and settings.labeled.n != n:
        raise UserError(
            f"tempo.labeled.n={settings.labeled.n} must equal actor_rollout_ref.rollout.n={n} in "
            f"method={settings.method}"
        )
    if settings.kind.reward == "majority" and settings.ttrl.n_train != n:
        raise UserError(f"actor_rollout_ref.rollout.n={n} must equal tempo.ttrl.n_train={settings.ttrl.n_train}")
    updates = [
        (
            "actor_rollout_ref.actor.ppo_mini_batch_size",
            actor_mini,
            f"tempo.{policy_stream}.batch_size",
            policy_batch,
            n,
        )
    ]
    if config.critic.enable and settings.labeled.files:
        labeled = settings.labeled
        critic_mini = settings.calibration.mini_batch_size
        updates.append(
            (
                "tempo.calibration.mini_batch_size",
                critic_mini,
                "tempo.labeled.batch_size",
                labeled.batch_size,
                labeled.n,
            )
        )
    for mini_name, mini, batch_name, batch, samples in updates:
        if mini > batch or batch % mini:
            raise UserError(f"{mini_name}={mini} does not divide {batch_name}={batch}; choose a divisor of {batch}")
        if _is_fsdp(config) and mini * samples % ranks:
            raise UserError(
                f"{mini_name}={mini} makes {mini * samples} samples an update, not a multiple of the {ranks} "
                "data-parallel training processes (trainer.n_gpus_per_node x trainer.nnodes); change one of them"
            )


def _check_lengths(config: DictConfig) -> None:
    if not _is_fsdp(config):
        return
    longest = config.data.max_prompt_length + config.data.max_response_length
    for field in (
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
        "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu",
        "critic.ppo_max_token_len_per_gpu",
    ):
        budget = OmegaConf.select(config, field)
        section = config.critic if field.startswith("critic") else config.actor_rollout_ref.actor
        if section.use_dynamic_bsz and budget is not None and budget * _sequence_parallel(config) < longest:
            raise UserError(
                f"{field}={budget} is less than data.max_prompt_length + data.max_response_length={longest}: "
                "a micro-batch must hold the longest sample; raise it or shorten the samples"
            )


def _sequence_parallel(config: DictConfig) -> int:
    """Processes that share a sequence (Ulysses, FSDP only)."""
    actor = config.actor_rollout_ref.actor
    named = (OmegaConf.select(actor, "ulysses_sequence_parallel_size"), OmegaConf.select(actor, SEQUENCE_PARALLEL))
    return max(size or 1 for size in named)


def _is_fsdp(config: DictConfig) -> bool:
    return str(config.actor_rollout_ref.actor.strategy).startswith("fsdp")


# ---------------------------------------------------------------------- data


def _check_data(config: DictConfig, settings: TempoSettings) -> None:
    from tempo_verl.data.validation import check_disjoint, read_questions
    from tempo_verl.rewards import check_style

    streams, labeled = [], None
    if settings.kind.needs_labeled or settings.labeled.files:
        labeled = read_questions("tempo.labeled.files", settings.labeled.files, needs_answers=True)
        streams.append(("tempo.labeled", settings.labeled.batch_size, 1, labeled))
    if settings.uses_unlabeled:
        unlabeled = read_questions(
            "tempo.unlabeled.files", settings.unlabeled.files, needs_answers=settings.kind.reward == "verdict"
        )
        if labeled is not None:
            check_disjoint(labeled, unlabeled)
        streams.append(("tempo.unlabeled", settings.unlabeled.batch_size, settings.unlabeled.repeat, unlabeled))
    for _, _, _, questions in streams:
        for style in questions.styles:
            check_style(style)
    for name, batch_size, repeat, questions in streams:
        if batch_size > repeat * len(questions):
            raise UserError(
                f"{name}.batch_size={batch_size} is larger than the set ({len(questions)} questions in "
                f"{questions.source}); set it to at most {repeat * len(questions)}"
                + (", or raise tempo.unlabeled.repeat" if name == "tempo.unlabeled" else "")
            )
    # verl opens the validation files of a run that never validates, too
    validates = config.trainer.test_freq > 0 or config.trainer.val_before_train
    read_questions("data.val_files", config.data.val_files, needs_answers=validates)


# ---------------------------------------------------------------------- checkpoints


def _check_checkpoints(config: DictConfig, settings: TempoSettings) -> None:
    from tempo_verl.data.validation import read_judging_sources

    checkpoints, data_sources = Checkpoints.from_config(config), []
    if checkpoints.keep == "all":
        return
    keep = f"tempo.checkpoint.keep={checkpoints.keep}"
    for field, neutral in IN_THE_WAY_OF_KEEP:
        value = OmegaConf.select(config, field)
        if value not in (neutral, None):
            raise UserError(
                f"{field}={value} does not go with {keep}; leave it at {_written(neutral)}, or set keep=all"
            )
    if checkpoints.keeps_best:
        if config.trainer.test_freq <= 0:
            raise UserError(
                f"trainer.test_freq={config.trainer.test_freq}: {keep} goes by the accuracy in validation; set it to "
                "the number of rounds between two validations"
            )
        data_sources = read_judging_sources(
            config.data.val_files, settings.unlabeled.files, settings.checkpoint.validation
        )
    checkpoints.check_start(config.trainer.resume_mode, data_sources)


def _check_predictions(settings: TempoSettings) -> None:
    if settings.predictions.file is None or not settings.uses_unlabeled:
        return
    path = Path(settings.predictions.file)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(
            f"tempo.predictions.file={path}: a file cannot be written there; name another, or set it to null"
        )


# ---------------------------------------------------------------------- models


def _check_models(config: DictConfig) -> None:
    for field in ("actor_rollout_ref.model", *(["critic.model"] if config.critic.enable else [])):
        path = OmegaConf.select(config, f"{field}.path")
        if path is None:
            raise UserError(f"{field}.path is not set; give a Hugging Face directory or name")
        if path.startswith("~"):
            raise UserError(f"{field}.path={path}: verl does not expand ~; write the path out")
        local = Path(path)
        if (path.startswith((".", "/")) or path.count("/") > 1) and not (local / "config.json").is_file():
            raise UserError(f"{field}.path={path}: no config.json there; give a Hugging Face directory")
        if local.is_dir():
            _check_vocabulary(field, local, OmegaConf.select(config, field))
    if config.critic.enable:
        _check_value_head(config)
    _check_lora(config)


def _check_value_head(config: DictConfig) -> None:
    critic = Path(config.critic.model.path)
    if config.critic.allow_new_value_head:
        return
    if not _is_fsdp(config) and config.trainer.resume_mode != "resume_path":
        raise UserError(
            f"critic.model.path={critic}: Megatron reads no Hugging Face value head; resume a Megatron checkpoint "
            "(trainer.resume_mode=resume_path, trainer.resume_from_path=...) or set critic.allow_new_value_head=true"
        )
    if _is_fsdp(config) and critic.is_dir():
        missing = missing_value_head(critic, config.critic.model.trust_remote_code)
        if missing:
            raise UserError(missing_head_message(str(critic), missing))


def _check_lora(config: DictConfig) -> None:
    model = config.actor_rollout_ref.model
    lora = model.get("lora") or {}
    if config.actor_rollout_ref.rollout.name != "transformers" or lora.get("merge"):
        return
    if model.get("lora_rank", 0) > 0 or lora.get("rank", 0) > 0:
        raise UserError(
            "actor_rollout_ref.model.lora_rank: rollout.name=transformers takes whole weights only; "
            "set actor_rollout_ref.model.lora.merge=true"
        )


def _check_vocabulary(field: str, model: Path, options: DictConfig) -> None:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer_path, trust = options.get("tokenizer_path") or str(model), options.trust_remote_code
    try:
        tokens = len(AutoTokenizer.from_pretrained(tokenizer_path, trust_remote_code=trust))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{field}.tokenizer_path={tokenizer_path}: no tokenizer there ({str(error).splitlines()[0]}); "
            "give the Hugging Face directory that holds it"
        ) from error
    vocabulary = AutoConfig.from_pretrained(model, trust_remote_code=trust).get_text_config().vocab_size
    if tokens > vocabulary or vocabulary - tokens > MOST_UNUSED_IDS * vocabulary:
        raise UserError(
            f"{field}.path={model}: the model's vocabulary has {vocabulary} ids, its tokenizer {tokens}; "
            "use the tokenizer the model was trained with"
        )


# ---------------------------------------------------------------------- Ray


def required_cpus(num_ranks: int, num_storage_units: int) -> int:
    """Logical CPUs of Ray that a run holds, plus one in which the actors that hold none can start.

    verl reserves 3 for each training process, TransferQueue 1 for its controller and 1 for each storage unit. With
    fewer, TransferQueue's actors wait for ever and verl hangs without a message.
    """
    return 3 * num_ranks + num_storage_units + 2


def _check_ray(config: DictConfig) -> None:
    required = required_cpus(
        config.trainer.n_gpus_per_node * config.trainer.nnodes,
        config.transfer_queue.backend.SimpleStorage.num_data_storage_units,
    )
    available, where = _available_cpus(config)
    if available < required:
        raise UserError(
            f"{where} has {available:g} CPUs, this run needs {required} "
            f"(3 for each training process, 1 for each of TransferQueue's storage units, 2 more); "
            "raise ray_kwargs.ray_init.num_cpus or lower transfer_queue.backend.SimpleStorage.num_data_storage_units"
        )


def _check_storage(config: DictConfig, settings: TempoSettings) -> None:
    storage = config.transfer_queue.backend.SimpleStorage
    if not settings.calibration.replay.prompts:
        return
    labeled = settings.labeled.batch_size * settings.labeled.n
    unlabeled = settings.unlabeled.batch_size * config.actor_rollout_ref.rollout.n
    needed = (settings.calibration.replay.window + 1) * labeled + labeled + unlabeled
    if needed > storage.total_storage_size:
        raise UserError(
            f"tempo.calibration.replay.window={settings.calibration.replay.window} keeps samples in TransferQueue, "
            f"which would have to hold {needed} and holds {storage.total_storage_size}; lower it, or raise "
            "transfer_queue.backend.SimpleStorage.total_storage_size"
        )


def _available_cpus(config: DictConfig) -> tuple[float, str]:
    import ray
    from ray._private.services import canonicalize_bootstrap_address

    if ray.is_initialized():
        return ray.cluster_resources().get("CPU", 0), "the Ray cluster"
    options = config.ray_kwargs.get("ray_init", {})
    try:
        address = canonicalize_bootstrap_address(options.get("address"))  # as ray.init() will find it
        if address:
            ray.init(address=address, logging_level="ERROR")
    except (ConnectionError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers ({str(error).splitlines()[0]}); check ray_kwargs.ray_init.address and RAY_ADDRESS"
        ) from error
    if address:
        try:
            return ray.cluster_resources().get("CPU", 0), f"the Ray cluster at {address}"
        finally:
            ray.shutdown()
    if options.get("num_cpus") is not None:
        return options.num_cpus, "ray_kwargs.ray_init.num_cpus: Ray"
    return os.cpu_count() or 1, "this machine"
