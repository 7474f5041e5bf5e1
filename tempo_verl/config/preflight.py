# SPDX-License-Identifier: Apache-2.0
"""All checks before anything expensive starts, those that look at models, prompts and verl itself among them.

Runs as a Hydra callback of the shipped configuration, hence under verl's own launcher too. No model is loaded.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from tempo_verl.config.checks import check_settings
from tempo_verl.config.files import check_questions, check_truths, written
from tempo_verl.config.layout import roles
from tempo_verl.config.models import check_models, check_prompts
from tempo_verl.config.schema import read_settings
from tempo_verl.data.validation import Questions
from tempo_verl.doctor import check_plugin
from tempo_verl.errors import UserError
from tempo_verl.methods import Method
from tempo_verl.run import Run

# Environment variable: the parent, `tempo-verl train`, has just checked these very settings. Its value is the folder of
# the run.
CHECKED = "TEMPO_CHECKED"
REFUSED = 2  # exit status

# What verl asks of transformers where model.override_config names no attention.
ATTENTION = "flash_attention_2"


class PreflightCallback(Callback):
    """Stops the process with status 2 and one line on stderr if :func:`check` finds a mistake."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = os.environ.get(CHECKED)
        try:
            if folder is None:
                check_settings(config)
            check_contents(config)
            if folder is not None:
                Run(Path(folder)).begin(config)
        # Hydra turns exceptions of callbacks into warnings, but not SystemExit.
        except UserError as error:
            print(f"tempo-verl: {error}", file=sys.stderr)
            raise SystemExit(REFUSED) from None
        except Exception:
            traceback.print_exc()
            raise SystemExit(1) from None


def check(config: DictConfig) -> None:
    """Run every check, cheap ones first.

    Raises:
        UserError: the first mistake found.
    """
    check_settings(config)
    check_contents(config)


def check_contents(config: DictConfig) -> None:
    """Run the checks of the models, of what is asked of them, and of what verl makes of the settings.

    Args:
        config: its settings are checked.

    Raises:
        UserError: the first mistake found.
    """
    check_plugin()
    method = read_settings(config)
    for _, look in MODELS:
        look(config)
    questions = check_questions(config, method)
    for _, look_at in QUESTIONS:
        look_at(config, method, questions)


def _check_rollout_correction(config: DictConfig) -> None:
    """verl's own checks of what was asked for, on one token."""
    field, correction = "algorithm.rollout_correction", config.algorithm.rollout_correction
    if correction.rollout_is is None and correction.rollout_rs is None:
        return
    import torch
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask

    names = ("rollout_is", "rollout_is_threshold", "rollout_is_batch_normalize", "rollout_rs", "rollout_rs_threshold")
    token = torch.zeros(1, 1)
    try:
        weights, _, _ = compute_rollout_correction_and_rejection_mask(
            token, token, torch.ones(1, 1), **{name: correction[name] for name in names}
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{field}: {str(error).splitlines()[0]}") from error
    if correction.rollout_is is not None and weights is None:
        raise UserError(f"{field}.rollout_is_threshold={written(correction.rollout_is_threshold)} must be a number")


def _check_attention(config: DictConfig) -> None:
    """Processes that share sequences: whether the model's kernels know of it."""
    for role in roles(config).values():
        if not role.is_fsdp or role.sequence == 1:
            continue
        shared = f"{role.sequence_field}={role.sequence}"
        attention = (role.get(f"{role.model}.override_config") or {}).get("attn_implementation", ATTENTION)
        if not _knows_ulysses(attention, role.get(f"{role.model}.external_lib")):
            raise UserError(
                f"{role.model}.override_config.attn_implementation={attention}: values would be wrong where processes "
                f"share a sequence ({shared}); set it to {ATTENTION}, or the latter to 1"
            )


def _knows_ulysses(attention: str, external_lib: str | Sequence[str] | None) -> bool:
    """Whether verl's all-to-all takes part in an attention.

    verl puts it into what transformers' ``flash_attention_forward`` calls. So that function has to be the one that is
    registered under the name: it is for ``flash_attention_2`` and its successors. Whoever registers it under another
    name, with a kernel of their own, does so in a module that ``model.external_lib`` or verl's
    ``VERL_USE_EXTERNAL_MODULES`` names: every process imports it.
    """
    from transformers.integrations.flash_attention import flash_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for module in [external_lib] if isinstance(external_lib, str) else external_lib or []:
        try:
            import_module(module)
        except ImportError as error:
            raise UserError(
                f"model.external_lib={module} cannot be imported ({error}); install it, or unset it"
            ) from error
    return ALL_ATTENTION_FUNCTIONS.get(attention) is flash_attention_forward


# As `checks.SETTINGS`, of models, and of questions once they are read.
MODELS: tuple[tuple[str, Callable[[DictConfig], None]], ...] = (
    ("rollout correction in verl", _check_rollout_correction),
    ("attention", _check_attention),
    ("models and tokenizers", check_models),
)
QUESTIONS: tuple[tuple[str, Callable[[DictConfig, Method, dict[str, Questions]], None]], ...] = (
    ("prompts", lambda config, method, questions: check_prompts(config, questions)),
    ("ground truths", lambda config, method, questions: check_truths(questions, method.settings.verifier.timeout)),
)
