# SPDX-License-Identifier: Apache-2.0
"""Checks of the models that a run starts from. None is loaded: configurations, tokenizers and headers of weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tempo_verl.compat import missing_head_message
from tempo_verl.config.files import check_questions
from tempo_verl.config.lora import check_lora
from tempo_verl.data.validation import Questions
from tempo_verl.errors import UserError
from tempo_verl.methods import Method
from tempo_verl.models import missing_value_head

# A model may have a few more ids than its tokenizer (padding; 2.3 % in the DeepSeek LLM family), never fewer.
MOST_UNUSED_IDS = 0.05


def check_models(config: DictConfig) -> None:
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
            _check_positions(config, field, local)
    if config.critic.enable:
        _check_value_head(config)
    check_lora(config)


def _check_value_head(config: DictConfig) -> None:
    critic = Path(config.critic.model.path)
    if config.critic.float32_head and not config.critic.strategy.startswith("fsdp"):
        raise UserError(
            f"critic.float32_head=true: critic.strategy={config.critic.strategy} computes the value head by itself, in "
            "bfloat16; set it to false, or use FSDP"
        )
    if config.critic.allow_new_value_head:
        return
    if not config.critic.strategy.startswith("fsdp") and config.trainer.resume_mode != "resume_path":
        raise UserError(
            f"critic.model.path={critic}: Megatron reads no Hugging Face value head; resume a Megatron checkpoint "
            "(trainer.resume_mode=resume_path, trainer.resume_from_path=...) or set critic.allow_new_value_head=true"
        )
    if config.critic.strategy.startswith("fsdp") and critic.is_dir():
        missing = missing_value_head(critic, config.critic.model.trust_remote_code)
        if missing:
            raise UserError(missing_head_message(str(critic), missing))


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


def _check_positions(config: DictConfig, field: str, model: Path) -> None:
    """The longest sample must fit the positions that the model knows."""
    from transformers import AutoConfig

    trust = OmegaConf.select(config, field).trust_remote_code
    text = AutoConfig.from_pretrained(model, trust_remote_code=trust).get_text_config()
    override = OmegaConf.select(config, f"{field}.override_config") or {}  # what verl changes of the model's own
    if any("rope" in name for name in override):  # which may reach further
        return
    positions = override.get("max_position_embeddings") or getattr(text, "max_position_embeddings", None)
    prompt, response = config.data.max_prompt_length, config.data.max_response_length
    if positions is not None and prompt + response > positions:
        raise UserError(
            f"data.max_prompt_length={prompt} + data.max_response_length={response} is more than the {positions} "
            f"positions of {field}.path={model}; lower one of them"
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
    if not Path(options.path).is_dir():
        return
    name = options.get("tokenizer_path") or options.path
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=options.trust_remote_code)
    _check_lengths(config, questions, tokenizer)


def check_fetched(config: DictConfig, method: Method, tokenizer: Any) -> None:
    """As :func:`check_prompts`, for a policy by its hub name: the trainer has its tokenizer before its weights."""
    if not Path(config.actor_rollout_ref.model.path).is_dir():
        _check_lengths(config, check_questions(config, method), tokenizer)


def _check_lengths(config: DictConfig, questions: dict[str, Questions], tokenizer: Any) -> None:
    from transformers import AutoConfig

    options = config.actor_rollout_ref.model
    model = AutoConfig.from_pretrained(options.path, trust_remote_code=options.trust_remote_code)
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

    if config.data.filter_overlong_prompts and tokenizer.chat_template is not None:
        return
    where = f"actor_rollout_ref.model.path={config.actor_rollout_ref.model.path}"
    if tokenizer.chat_template is None:
        raise UserError(
            f"{where}: its tokenizer has no chat template; use an instruction-tuned model, or put a "
            "chat_template.jinja in a copy of its directory"
        )
    try:
        chat = create_continuous_token_builder(
            tokenizer,
            hf_model_type=model_type,
            chat_template_kwargs=config.data.get("apply_chat_template_kwargs", {}),
        )
        lengths = [len(chat.build_initial_tokens(list(messages))) for messages in chats]
    except (ValueError, TemplateError) as error:
        raise UserError(f"{where}: its chat template cannot make the prompts of {field} ({error})") from error
    limit = config.data.max_prompt_length
    too_long = [row for row, length in enumerate(lengths) if length > limit]
    if too_long:
        longest = max(too_long, key=lambda row: lengths[row])
        raise UserError(
            f"{len(too_long)} of {len(lengths)} prompts of {field} have more than data.max_prompt_length={limit} "
            f"tokens (the longest: row {longest}, {lengths[longest]}); raise it to {lengths[longest]}, or leave them "
            "out with data.filter_overlong_prompts=true"
        )
