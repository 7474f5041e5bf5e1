# SPDX-License-Identifier: Apache-2.0
"""Where our checks meet verl's layouts: for each seam, configurations that are accepted beside those that are not."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from transfer_queue import KVBatchMeta
from transformers import AutoConfig, AutoTokenizer

from tempo_verl import launch
from tempo_verl.config import checks, preflight
from tempo_verl.config.files import check_paths, check_questions
from tempo_verl.config.layout import roles
from tempo_verl.config.models import check_fetched, check_models, check_prompts, layers_with_state
from tempo_verl.config.resume import Fingerprint, check_resume
from tempo_verl.config.schema import read_settings
from tempo_verl.errors import UserError
from tempo_verl.trainer import port as ports
from tempo_verl.trainer.batch import Samples
from tempo_verl.trainer.log import Log
from tempo_verl.trainer.manifest import write_manifest
from tempo_verl.trainer.port import Port

ACTOR, REF, CRITIC = "actor_rollout_ref.actor", "actor_rollout_ref.ref", "critic"
SP = "ulysses_sequence_parallel_size"
ACTOR_SP, REF_SP, CRITIC_SP = f"{ACTOR}.fsdp_config.{SP}", f"{REF}.fsdp_config.{SP}", f"critic.fsdp.{SP}"
ACTOR_ATTENTION = "actor_rollout_ref.model.override_config.attn_implementation"
CRITIC_ATTENTION = "critic.model.override_config.attn_implementation"
CRITIC_TOKENS = "critic.ppo_max_token_len_per_gpu"
REF_TOKENS = f"{REF}.log_prob_max_token_len_per_gpu"
CRITIC_RANKS = "the 8 data-parallel training processes of the critic"
FUSED = "actor_rollout_ref.model.use_fused_kernels"
EXPERTS = f"{ACTOR}.megatron.expert_model_parallel_size"
KL = {f"{ACTOR}.use_kl_loss": True}
FIXED_ACTOR = {
    f"{ACTOR}.use_dynamic_bsz": False,
    "critic.use_dynamic_bsz": True,
    f"{ACTOR}.ppo_micro_batch_size_per_gpu": 2,
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 2,
}
FIXED_CRITIC = {"critic.use_dynamic_bsz": False, "critic.ppo_micro_batch_size_per_gpu": 2}


def tp_pp_cp(section: str, tensor: int, pipeline: int, context: int = 1) -> dict[str, int]:
    sizes = {"tensor": tensor, "pipeline": pipeline}
    return {f"{section}.megatron.{name}_model_parallel_size": size for name, size in sizes.items()} | {
        f"{section}.megatron.context_parallel_size": context
    }


# Seam -> hardware, what is changed, and what the refusal tells (None: accepted). Eight processes; 8 prompts with 2
# responses in either stream, all of them one update; 10,240 tokens; models with 4 heads.
SEAMS: dict[str, list[tuple[str, dict[str, Any], tuple[str, ...] | None]]] = {
    "sequences are shared by flash attention": [
        ("fsdp", {}, None),
        ("fsdp", {ACTOR_SP: 4, CRITIC_SP: 4}, None),  # verl's default is flash_attention_2
        ("fsdp", {CRITIC_SP: 2, CRITIC_ATTENTION: "flash_attention_3"}, None),
        ("fsdp", {CRITIC_SP: 2, CRITIC_ATTENTION: "sdpa"}, (f"{CRITIC_ATTENTION}=sdpa", f"{CRITIC_SP}=2")),
        ("fsdp", {ACTOR_SP: 2, CRITIC_ATTENTION: "sdpa"}, None),  # each by its own
        ("fsdp", {ACTOR_SP: 2, ACTOR_ATTENTION: "sdpa"}, (f"{ACTOR_ATTENTION}=sdpa", f"{ACTOR_SP}=2")),
        ("fsdp", {f"{ACTOR}.{SP}": 2, ACTOR_ATTENTION: "eager"}, (f"{ACTOR_ATTENTION}=eager", f"{ACTOR}.{SP}=2")),
        ("fsdp", {ACTOR_SP: 2, ACTOR_ATTENTION: "flex_attention"}, (f"{ACTOR_ATTENTION}=flex_attention",)),
        ("fsdp", {CRITIC_SP: 2, CRITIC_ATTENTION: "paged|flash_attention_2"}, ("paged|flash_attention_2",)),
        ("fsdp", {CRITIC_SP: 2, CRITIC_ATTENTION: "nobody_knows"}, ("attn_implementation=nobody_knows",)),
        ("fsdp", {REF_SP: 2, ACTOR_ATTENTION: "sdpa"}, None),  # no reference in this run
        ("fsdp", {**KL, REF_SP: 2, ACTOR_ATTENTION: "sdpa"}, (f"{ACTOR_ATTENTION}=sdpa", f"{REF_SP}=2")),
        ("fsdp", {CRITIC_SP: 2, "critic.model.use_remove_padding": False}, (f"{CRITIC_SP}=2 needs packed sequences",)),
        ("fsdp", {"trainer.n_gpus_per_node": 4, CRITIC_SP: 8}, ("does not divide the 4 training processes",)),
        ("cpu", {"trainer.n_gpus_per_node": 2, CRITIC_SP: 2}, (f"{CRITIC_SP}=2 needs packed sequences",)),
    ],
    "each role has a layout of its own": [
        ("fsdp", {ACTOR_SP: 4, "tempo.calibration.mini_batch_size": 4}, None),
        (
            "fsdp",
            {ACTOR_SP: 4, "tempo.calibration.mini_batch_size": 2},
            ("tempo.calibration.mini_batch_size=2 makes 4 samples", CRITIC_RANKS),
        ),
        ("fsdp", {CRITIC_SP: 4, "tempo.calibration.mini_batch_size": 2}, None),  # 2 ranks
        ("fsdp", {ACTOR_SP: 2, CRITIC_SP: 2, f"{ACTOR}.ppo_mini_batch_size": 2}, None),
        (
            "fsdp",
            {CRITIC_SP: 2, f"{ACTOR}.ppo_mini_batch_size": 2},
            (f"{ACTOR}.ppo_mini_batch_size=2 makes 4 samples", "the 8 data-parallel training processes of the actor"),
        ),
        # the critic passes over the policy's batch, the reference too
        ("fsdp", {ACTOR_SP: 4, "tempo.unlabeled.batch_size": 4}, None),
        (
            "fsdp",
            {ACTOR_SP: 4, "tempo.unlabeled.batch_size": 2},
            ("tempo.unlabeled.batch_size=2 makes 4 samples a round", CRITIC_RANKS),
        ),
        ("fsdp", {ACTOR_SP: 4, "tempo.unlabeled.batch_size": 2, "tempo.actor_on_labeled": True}, None),  # joined
        ("fsdp", {ACTOR_SP: 4, CRITIC_SP: 4, "tempo.unlabeled.batch_size": 2}, None),
        (
            "fsdp",
            {**KL, ACTOR_SP: 4, CRITIC_SP: 4, "tempo.unlabeled.batch_size": 2},
            ("tempo.unlabeled.batch_size=2 makes 4 samples a round", "processes of the reference"),
        ),
        # verl hands the deprecated field of the actor on to the reference
        ("fsdp", {**KL, f"{ACTOR}.{SP}": 4, CRITIC_SP: 4, "tempo.unlabeled.batch_size": 2}, None),
        ("fsdp", {f"critic.{SP}": 4}, (f"critic.{SP}=4 would have no effect", f"use {CRITIC_SP}")),
        ("fsdp", {"trainer.n_gpus_per_node": 6, CRITIC_SP: 4}, (f"{CRITIC_SP}=4: does not divide the 6",)),
    ],
    "a micro-batch holds the longest sample": [
        ("fsdp", {CRITIC_TOKENS: 10_240}, None),
        ("fsdp", {CRITIC_TOKENS: 10_239}, ("critic.ppo_max_token_len_per_gpu=10239 is less",)),
        ("fsdp", {CRITIC_SP: 4, CRITIC_TOKENS: 4096}, None),
        ("fsdp", {ACTOR_SP: 4, CRITIC_TOKENS: 4096}, (f"{CRITIC_TOKENS}=4096",)),
        (
            "fsdp",
            {CRITIC_SP: 2, CRITIC_TOKENS: 4096},
            (f"critic.ppo_max_token_len_per_gpu=4096 x {CRITIC_SP}=2 is less",),
        ),
        ("fsdp", {ACTOR_SP: 4, f"{ACTOR}.ppo_max_token_len_per_gpu": 4096}, None),
        ("fsdp", {CRITIC_SP: 4, f"{ACTOR}.ppo_max_token_len_per_gpu": 4096}, ("ppo_max_token_len_per_gpu=4096",)),
        ("fsdp", {REF_TOKENS: 4096}, None),  # no reference
        ("fsdp", {**KL, REF_TOKENS: 4096}, (f"{REF_TOKENS}=4096",)),
        ("fsdp", {**FIXED_CRITIC, CRITIC_TOKENS: 4096}, None),  # not read
        ("fsdp", {"critic.ppo_infer_max_token_len_per_gpu": 20_000}, ("=20000: verl has one budget", "=32768")),
        ("fsdp", {"critic.forward_max_token_len_per_gpu": 20_000}, ("=20000: verl has one budget", "=32768")),
        ("megatron", {CRITIC_TOKENS: 4096}, ("critic.ppo_max_token_len_per_gpu=4096 is less",)),
        ("megatron", {**tp_pp_cp("critic", 1, 1, 4), CRITIC_TOKENS: 4096}, None),
        ("megatron", {**tp_pp_cp("critic", 4, 1), CRITIC_TOKENS: 4096}, ("=4096 is less",)),
    ],
    "Megatron's layouts": [
        ("megatron", {}, None),
        ("megatron", {**tp_pp_cp(ACTOR, 2, 2), **tp_pp_cp(CRITIC, 2, 2), "tempo.calibration.mini_batch_size": 1}, None),
        (
            "megatron",
            {**tp_pp_cp(ACTOR, 2, 2), "tempo.calibration.mini_batch_size": 1},
            ("tempo.calibration.mini_batch_size=1 makes 2 samples", CRITIC_RANKS),
        ),
        ("megatron", {**tp_pp_cp(ACTOR, 2, 2, 2), f"{ACTOR}.ppo_mini_batch_size": 1}, None),
        (
            "megatron",
            {**tp_pp_cp(ACTOR, 2, 1, 2), EXPERTS: 2, f"{ACTOR}.ppo_mini_batch_size": 1},
            None,
        ),
        (
            "megatron",
            {EXPERTS: 8, f"{ACTOR}.ppo_mini_batch_size": 1},
            (f"{ACTOR}.ppo_mini_batch_size=1 makes 2 samples", "8 data-parallel training processes of the actor"),
        ),
        (
            "megatron",
            tp_pp_cp(CRITIC, 2, 3),
            (
                "critic.megatron.tensor_model_parallel_size=2 x critic.megatron.pipeline_model_parallel_size=3: "
                "does not divide the 8 training processes",
            ),
        ),
        ("megatron", {CRITIC_ATTENTION: "sdpa", **tp_pp_cp(CRITIC, 1, 1, 2)}, None),  # an attention of its own
        ("megatron", {"trainer.default_hdfs_dir": "hdfs://cluster/run"}, None),
    ],
    "micro-batches of a fixed number of rows": [
        ("fsdp", FIXED_CRITIC, None),
        ("fsdp", {"critic.use_dynamic_bsz": False}, ("critic.ppo_micro_batch_size_per_gpu is not set",)),
        (
            "fsdp",
            {**FIXED_CRITIC, "critic.ppo_micro_batch_size_per_gpu": 4},
            ("critic.ppo_micro_batch_size_per_gpu=4 does not divide the 2 samples", "critic.use_dynamic_bsz=true"),
        ),
        ("fsdp", {**FIXED_CRITIC, CRITIC_SP: 2, "critic.ppo_micro_batch_size_per_gpu": 4}, None),
        ("fsdp", {**FIXED_CRITIC, "critic.forward_micro_batch_size_per_gpu": 1}, None),
        (
            "fsdp",
            {**FIXED_CRITIC, "critic.forward_micro_batch_size_per_gpu": 4},
            ("critic.ppo_infer_micro_batch_size_per_gpu=4 does not divide the 2 samples",),
        ),
        ("fsdp", {"critic.ppo_micro_batch_size": 8}, ("critic.ppo_micro_batch_size=8 would have no effect",)),
        ("fsdp", FIXED_ACTOR, None),
        (
            "fsdp",
            {**FIXED_ACTOR, "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 4},
            ("actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4 does not divide the 2 samples",),
        ),
        ("fsdp", {**FIXED_ACTOR, **KL}, (f"{REF}.log_prob_micro_batch_size_per_gpu is not set",)),
        ("megatron", FIXED_CRITIC, None),
    ],
    "models and kernels": [
        ("fsdp", {CRITIC_SP: 4}, None),
        ("fsdp", {CRITIC_SP: 8}, (f"{CRITIC_SP}=8 does not divide the 4 attention heads",)),
        ("fsdp", {"critic.model.use_fused_kernels": True}, ("critic.model.use_fused_kernels=true", "set it to false")),
        ("megatron", {"critic.model.use_fused_kernels": True}, ("critic.model.use_fused_kernels=true",)),
        (
            "fsdp",
            {FUSED: True},
            ("actor_rollout_ref.model.use_fused_kernels=true", "tie_word_embeddings=false"),
        ),
        (
            "fsdp",
            {
                FUSED: True,
                "actor_rollout_ref.model.override_config.tie_word_embeddings": True,
            },
            None,
        ),
        ("megatron", {FUSED: True}, None),  # kernels of its own
        ("fsdp", {"algorithm.use_pf_ppo": True}, ("algorithm.use_pf_ppo=True would have no effect",)),
    ],
    "paths on HDFS": [
        ("fsdp", {"critic.model.path": "hdfs://cluster/c", "actor_rollout_ref.model.path": "hdfs://cluster/p"}, None),
        ("fsdp", {"critic.model.path": "hdfs://cluster/critic/"}, ("hdfs://cluster/critic/: verl takes no path",)),
        ("fsdp", {"trainer.default_local_dir": "hdfs://cluster/run"}, ("trainer.default_local_dir=hdfs://cluster/run",)),
        (
            "fsdp",
            {"trainer.resume_from_path": "hdfs://cluster/run/global_step_5", "trainer.resume_mode": "resume_path"},
            ("trainer.resume_from_path=hdfs://cluster/run/global_step_5: must be on a file system",),
        ),
        ("fsdp", {"trainer.default_hdfs_dir": "hdfs://cluster/run"}, ("FSDP engine saves to trainer.default_local",)),
        ("fsdp", {"tempo.predictions.file": "hdfs://cluster/p.jsonl"}, ("tempo.predictions.file=hdfs://",)),
    ],
}  # fmt: skip

LOOK_AT_MODELS = ("models and kernels", "paths on HDFS")  # a third of a second each


@pytest.fixture(scope="module")
def bases(compose, long_models: tuple[Path, Path]) -> dict[str, DictConfig]:
    """A valid configuration for each hardware."""
    common = ["trainer.n_gpus_per_node=8", "tempo.unlabeled.batch_size=8"]
    large = [
        f"actor_rollout_ref.model.path='{long_models[0]}'",
        f"critic.model.path='{long_models[1]}'",
        "data.max_prompt_length=2048",
        "data.max_response_length=8192",
    ]
    found = {
        "fsdp": compose(["hardware=fsdp", *common, *large]),
        "megatron": compose(["hardware=megatron", *common, *large, "critic.allow_new_value_head=true"]),
        "cpu": compose(common),
    }
    for config in found.values():
        OmegaConf.set_struct(config, False)
    return found


@pytest.fixture
def changed(bases: dict[str, DictConfig]) -> Callable[..., DictConfig]:
    """``changed(hardware, {field: value})``: the valid configuration, changed."""

    def change(hardware: str, changes: dict[str, Any]) -> DictConfig:
        config = copy.deepcopy(bases[hardware])
        for field, value in changes.items():
            OmegaConf.update(config, field, value)
        return config

    return change


def refusal(config: DictConfig, models: bool = True) -> str | None:
    """What the checks of settings, and of models, say."""
    try:
        method = read_settings(config)
        check_paths(config)
        checks._check_algorithm(config, method)
        checks._check_layout(config)
        preflight._check_attention(config)
        checks._check_batches(config, method)
        checks._check_lengths(config)
        if models:
            check_models(config)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("seam", "hardware", "changes", "told"),
    [
        pytest.param(seam, *row, id=f"{seam}-{number}")
        for seam, rows in SEAMS.items()
        for number, row in enumerate(rows)
    ],
)
def test_a_seam(
    changed: Callable[..., DictConfig], seam: str, hardware: str, changes: dict[str, Any], told: tuple[str, ...] | None
) -> None:
    message = refusal(changed(hardware, changes), models=seam in LOOK_AT_MODELS)
    if told is None:
        assert message is None
        return
    assert message is not None
    assert message.splitlines() == [message]
    for part in told:
        assert part in message


# ---------------------------------------------------------------------- what verl does with these fields


@pytest.mark.parametrize(
    "changes",
    [{}, {ACTOR_SP: 4}, {f"{ACTOR}.{SP}": 2}, {f"{ACTOR}.{SP}": 2, ACTOR_SP: 4}, {CRITIC_SP: 2}, {REF_SP: 4}],
    ids=str,
)
def test_sequences_are_shared_by_as_many_as_verls_engines_are_told(
    changed: Callable[..., DictConfig], changes: dict[str, Any]
) -> None:
    from verl.utils.config import omega_conf_to_dataclass

    config = changed("fsdp", KL | changes)
    config.actor_rollout_ref.ref.use_dynamic_bsz = True  # as verl renames it before it builds the reference
    for role in roles(config).values():
        section = role.get(role.section)
        fields = {name: section[name] for name in section if not name.startswith("log_prob_")}
        built = omega_conf_to_dataclass(OmegaConf.create(fields, parent=section._get_parent()))
        assert built.engine.ulysses_sequence_parallel_size == role.sequence
        assert role.ranks == 8 // role.sequence


def test_the_deprecated_field_of_the_critic_reaches_nothing(changed: Callable[..., DictConfig]) -> None:
    from verl.utils.config import omega_conf_to_dataclass

    built = omega_conf_to_dataclass(changed("fsdp", {f"critic.{SP}": 4}).critic)
    assert built.engine.ulysses_sequence_parallel_size == 1


def test_an_attention_registered_with_flash_attentions_glue_may_share_sequences(
    changed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    (tmp_path / "my_attention.py").write_text(
        "from transformers.integrations.flash_attention import flash_attention_forward\n"
        "from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS\n"
        "ALL_ATTENTION_FUNCTIONS.register('with_the_glue', flash_attention_forward)\n"
        "ALL_ATTENTION_FUNCTIONS.register('without', lambda *inputs, **options: flash_attention_forward(*inputs))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    known = dict(ALL_ATTENTION_FUNCTIONS._global_mapping)
    monkeypatch.setattr(type(ALL_ATTENTION_FUNCTIONS), "_global_mapping", known)
    shared = {CRITIC_SP: 2, CRITIC_ATTENTION: "with_the_glue"}
    assert "attn_implementation=with_the_glue" in str(refusal(changed("fsdp", shared)))  # nobody has registered it
    shared["critic.model.external_lib"] = "my_attention"
    assert refusal(changed("fsdp", shared)) is None
    assert "attn_implementation=without" in str(refusal(changed("fsdp", shared | {CRITIC_ATTENTION: "without"})))


def test_verls_patch_is_in_what_flash_attentions_glue_calls() -> None:
    import inspect

    from transformers.integrations import flash_attention
    from verl.models.transformers import monkey_patch

    assert "flash_attention._flash_attention_forward = _ulysses_flash_attention_forward" in inspect.getsource(
        monkey_patch
    )
    assert " = _flash_attention_forward(" in inspect.getsource(flash_attention.flash_attention_forward)
    assert flash_attention.flash_attention_forward.__globals__ is vars(flash_attention)


def test_megatrons_engine_cuts_batches_as_we_say() -> None:
    import verl

    engine = (Path(verl.__file__).parent / "workers/engine/megatron/transformer_impl.py").read_text()
    assert "sp_size=self.engine_config.context_parallel_size" in engine
    assert "return mpu.get_data_parallel_world_size()" in engine


# ---------------------------------------------------------------------- batches whole for every reader


class Workers:
    """A worker group of which only the data-parallel ranks are asked."""

    def __init__(self, **ranks: list[int]):
        self.ranks, self._dispatch_info = ranks, {}

    def _query_dispatch_info(self, mesh: str) -> list[int]:
        return self.ranks[mesh]


def port(config: DictConfig, actor: list[int], critic: list[int], ref: list[int] | None = None) -> Port:
    """The port on workers whose processes have these data-parallel ranks."""
    trainer = MagicMock(config=config, use_critic=True, use_reference_policy=ref is not None, ref_in_actor=False)
    trainer.actor_rollout_wg = trainer.ref_policy_wg = Workers(actor=actor, ref=ref or [])
    trainer.critic_wg = Workers(train=critic)
    return Port(trainer)


def rollouts(lengths: Sequence[int]) -> Samples:
    tags = [{"seq_len": length} for length in lengths]
    return Samples(KVBatchMeta(keys=[f"q_{row}_0" for row in range(len(tags))], tags=tags, partition_id="train"))


SHARED_BY_FOUR, SHARED_BY_TWO, ALONE = [0] * 4 + [1] * 4, [0, 0, 1, 1, 2, 2, 3, 3], list(range(8))


@pytest.mark.parametrize(
    ("actor", "critic", "changes", "multiple", "readers", "whole"),
    [
        (SHARED_BY_FOUR, ALONE, {}, 4, ["critic"], 8),  # as many as its ranks, not the actor's
        (ALONE, SHARED_BY_FOUR, {}, 4, ["critic"], 4),
        (SHARED_BY_FOUR, ALONE, {}, 4, ["policy"], 4),
        (SHARED_BY_FOUR, ALONE, {}, 4, ["policy", "critic"], 8),
        (ALONE, SHARED_BY_FOUR, {}, 12, ["policy", "critic"], 24),
        (SHARED_BY_FOUR, ALONE, {}, 1, ["critic"], 8),
        (SHARED_BY_FOUR, ALONE, FIXED_CRITIC, 1, ["critic"], 16),  # in micro-batches of 2
        (ALONE, SHARED_BY_FOUR, FIXED_CRITIC, 1, ["critic"], 4),
        (ALONE, SHARED_BY_FOUR, FIXED_ACTOR, 8, ["policy", "critic"], 16),
        (SHARED_BY_FOUR, SHARED_BY_FOUR, KL, 4, ["policy"], 8),  # the reference has 8
    ],
)
def test_a_batch_is_whole_for_whoever_passes_over_it(
    changed: Callable[..., DictConfig],
    monkeypatch: pytest.MonkeyPatch,
    actor: list[int],
    critic: list[int],
    changes: dict[str, Any],
    multiple: int,
    readers: list[str],
    whole: int,
) -> None:
    asked = []
    monkeypatch.setattr(ports, "upsample_batch_to_divisible_size", lambda rows, size, _: (asked.append(size), rows)[1])
    config = changed("fsdp", changes)
    port(config, actor, critic, ALONE if changes == KL else None).balanced(
        rollouts([5] * 48), multiple, Log(), "seqlen", *readers
    )
    assert asked == [whole]


def test_rows_to_learn_from_again_come_in_whole_updates_only(
    changed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "upsample_batch_to_divisible_size", lambda rows, size, _: pytest.fail(f"not {size}"))
    replay = port(changed("fsdp", FIXED_CRITIC), [0] * 8, [0] * 8)
    samples = rollouts([5] * 3)
    assert replay.balanced(samples, 3, Log(), "seqlen", "critic", updates_only=True) is samples


@pytest.mark.parametrize("readers", [["critic"], ["policy", "critic"]])
@pytest.mark.parametrize(("actor", "critic"), [(SHARED_BY_FOUR, SHARED_BY_TWO), (SHARED_BY_TWO, SHARED_BY_FOUR)])
def test_every_reader_has_equal_shares(
    changed: Callable[..., DictConfig], actor: list[int], critic: list[int], readers: list[str]
) -> None:
    lengths, log = list(range(10, 42)), Log()
    batch = port(changed("fsdp", {}), actor, critic).balanced(rollouts(lengths), 8, log, "seqlen", *readers)
    found = [tag["seq_len"] for tag in batch.meta.tags]
    assert sorted(found) == lengths
    for ranks in [actor, critic] if "policy" in readers else [critic]:
        size = len(found) // (max(ranks) + 1)
        shares = [sum(found[start : start + size]) for start in range(0, len(found), size)]
        assert max(shares) - min(shares) <= 2  # the seventh of a response
    assert log.metrics["seqlen/balanced_max"] - log.metrics["seqlen/balanced_min"] <= 2


def test_for_the_actor_alone_rows_are_spread_as_verl_does(changed: Callable[..., DictConfig]) -> None:
    from verl.trainer.ppo.v1 import PPOTrainerSync

    lengths, log, metrics = [7, 30, 11, 24, 9, 13, 28, 16], Log(), {}
    ours = port(changed("fsdp", {}), SHARED_BY_FOUR, ALONE).balanced(rollouts(lengths), 8, log, "seqlen", "policy")
    verls = MagicMock(actor_rollout_wg=Workers(actor=SHARED_BY_FOUR), _get_required_batch_multiple=lambda size: 8)
    rows = PPOTrainerSync._balance_batch(verls, rollouts(lengths).meta, metrics, logging_prefix="seqlen")
    assert ours.meta.keys == rows.keys
    assert log.metrics == metrics


@pytest.mark.parametrize("name", ["actor", "critic"])
@pytest.mark.parametrize(
    ("real", "synthetic", "mini_batch", "left"),
    [(20, 12, 8, 4), (4, 12, 8, 4), (8, 8, 8, 0), (1, 15, 8, 7), (10, 6, 8, 6), (16, 0, 8, 0)],
)
def test_no_update_is_of_synthetic_rows_alone(
    changed: Callable[..., DictConfig], name: str, real: int, synthetic: int, mini_batch: int, left: int
) -> None:
    samples = rollouts([128] * synthetic + list(range(10, 10 + real)))
    for tag in samples.meta.tags[:synthetic]:
        tag["is_padding"] = True
    rows = port(changed("fsdp", {}), SHARED_BY_FOUR, SHARED_BY_TWO).in_updates(samples, mini_batch, name)
    assert (rows.real.sum(), (~rows.real).sum()) == (real, left)
    assert left < mini_batch
    assert len(rows) % mini_batch == 0
    assert len(samples) == real + synthetic
    if left < synthetic:  # in equal shares for the ranks of whoever is updated
        work = [tag["seq_len"] for tag in rows.meta.tags]
        parts = {"actor": 2, "critic": 4}[name]
        shares = [sum(work[part * len(work) // parts : (part + 1) * len(work) // parts]) for part in range(parts)]
        assert max(shares) - min(shares) < 128


# ---------------------------------------------------------------------- micro-batches of the critic


@pytest.fixture
def single_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As a worker of verl's finds itself, alone."""
    store = f"file://{tmp_path / 'store'}"
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "DIST_INIT_METHOD": store}  # verl wants all three
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", **address}.items():
        monkeypatch.setenv(name, value)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("changes", "training", "values"),
    [
        ({}, [8], [8]),  # one budget holds them all
        ({"critic.use_dynamic_bsz": False, "critic.ppo_micro_batch_size_per_gpu": 2}, [2] * 4, [2] * 4),
        (
            {
                "critic.use_dynamic_bsz": False,
                "critic.ppo_micro_batch_size_per_gpu": 2,
                "critic.forward_micro_batch_size_per_gpu": 4,
            },
            [2] * 4,
            [4] * 2,
        ),
    ],
    ids=["dynamic", "fixed", "another size without gradients"],
)
@pytest.mark.usefixtures("single_process")
def test_the_engine_cuts_as_the_critic_is_configured(
    changed: Callable[..., DictConfig], changes: dict[str, Any], training: list[int], values: list[int]
) -> None:
    """verl's own worker, built as its trainer builds it. 0.9.1 alone leaves ``use_dynamic_bsz`` at true."""
    from verl.utils import tensordict_utils as tu
    from workers import worker_of

    from tempo_verl.trainer.batch import as_jagged

    config = changed("cpu", {"trainer.n_gpus_per_node": 1} | changes)
    worker = worker_of(config, "critic")
    seen: list[int] = []
    worker.engine.module.register_forward_pre_hook(
        lambda module, arguments, named: seen.append(len(named["input_ids"])), with_kwargs=True
    )
    rows = [torch.arange(12) for _ in range(8)]
    batch = tu.get_tensordict(
        {
            "input_ids": as_jagged(rows),
            "position_ids": as_jagged(rows),
            "responses": as_jagged([row[8:] for row in rows]),
            "loss_mask": as_jagged([torch.ones(5, dtype=torch.long) for _ in rows]),
            "outcome": torch.ones(8, 1),
        }
    )
    for call, asked, cut in (
        (worker.infer_batch, {"compute_loss": False}, values),
        (worker.train_mini_batch, {"mini_batch_size": 8, "global_batch_size": 8}, training),
    ):
        seen.clear()
        data = batch.copy()
        tu.assign_non_tensor(data, temperature=1.0, **asked)
        call(data)
        assert seen == cut


# ---------------------------------------------------------------------- packed batches and layers with a state

SMALL = {
    "vocab_size": 16, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0,
}  # fmt: skip
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
}  # fmt: skip


def small(kind: str) -> Any:
    return AutoConfig.for_model(kind, **SMALL, **(LINEAR if "next" in kind or "3_5" in kind else {}), num_labels=1)


@pytest.mark.parametrize(("kind", "mixes"), [("qwen3", False), ("qwen3_next", True)])
def test_a_packed_sequence_reads_the_one_before_it_where_layers_have_a_state(kind: str, mixes: bool) -> None:
    """verl gives a value head positions only."""
    import inspect

    from transformers import AutoModelForTokenClassification

    from tempo_verl.compat import register_critic_class

    architecture = small(kind)
    register_critic_class(architecture)
    model = AutoModelForTokenClassification.from_config(architecture, attn_implementation="sdpa").eval()
    assert "cu_seqlens" not in inspect.signature(model.forward).parameters
    first, second = torch.randint(0, 16, (1, 5)), torch.randint(0, 16, (1, 7))
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    with torch.inference_mode():
        packed = model(torch.cat([first, second], 1), position_ids=positions, use_cache=False).logits[:, 5:]
        off = (packed - model(second).logits).abs().max()
    assert (off > 1e-3) if mixes else (off < 1e-6)
    assert bool(layers_with_state(architecture)) is mixes


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        *(
            (kind, [])
            for kind in ("qwen2", "qwen3", "qwen3_moe", "llama", "olmo3", "mistral", "gemma3_text", "gpt_oss")
        ),
        *((kind, ["linear_attention"]) for kind in ("qwen3_next", "qwen3_5_text", "olmo_hybrid", "minimax")),
        *((kind, ["mamba"]) for kind in ("bamba", "jamba", "mamba2", "nemotron_h", "granitemoehybrid")),
        ("zamba2", ["hybrid", "mamba"]),
        ("falcon_h1", ["hybrid"]),
        ("recurrent_gemma", ["recurrent"]),
        ("rwkv", ["rwkv"]),
    ],
)
def test_layers_with_a_state_are_found_in_a_models_configuration(kind: str, state: list[str]) -> None:
    assert layers_with_state(AutoConfig.for_model(kind).get_text_config()) == state


def test_hints_are_enough_where_no_layers_are_listed() -> None:
    assert layers_with_state(AutoConfig.for_model("llama", linear_attn_config={"heads": 2})) == ["linear_attn_config"]
    assert layers_with_state(AutoConfig.for_model("lfm2", num_hidden_layers=1, layer_types=["conv"])) == ["conv"]


@pytest.mark.parametrize(
    ("role", "kind", "packed", "refused"),
    [
        ("critic", "qwen3", True, False),
        ("critic", "qwen3_next", False, False),
        ("critic", "qwen3_next", True, True),
        ("actor_rollout_ref", "qwen3_next", True, True),
        ("actor_rollout_ref", "qwen3_next", False, False),
    ],
)
def test_packed_batches_are_for_models_that_know_where_a_sequence_begins(
    changed: Callable[..., DictConfig],
    tiny_policy: Path,
    tmp_path: Path,
    role: str,
    kind: str,
    packed: bool,
    refused: bool,
) -> None:
    model = tmp_path / "model"
    architecture = small(kind)
    architecture.architectures = ["Model"]
    architecture.save_pretrained(model)
    AutoTokenizer.from_pretrained(tiny_policy).save_pretrained(model)
    changes = {f"{role}.model.path": str(model), f"{role}.model.use_remove_padding": packed}
    message = refusal(changed("fsdp", changes | {"critic.allow_new_value_head": True}))
    assert (message is not None) is refused
    if message is not None:
        assert f"{role}.model.use_remove_padding=true" in message
        assert "(linear_attention); set it to false" in message


def test_verl_tells_two_kinds_of_policies_where_a_sequence_begins(tmp_path: Path) -> None:
    import inspect

    from verl.models.transformers import monkey_patch, qwen3_5
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

    from tempo_verl.config.models import TOLD_BOUNDARIES

    assert '"cu_seqlens" in signature(module.forward).parameters' in inspect.getsource(
        FSDPEngine._build_model_optimizer
    )
    assert "cu_seqlens" in inspect.signature(qwen3_5.forward_with_normal_backend).parameters
    assert f"model_type in {list(TOLD_BOUNDARIES)}".replace("'", '"') in inspect.getsource(
        monkey_patch.apply_monkey_patch
    )


# ---------------------------------------------------------------------- HDFS


@pytest.fixture
def hdfs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that a stand-in for the command ``hdfs`` serves as ``hdfs://cluster/``."""
    import verl.utils.hdfs_io

    served, command = tmp_path / "served", tmp_path / "hdfs"
    served.mkdir()
    command.write_text(f'#!/bin/sh\n[ "$1 $2" = "dfs -get" ] && cp -r "{served}/${{3#hdfs://cluster/}}" "$4"\n')
    command.chmod(0o755)
    monkeypatch.setattr(verl.utils.hdfs_io, "_HDFS_BIN_PATH", str(command))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where verl keeps its copies
    return served


def test_models_on_hdfs_are_looked_at_once_verl_has_fetched_them(
    compose, hdfs: Path, tiny_policy: Path, tiny_critic: Path
) -> None:
    shutil.copytree(tiny_policy, hdfs / "policy")
    shutil.copytree(tiny_critic, hdfs / "critic")
    config = compose(
        ["actor_rollout_ref.model.path='hdfs://cluster/policy'", "critic.model.path='hdfs://cluster/critic'"]
    )
    method, tokenizer = read_settings(config), AutoTokenizer.from_pretrained(tiny_policy)
    check_models(config)
    check_prompts(config, check_questions(config, method))
    check_fetched(config, method, tokenizer)

    config.data.max_prompt_length = 4
    with pytest.raises(UserError, match=r"prompts of tempo\.labeled\.files have more than data\.max_prompt_length=4"):
        check_fetched(config, method, tokenizer)
    config.data.max_prompt_length = 16
    config.critic.model.path = "hdfs://cluster/policy"
    with pytest.raises(UserError, match=r"^critic\.model\.path=hdfs://cluster/policy: no trained value head"):
        check_fetched(config, method, tokenizer)
    config.critic.model.path = "hdfs://cluster/elsewhere"
    with pytest.raises(UserError, match=r"^critic\.model\.path=hdfs://cluster/elsewhere: no config\.json there"):
        check_fetched(config, method, tokenizer)


@pytest.mark.parametrize("field", ["tempo.labeled.files", "tempo.unlabeled.files", "data.val_files"])
def test_questions_are_local(changed: Callable[..., DictConfig], field: str) -> None:
    config = changed("cpu", {field: "hdfs://cluster/questions.parquet"})
    with pytest.raises(UserError, match=rf"^{field}=hdfs://cluster/questions\.parquet: .* copy the file"):
        check_questions(config, read_settings(config))


# ---------------------------------------------------------------------- a run that has nothing left to train


def resumable(folder: Path, number: int, saved_by: DictConfig | None = None) -> Path:
    """The traces of a whole checkpoint, saved by a run with this configuration if that matters."""
    saved = folder / f"global_step_{number}"
    saved.mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text(str(number))
    write_manifest(saved, {} if saved_by is None else Fingerprint.of(saved_by, read_settings(saved_by)).as_json())
    return saved


@pytest.mark.parametrize("hardware", ["cpu", "fsdp", "megatron"])
@pytest.mark.parametrize(("rounds", "refused"), [(4, True), (5, True), (6, False)])
@pytest.mark.parametrize("mode", ["auto", "resume_path"])
def test_a_run_goes_on_only_with_rounds_left(
    changed: Callable[..., DictConfig], tmp_path: Path, hardware: str, mode: str, rounds: int, refused: bool
) -> None:
    where = resumable(tmp_path, 5, changed(hardware, {}))
    changes = {"tempo.rounds": rounds, "trainer.resume_mode": mode}
    changes |= {"trainer.default_local_dir" if mode == "auto" else "trainer.resume_from_path": str(tmp_path)}
    if mode == "resume_path":
        changes["trainer.resume_from_path"] = str(where)
    config = changed(hardware, changes)
    method = read_settings(config)
    if not refused:
        check_resume(config, method)
        return
    with pytest.raises(UserError) as caught:
        check_resume(config, method)
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert f"is trained for 5 rounds already, tempo.rounds={rounds}; raise the latter" in message
    assert ("trainer.resume_mode=auto" if mode == "auto" else f"trainer.resume_from_path={where}") in message


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trainer.resume_mode": "disable"}, None),
        ({"trainer.resume_mode": "auto"}, "is trained for 2 rounds already"),
        ({"trainer.resume_mode": "auto", "trainer.val_only": True}, None),  # to validate it once more
        ({"trainer.resume_mode": "auto", "tempo.predictions.file": "{}/new.jsonl"}, None),  # it was cut short there
        ({"trainer.resume_mode": "auto", "tempo.predictions.file": "{}/new.jsonl", "tempo.rounds": 1}, "trained for 2"),
        (
            {"trainer.resume_mode": "auto", "tempo.predictions.file": "{}/there.jsonl"},
            "is trained for 2 rounds already",
        ),
        ({"trainer.resume_mode": "sometimes"}, "trainer.resume_mode=sometimes is unknown; choose one of auto"),
        ({"trainer.resume_mode": "resume_path"}, "trainer.resume_from_path=null: no checkpoint of verl's"),
        ({"trainer.resume_mode": "resume_path", "trainer.resume_from_path": "{}/global_step_2/"}, "give a folder"),
        ({"trainer.resume_mode": "resume_path", "trainer.resume_from_path": "{}/global_step_9"}, "give a folder"),
        ({"trainer.resume_mode": "resume_path", "trainer.resume_from_path": "{}"}, "give a folder .../global_step_N"),
    ],
)
def test_how_a_run_goes_on(
    changed: Callable[..., DictConfig], tmp_path: Path, changes: dict[str, Any], told: str | None
) -> None:
    saved = resumable(tmp_path, 2, changed("cpu", {}))
    for file, age in (("there.jsonl", 1), ("of_an_earlier_round.jsonl", -1)):
        (tmp_path / file).touch()
        os.utime(tmp_path / file, ns=(saved.stat().st_mtime_ns + age,) * 2)
    filled = {name: value.format(tmp_path) if isinstance(value, str) else value for name, value in changes.items()}
    config = changed("cpu", {"trainer.default_local_dir": str(tmp_path)} | filled)
    if told is None:
        check_resume(config, read_settings(config))
        return
    with pytest.raises(UserError) as caught:
        check_resume(config, read_settings(config))
    assert told in str(caught.value)


def test_a_checkpoint_that_is_gone_is_not_gone_on_from(changed: Callable[..., DictConfig], tmp_path: Path) -> None:
    shutil.rmtree(resumable(tmp_path, 5))
    config = changed("cpu", {"trainer.default_local_dir": str(tmp_path)})
    check_resume(config, read_settings(config))


@pytest.mark.parametrize("kept", [2, 1], ids=["the last round", "the best round"])
def test_a_finished_run_folder_is_told_and_left_as_it_is(
    changed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    run, console = launch.Run(tmp_path), Console(record=True, width=500)

    def compose(overrides: list[str]) -> DictConfig:
        given = OmegaConf.from_dotlist(
            [override for override in overrides if override.startswith(("tempo", "trainer."))]
        )
        return OmegaConf.merge(changed("cpu", {"trainer.n_gpus_per_node": 1, "tempo.unlabeled.batch_size": 4}), given)

    monkeypatch.setattr(launch, "resolve_config", compose)
    monkeypatch.setattr(launch.subprocess, "Popen", lambda *arguments, **options: pytest.fail("training was started"))
    OmegaConf.save(compose(run.overrides()), run.folder / "config.yaml", resolve=True)
    resumable(run.checkpoints, kept, compose([]))
    run.status.write_text(json.dumps({"state": "done", "round": 2, "rounds": 2}))
    run.predictions.touch()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert launch.run_training(run, [], console, title="training") == 0.0
    told = f"all 2 rounds are in {tmp_path} already, so nothing was trained; raise tempo.rounds to go on"
    assert told in console.export_text()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    with pytest.raises(UserError, match=r"was saved by a run with other settings"):
        launch.run_training(run, ["tempo.unlabeled.seed=9"], console, title="training")
    with pytest.raises(UserError, match=rf"is trained for {kept} rounds already, tempo\.rounds=1"):
        launch.run_training(run, ["tempo.rounds=1"], console, title="training")
