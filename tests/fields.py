# SPDX-License-Identifier: Apache-2.0
"""The shipped ``tempo`` section without the rest of the configuration: made in milliseconds."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import tempo_verl.config
from tempo_verl.config.schema import read_settings
from tempo_verl.methods import Method

CONFIG = Path(tempo_verl.config.__file__).parent


def section(group: str = "tempo", /, **changes: Any) -> DictConfig:
    """A configuration with the ``tempo`` section alone, as ``method=group`` makes it.

    Dots in the names of ``changes`` may be written as ``__``.
    """
    config = OmegaConf.merge(
        {"tempo": _load("tempo_trainer.yaml"), "actor_rollout_ref": {"rollout": {"n": 8}}},
        {"tempo": _load(f"method/{group}.yaml")},
    )
    config.tempo.labeled.files = "labeled.parquet"
    for field, value in changes.items():
        OmegaConf.update(config.tempo, field.replace("__", "."), value)
    return config


def method_of(group: str = "tempo", /, **changes: Any) -> Method:
    """A method with the shipped settings, and these changes."""
    return read_settings(section(group, **changes))


@lru_cache
def _load(file: str) -> Any:
    return OmegaConf.load(CONFIG / file).tempo
