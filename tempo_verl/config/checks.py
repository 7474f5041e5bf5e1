# SPDX-License-Identifier: Apache-2.0
"""Checks of the settings: each user's mistake ends in one line that names the place and the remedy.

They take a second, because nothing here imports torch, transformers or verl. Ray is not started; an existing cluster is
asked for its CPUs. ``preflight.py`` has the checks that do, and runs all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from omegaconf import DictConfig, OmegaConf

from tempo_verl.compat import check_verl_version
from tempo_verl.config.ahead import check_ahead
from tempo_verl.config.cluster import check_processes, check_ray, check_storage
from tempo_verl.config.files import (
    check_checkpoints,
    check_paths,
    check_predictions,
    check_questions,
    written,
)
from tempo_verl.config.layout import Pass, Role, roles
from tempo_verl.config.models import check_model_settings
from tempo_verl.config.resume import check_resume
from tempo_verl.config.schema import read_settings
from tempo_verl.config.secrets import check_secrets
from tempo_verl.config.start import check_start
from tempo_verl.errors import UserError
from tempo_verl.methods import Method

# Settings of verl that TEMPO does not read, or that verl itself does not: field, the value that asks for nothing, what
# to use instead.
WITHOUT_EFFECT = (
    ("actor_rollout_ref.actor.ppo_micro_batch_size", None, "use actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"),
    (
        "actor_rollout_ref.rollout.log_prob_micro_batch_size",
        None,
        "use actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu",
    ),
    ("algorithm.adv_estimator", "gae", "the advantage is TEMPO's own"),
    ("algorithm.use_pf_ppo", False, "samples are not drawn by preference: the advantage is TEMPO's own"),
    ("algorithm.filter_groups.enable", False, "prompts that are all right or all wrong calibrate the critic as well"),
    ("critic.ppo_epochs", 1, "use tempo.calibration.epochs"),
    ("critic.ppo_micro_batch_size", None, "use critic.ppo_micro_batch_size_per_gpu"),
    ("critic.ulysses_sequence_parallel_size", 1, "use critic.fsdp.ulysses_sequence_parallel_size"),
    ("reward.custom_reward_function.path", None, "name your verifier in reward_model.style and tempo.verifier.allow"),
    ("reward.reward_model.enable", False, "the reward is the verifier's verdict or the critic's value"),
    ("trainer.critic_warmup", 0, "use tempo.calibration.warmup_rounds"),
    ("trainer.v1.sampler.custom_sampler.path", None, "a round trains on all of its rollouts"),
    ("trainer.v1.sampler.sync_refill_failed_groups", False, "failed prompts are left out"),
)

# What to do instead of choosing one of verl's asynchronous trainers
ASYNCHRONOUS = {
    "colocate_async": "; tempo.ahead.streams does what this one does",
    "separate_async": "; there is no TEMPO on this one, see docs/asynchronous.md",
}

RAY = "Ray's CPUs and GPUs"
# Length of the rows that verl adds where a batch does not divide.
SYNTHETIC_TOKENS = 128

# The trainer takes the critic's budget from the first, of training too; the second reaches nothing.
ONE_BUDGET = ("critic.ppo_infer_max_token_len_per_gpu", "critic.forward_max_token_len_per_gpu")


def check_settings(config: DictConfig, *, ray: bool = True) -> None:
    """Run every check that needs neither a model nor verl, torch or transformers, the cheapest first.

    Args:
        ray: look at Ray's CPUs and GPUs, too.

    Raises:
        UserError: the first mistake found.
    """
    check_verl_version()
    check_secrets(config)
    method = read_settings(config)
    for title, look in SETTINGS:
        if ray or title != RAY:
            look(config, method)


def check_divisions(config: DictConfig, method: Method) -> None:
    """The checks of sizes alone, for a plan without files: batches over processes, and what a micro-batch must hold.

    Raises:
        UserError: the first mistake found.
    """
    _check_layout(config)
    _check_batches(config, method)
    _check_lengths(config)


def _check_algorithm(config: DictConfig, method: Method) -> None:
    if config.trainer.v1.trainer_mode != "tempo":
        mode = config.trainer.v1.trainer_mode
        raise UserError(
            f"trainer.v1.trainer_mode={mode}: must be tempo for this configuration{ASYNCHRONOUS.get(mode, '')}"
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
            raise UserError(f"{field}={value} would have no effect ({instead}); leave it at {written(neutral)}")
    if method.reads_answers and not method.settings.allow_labels_on_unlabeled:
        raise UserError(
            f"method={method.settings.method} trains on the answers of D_U, an upper bound and no test-time training; "
            "set tempo.allow_labels_on_unlabeled=true if that is what you want"
        )
    if config.trainer.val_only and not config.trainer.val_before_train:
        raise UserError(
            "trainer.val_only=true would train where trainer.val_before_train=false; set that to true as well"
        )
    for field in ("actor_rollout_ref.actor.optim.lr", "critic.optim.lr"):
        rate = OmegaConf.select(config, field)
        if not isinstance(rate, int | float) or rate < 0:
            raise UserError(f"{field}={written(rate)} must be a number, 0 or more")


def _check_rollout_correction(config: DictConfig) -> None:
    """What verl would find out in the first update, or not at all."""
    field, correction = "algorithm.rollout_correction", config.algorithm.rollout_correction
    bypass, loss = correction.bypass_mode, config.actor_rollout_ref.actor.policy_loss.loss_mode
    asked = [name for name in ("rollout_is", "rollout_rs") if correction[name] is not None]
    if (asked or bypass) and not config.actor_rollout_ref.rollout.calculate_log_probs:
        raise UserError(
            f"{field}.{asked[0] if asked else 'bypass_mode'} needs the inference engine's log-probabilities; set "
            "actor_rollout_ref.rollout.calculate_log_probs=true"
        )
    if bypass and asked and loss != "bypass_mode":
        raise UserError(
            f"{field}.{asked[0]}={correction[asked[0]]} would have no effect with bypass_mode=true and this loss; set "
            "it to null, or actor_rollout_ref.actor.policy_loss.loss_mode=bypass_mode"
        )
    if loss == "bypass_mode" and not (bypass and asked):
        raise UserError(
            f"actor_rollout_ref.actor.policy_loss.loss_mode=bypass_mode is for {field}.bypass_mode=true with "
            "rollout_is or rollout_rs; set them, or choose another loss"
        )
    if bypass and correction.rollout_is is not None and correction.loss_type == "ppo_clip":
        raise UserError(
            f"{field}.rollout_is={correction.rollout_is} would have no effect with bypass_mode=true and "
            "loss_type=ppo_clip, whose ratio is to the inference engine's probabilities already; set it to null, or "
            "loss_type=reinforce"
        )


def _check_calibration(config: DictConfig, method: Method) -> None:
    """Critic and E-step: what the method needs, and what would have no effect in this run."""
    settings, calibration, name = method.settings, method.settings.calibration, method.settings.method
    enabled = bool(config.critic.enable)
    if method.needs.critic is True and not enabled:
        raise UserError(f"critic.enable={config.critic.enable}: method={name} needs a critic, set it to true")
    if method.needs.critic is False and enabled:
        raise UserError(f"critic.enable={config.critic.enable}: method={name} has no use for a critic, set it to false")
    if settings.advantage == "baseline" and not enabled:
        raise UserError("tempo.advantage=baseline needs a critic: set tempo.advantage=group, or critic.enable=true")
    if calibration.gate.min_auroc is not None and not (method.has_gate and calibration.interval):
        raise UserError(
            f"tempo.calibration.gate.min_auroc={calibration.gate.min_auroc}: the gate is for rewards of a critic "
            f"whose AUROC on D_L is measured, which this run (method={name}, tempo.calibration.interval="
            f"{calibration.interval}) has not; set it to null"
        )
    why = None
    if not enabled:
        why = "there is no critic (critic.enable=false)"
    elif not method.fits_critic:
        why = f"method={name} has no E-step"
    elif not settings.labeled.files:
        why = "there are no labelled questions (tempo.labeled.files is not set)"
    if calibration.warmup_rounds and why:
        raise UserError(
            f"tempo.calibration.warmup_rounds={calibration.warmup_rounds}: there is nothing to warm up, {why}; "
            "set it to 0"
        )
    gated = calibration.gate.min_auroc is not None
    if not (method.every_round or calibration.interval or calibration.warmup_rounds or gated):
        why = why or "no round has an E-step (tempo.calibration.interval=0)"
    if calibration.replay.prompts and why:
        raise UserError(
            f"tempo.calibration.replay.prompts={calibration.replay.prompts} would have no effect: {why}; leave it at 0"
        )
    if gated and not settings.labeled.files:
        raise UserError(
            f"tempo.calibration.gate.min_auroc={calibration.gate.min_auroc}: the critic is measured on labelled "
            "questions; set tempo.labeled.files, or the gate to null"
        )


def _check_layout(config: DictConfig) -> None:
    """Processes that share rows or sequences: whether there are as many, and whether the batches are packed."""
    for role in roles(config).values():
        sharing = {field: size for field, size in role.sharing.items() if size > 1}
        if role.processes % prod(sharing.values()):
            told = " x ".join(f"{field}={size}" for field, size in sharing.items())
            raise UserError(
                f"{told}: does not divide the {role.processes} training processes (trainer.n_gpus_per_node x "
                "trainer.nnodes); change one of them"
            )
        if role.name == "critic" and role.get(f"{role.model}.use_fused_kernels"):
            raise UserError(
                f"{role.model}.use_fused_kernels=true: they make log-probabilities, a critic values; set it to false"
            )
        if not role.is_fsdp or role.sequence == 1:
            continue
        shared = f"{role.sequence_field}={role.sequence}"
        if not role.get(f"{role.model}.use_remove_padding"):
            raise UserError(
                f"{shared} needs packed sequences; set {role.model}.use_remove_padding=true, or the former to 1"
            )


def _check_batches(config: DictConfig, method: Method) -> None:
    actor_mini = config.actor_rollout_ref.actor.ppo_mini_batch_size
    settings, policy_stream = method.settings, method.learns_on()
    policy_batch = getattr(settings, policy_stream).batch_size
    n = config.actor_rollout_ref.rollout.n
    if not method.needs.unlabeled and settings.labeled.n != n:
        raise UserError(
            f"tempo.labeled.n={settings.labeled.n} must equal actor_rollout_ref.rollout.n={n} in "
            f"method={settings.method}"
        )
    batch_name = f"tempo.{policy_stream}.batch_size"
    updates = [("actor", "actor_rollout_ref.actor.ppo_mini_batch_size", actor_mini, batch_name, policy_batch, n)]
    batches = [(batch_name, policy_batch, n, ("actor", "reference", "critic"))]
    if config.critic.enable and settings.labeled.files:
        labeled, critic_mini = settings.labeled, settings.calibration.mini_batch_size
        updates.append(
            (
                "critic",
                "tempo.calibration.mini_batch_size",
                critic_mini,
                "tempo.labeled.batch_size",
                labeled.batch_size,
                labeled.n,
            )
        )
        batches.append(("tempo.labeled.batch_size", labeled.batch_size, labeled.n, ("critic",)))
    found = roles(config)
    for name, mini_name, mini, batch_name, batch, samples in updates:
        if mini > batch or batch % mini:
            raise UserError(f"{mini_name}={mini} does not divide {batch_name}={batch}; choose a divisor of {batch}")
        role = found[name]
        assert role.update is not None
        _check_whole(role, role.update, f"{mini_name}={mini}", mini * samples, "samples an update")
    if settings.actor_on_labeled or method.mixes_streams:
        batches = batches[1:]  # the policy's has labelled rows as well, and synthetic ones make it whole
    for batch_name, batch, samples, readers in batches:
        for role in (found[name] for name in readers if name in found):
            _check_whole(role, role.forward, f"{batch_name}={batch}", batch * samples, "samples a round")


def _check_whole(role: Role, of: Pass, told: str, rows: int, what: str) -> None:
    """Each process of a role has as many rows, in whole micro-batches."""
    if role.ranks is None:
        return
    if rows % role.ranks:
        raise UserError(
            f"{told} makes {rows} {what}, not a multiple of the {role.ranks} data-parallel training processes of the "
            f"{role.name} (trainer.n_gpus_per_node x trainer.nnodes{_shared(role)}); change one of them"
        )
    if role.dynamic:
        return
    size = role.get(of.rows)
    if size is None:
        raise UserError(
            f"{of.rows} is not set, and {role.dynamic_field}=false asks for micro-batches of so many rows; set both"
        )
    if rows // role.ranks % size:
        raise UserError(
            f"{of.rows}={size} does not divide the {rows // role.ranks} samples that {told} leaves for each of the "
            f"{role.ranks} data-parallel training processes of the {role.name}; choose a divisor, or "
            f"{role.dynamic_field}=true"
        )


def _shared(role: Role) -> str:
    return "".join(f" / {field}" for field, size in role.sharing.items() if size > 1)


def _check_lengths(config: DictConfig) -> None:
    for field in ONE_BUDGET if config.critic.enable else ():
        told, read = OmegaConf.select(config, field), config.critic.ppo_max_token_len_per_gpu
        if told not in (None, read):
            raise UserError(
                f"{field}={told}: verl has one budget for all passes of the critic; leave it at "
                f"critic.ppo_max_token_len_per_gpu={read}, or change that"
            )
    longest = config.data.max_prompt_length + config.data.max_response_length
    for role in roles(config).values():
        if not role.dynamic or role.ranks is None or role.dynamic_context:
            continue
        for field in (of.tokens for of in role.passes):
            budget = role.get(field)
            if budget is not None and budget * role.sequence < longest:
                shared = f" x {role.sequence_field}={role.sequence}" if role.sequence > 1 else ""
                raise UserError(
                    f"{field}={budget}{shared} is less than data.max_prompt_length + data.max_response_length="
                    f"{longest}: a micro-batch must hold the longest sample; raise it or shorten the samples"
                )
            if budget is not None and budget * role.sequence < SYNTHETIC_TOKENS:
                raise UserError(
                    f"{field}={budget}: verl adds rows of {SYNTHETIC_TOKENS} tokens where a batch does not divide, and "
                    f"a micro-batch must hold one; set it to {-(-SYNTHETIC_TOKENS // role.sequence)} or more"
                )


# What is looked at, in a few words, and the check. Each can be run without the others: `tempo-verl doctor` does.
SETTINGS: tuple[tuple[str, Callable[[DictConfig, Method], object]], ...] = (
    ("paths", lambda config, method: check_paths(config)),
    ("the run to start from", lambda config, method: check_start(config, method.settings)),
    ("algorithm", _check_algorithm),
    ("rollout correction", lambda config, method: _check_rollout_correction(config)),
    ("calibration", _check_calibration),
    ("rollouts ahead", check_ahead),
    ("layout", lambda config, method: _check_layout(config)),
    ("batches", _check_batches),
    ("token budgets", lambda config, method: _check_lengths(config)),
    ("training processes", lambda config, method: check_processes(config)),
    ("the method's own", lambda config, method: method.check(config)),
    ("question files", check_questions),
    ("resuming", check_resume),
    ("checkpoints", check_checkpoints),
    ("predictions", lambda config, method: check_predictions(method)),
    ("model settings", lambda config, method: check_model_settings(config)),
    ("TransferQueue", lambda config, method: check_storage(config, method.settings)),
    (RAY, lambda config, method: check_ray(config)),
)
