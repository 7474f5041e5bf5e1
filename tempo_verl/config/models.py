# SPDX-License-Identifier: Apache-2.0
"""Checks of the models that a run starts from. None is loaded: configurations, tokenizers and headers of weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tempo_verl.compat import missing_head_message
from tempo_verl.config.files import check_questions
from tempo_verl.config.layout import Role, roles
from tempo_verl.config.lora import check_lora
from tempo_verl.data.validation import HDFS, Questions
from tempo_verl.errors import UserError
from tempo_verl.methods import Method
from tempo_verl.models import missing_value_head

# A model may have a few more ids than its tokenizer (padding; 2.3 % in the DeepSeek LLM family), never fewer.
MOST_UNUSED_IDS = 0.05
# Layers that tell the sequences of a packed batch apart by their positions, or look at one token only, by the names in
# transformers' configurations. Others (linear attention, state-space models, convolutions) are told where a sequence
# begins, or go on with the one before.
STATELESS_LAYERS = frozenset(
    {"full_attention", "sliding_attention", "chunked_attention", "attention", "dense", "sparse", "moe", "mlp"}
)
# What tells of such layers where a configuration does not list its layers.
STATE = re.compile(r"mamba|ssm|recurrent|rwkv|linear_attn|linear_conv|lru_width")
# Policies whose forward verl gives a parameter for the boundaries; every other model gets none, nor does a value head.
TOLD_BOUNDARIES = ("qwen3_5", "qwen3_5_moe")


def check_model_settings(config: DictConfig) -> None:
    """Whether each model is named, by a path that verl can read, and what is asked for can be made of it."""
    for role in _models(config):
        field, path = f"{role.model}.path", role.get(f"{role.model}.path")
        if path is None:
            raise UserError(f"{field} is not set; give a Hugging Face directory or name")
        if path.startswith("~"):
            raise UserError(f"{field}={path}: verl does not expand ~; write the path out")
        if path.endswith("/"):
            raise UserError(f"{field}={path}: verl takes no path that ends in /; leave it out")
        if path.startswith(HDFS):
            continue
        if (path.startswith((".", "/")) or path.count("/") > 1) and not (Path(path) / "config.json").is_file():
            raise UserError(f"{field}={path}: no config.json there; give a Hugging Face directory")
    if config.critic.enable:
        _check_megatron_head(config)
        _check_float32_head(config)
    check_lora(config)


def check_models(config: DictConfig) -> None:
    """Models in local directories. Those by their hub name or on HDFS are left to :func:`check_fetched`."""
    check_model_settings(config)
    for role in _models(config):
        local = Path(role.get(f"{role.model}.path"))
        if local.is_dir():
            _check_directory(role, local)


def _check_float32_head(config: DictConfig) -> None:
    if config.critic.float32_head and not config.critic.strategy.startswith("fsdp"):
        raise UserError(
            f"critic.float32_head=true: critic.strategy={config.critic.strategy} computes the value head by itself, in "
            "bfloat16; set it to false, or use FSDP"
        )


def _models(config: DictConfig) -> list[Role]:
    return [role for name, role in roles(config).items() if name != "reference"]


def _check_directory(role: Role, local: Path) -> None:
    _check_vocabulary(role, local)
    _check_architecture(role, local)
    if role.name == "critic" and not role.config.critic.allow_new_value_head:
        missing = missing_value_head(local, role.config.critic.model.trust_remote_code)
        if missing:
            raise UserError(missing_head_message(role.config.critic.model.path, missing))


def _check_architecture(role: Role, model: Path | str) -> None:
    """What the configuration of a model says of it: its positions, layers and heads.

    Args:
        model: a directory, or a name in the hub.
    """
    from transformers import AutoConfig

    options = role.get(role.model)
    architecture = AutoConfig.from_pretrained(model, trust_remote_code=options.trust_remote_code)
    text = architecture.get_text_config()
    _check_positions(role, text)
    if not role.is_fsdp:
        return
    where, override = f"{role.model}.path={options.path}", options.get("override_config") or {}
    state = layers_with_state(text)
    told = role.name == "actor" and architecture.model_type in TOLD_BOUNDARIES
    if options.use_remove_padding and state and not told:
        raise UserError(
            f"{role.model}.use_remove_padding=true: verl does not tell {where} where the sequences of a packed batch "
            f"begin, which its layers have to know ({', '.join(state)}); set it to false"
        )
    tied = override.get("tie_word_embeddings", getattr(architecture, "tie_word_embeddings", False))
    if options.use_fused_kernels and not tied:
        raise UserError(
            f"{role.model}.use_fused_kernels=true: {where} has an output layer of its own (tie_word_embeddings=false), "
            "which FSDP shards and the kernels want whole; set it to false"
        )
    shared, heads = role.sequence, getattr(text, "num_attention_heads", 0)
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    if heads % shared or (kv_heads % shared and shared % kv_heads):
        raise UserError(
            f"{role.sequence_field}={shared} does not divide the {heads} attention heads and {kv_heads} "
            f"key-value heads of {where}; choose a divisor"
        )


def layers_with_state(text: Any) -> list[str]:
    """Kinds of layers that hand what they have read from token to token, or all that hints at them.

    Args:
        text: the configuration of a text model.
    """
    layers = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None)
    if layers:
        return sorted(set(layers) - STATELESS_LAYERS)
    if not hasattr(text, "num_attention_heads"):
        return [text.model_type]
    return sorted(name for name in text.to_dict() if STATE.search(name))


def _check_megatron_head(config: DictConfig) -> None:
    if config.critic.strategy == "megatron" and config.critic.megatron.vanilla_mbridge:
        raise UserError(
            "critic.megatron.vanilla_mbridge=true: that bridge neither reads nor writes a value head; set it to false"
        )


def _check_vocabulary(role: Role, model: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    options = role.get(role.model)
    tokenizer_path, trust = options.get("tokenizer_path") or str(model), options.trust_remote_code
    if tokenizer_path.startswith(HDFS):
        return
    try:
        tokens = len(AutoTokenizer.from_pretrained(tokenizer_path, trust_remote_code=trust))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{role.model}.tokenizer_path={tokenizer_path}: no tokenizer there ({str(error).splitlines()[0]}); "
            "give the Hugging Face directory that holds it"
        ) from error
    vocabulary = AutoConfig.from_pretrained(model, trust_remote_code=trust).get_text_config().vocab_size
    if tokens > vocabulary or vocabulary - tokens > MOST_UNUSED_IDS * vocabulary:
        raise UserError(
            f"{role.model}.path={options.path}: the model's vocabulary has {vocabulary} ids, its tokenizer {tokens}; "
            "use the tokenizer the model was trained with"
        )


def _check_positions(role: Role, text: Any) -> None:
    """The longest sample must fit the positions that the model knows."""
    options, data = role.get(role.model), role.config.data
    override = options.get("override_config") or {}  # what verl changes of the model's own
    if any("rope" in name for name in override):  # which may reach further
        return
    positions = override.get("max_position_embeddings") or getattr(text, "max_position_embeddings", None)
    prompt, response = data.max_prompt_length, data.max_response_length
    if positions is not None and prompt + response > positions:
        raise UserError(
            f"data.max_prompt_length={prompt} + data.max_response_length={response} is more than the {positions} "
            f"positions of {role.model}.path={options.path}; lower one of them"
        )


def check_prompts(config: DictConfig, questions: dict[str, Questions]) -> None:
    """Every prompt must fit ``data.max_prompt_length``: verl's rollouts cut its start away without a word.

    A policy that is not a local directory is left to :func:`check_fetched`.

    Args:
        questions: by the field that names their files.

    Raises:
        UserError: no chat template, or longer prompts: how many, and the longest.
    """
    from transformers import AutoTokenizer

    options = config.actor_rollout_ref.model
    if not _prompts_can_be_made(config):
        return
    name = options.get("tokenizer_path") or options.path
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=options.trust_remote_code)
    _check_lengths(config, questions, tokenizer)


def _prompts_can_be_made(config: DictConfig) -> bool:
    """Whether the policy's configuration and tokenizer are on this machine before a run."""
    options = config.actor_rollout_ref.model
    return Path(options.path).is_dir() and not str(options.get("tokenizer_path")).startswith(HDFS)


def check_fetched(config: DictConfig, method: Method, tokenizer: Any) -> None:
    """As :func:`check_models` and :func:`check_prompts`, for models by their hub name or on HDFS.

    The trainer has the policy's configuration and tokenizer before any weights are loaded. verl copies what is on HDFS.
    The value head of a critic from the hub is seen to as it is loaded.
    """
    from verl.utils.fs import copy_to_local

    for role in _models(config):
        options = role.get(role.model)
        if Path(options.path).is_dir():
            continue
        if not options.path.startswith(HDFS):
            _check_architecture(role, options.path)
            continue
        local = Path(copy_to_local(options.path, use_shm=options.use_shm))
        if not (local / "config.json").is_file():
            raise UserError(f"{role.model}.path={options.path}: no config.json there; give a Hugging Face directory")
        _check_directory(role, local)
    if not _prompts_can_be_made(config):
        _check_lengths(config, check_questions(config, method), tokenizer)


def _check_lengths(config: DictConfig, questions: dict[str, Questions], tokenizer: Any) -> None:
    from transformers import AutoConfig
    from verl.utils.fs import copy_to_local

    options = config.actor_rollout_ref.model
    path = copy_to_local(options.path, use_shm=options.use_shm)
    model = AutoConfig.from_pretrained(path, trust_remote_code=options.trust_remote_code)
    if hasattr(model, "vision_config"):  # what an image takes is known to its processor only
        return
    for field, asked in questions.items():
        check_prompt_lengths(config, field, asked.chats, tokenizer, model.model_type)


def check_prompt_lengths(
    config: DictConfig, field: str, chats: Sequence[list[dict[str, Any]]], tokenizer: Any, model_type: str
) -> None:
    """As :func:`check_prompts`, for the chats of one file set."""
    from jinja2 import TemplateError
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    where = f"actor_rollout_ref.model.path={config.actor_rollout_ref.model.path}"
    if tokenizer.chat_template is None:
        raise UserError(
            f"{where}: its tokenizer has no chat template; use an instruction-tuned model, or put a "
            "chat_template.jinja in a copy of its directory"
        )
    lengths: list[int] = []
    options = config.data.get("apply_chat_template_kwargs", {})
    try:
        chat = create_continuous_token_builder(tokenizer, hf_model_type=model_type, chat_template_kwargs=options)
        for messages in chats:
            # verl puts an empty question before a chat that the template refuses, and tries again: some then pass
            if any(message.get("role") == "user" for message in messages):
                tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **options)
            lengths.append(len(chat.build_initial_tokens(list(messages))))
    except (ValueError, TypeError, TemplateError) as error:
        roles = ", ".join(str(message.get("role")) for message in chats[len(lengths)])
        raise UserError(
            f"{where}: its chat template cannot make the prompt of row {len(lengths)} of {field}, roles {roles} "
            f"({str(error).splitlines()[0]}); write the prompts with roles that it takes (tempo-verl prepare "
            "--template), or use another model"
        ) from error
    limit = config.data.max_prompt_length
    too_long = [row for row, length in enumerate(lengths) if length > limit]
    if config.data.filter_overlong_prompts:
        if len(too_long) == len(lengths):
            raise UserError(
                f"data.filter_overlong_prompts=true would leave out all {len(lengths)} prompts of {field}: each has "
                f"more than data.max_prompt_length={limit} tokens; raise it to {max(lengths)}"
            )
    elif too_long:
        longest = max(too_long, key=lambda row: lengths[row])
        raise UserError(
            f"{len(too_long)} of {len(lengths)} prompts of {field} have more than data.max_prompt_length={limit} "
            f"tokens (the longest: row {longest}, {lengths[longest]}); raise it to {lengths[longest]}, or leave them "
            "out with data.filter_overlong_prompts=true"
        )
