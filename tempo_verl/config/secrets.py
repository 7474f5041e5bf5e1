# SPDX-License-Identifier: Apache-2.0
"""Keys and passwords belong into the environment: configurations are printed, written and reported."""

from __future__ import annotations

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tempo_verl.config.flat import flatten
from tempo_verl.errors import UserError

MASK = "***"
# As environment variables are spelled, WANDB_API_KEY and HF_TOKEN, but not TOKENIZERS_PARALLELISM; and as fields are.
_VARIABLE = re.compile(r"(?:^|(?:API|ACCESS|AUTH|PRIVATE|SECRET)_?)KEY(?:_ID)?$|TOKEN$|SECRET|PASSW")
_FIELD = re.compile(r"(?:api|access|private|secret)_?key$|(?:api|access|auth|hf)_?token$|secret$|passw(?:or)?d$")
_ASSIGNED = re.compile(r"(\w+)(['\"]?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^,{}\[\]]+)")


def is_secret(name: str) -> bool:
    """Whether a variable or a field of this name, without the sections before it, holds something secret."""
    return bool(_VARIABLE.search(name) if name.isupper() else _FIELD.search(name.lower()))


def masked(value: Any) -> Any:
    """A copy of nested dicts and lists without the values of secret names; of a text, such as an override, likewise."""
    if isinstance(value, dict):
        return {
            key: MASK if is_secret(str(key)) and item is not None else masked(item) if _nested(item) else item
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [masked(item) if _nested(item) else item for item in value]
    return _ASSIGNED.sub(lambda found: f"{found[1]}{found[2]}{MASK}" if is_secret(found[1]) else found[0], value)


def _nested(value: Any) -> bool:
    return isinstance(value, dict | list)


def check_secrets(config: DictConfig) -> None:
    """See that no secret is among the settings: verl prints all of them, resolved.

    Raises:
        UserError: one is; its value is not told.
    """
    for field, value in flatten(OmegaConf.to_container(config)).items():
        name = field.rpartition(".")[2]
        if is_secret(name) and value is not None:
            raise UserError(
                f"{field}: verl prints its settings into the log, and this with them; leave it out and export {name} "
                "where you start the run (on a running cluster: before ray start), its processes inherit it"
            )
