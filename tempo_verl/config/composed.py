# SPDX-License-Identifier: Apache-2.0
"""Composes the shipped configuration, without an import of verl: a mistake in a setting is told at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import tempo_verl.plugin  # noqa: F401  (its resolvers)
from tempo_verl.compat import check_verl_version
from tempo_verl.config.flat import flatten
from tempo_verl.config.secrets import masked
from tempo_verl.errors import UserError

CONFIG_MODULE, CONFIG_NAME = "tempo_verl.config", "tempo_trainer"


def resolve_config(overrides: Sequence[str]) -> DictConfig:
    """Compose the shipped configuration.

    Raises:
        UserError: verl is missing or of another version, or an override does not fit the configuration; in one line.
    """
    check_verl_version()
    # as pkg://verl.trainer.config, which Hydra would import, and torch with it
    of_verl = Path(find_spec("verl").submodule_search_locations[0]) / "trainer" / "config"  # type: ignore[union-attr,index]
    try:
        with initialize_config_module(CONFIG_MODULE, version_base=None):
            return compose(CONFIG_NAME, overrides=[f"hydra.searchpath=['file://{of_verl}']", *overrides])
    except MissingConfigException as error:
        group, _, name = (error.missing_cfg_file or "").partition("/")
        raise UserError(f"{group}={name} is unknown; choose one of {', '.join(error.options or ())}") from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if unknown := re.match(r"Could not override '([^']+)'", str(error)):
            raise UserError(_unknown(unknown[1], overrides)) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError("; ".join(lines)) from error


def _unknown(field: str, overrides: Sequence[str]) -> str:
    """What is told of an override of a field that there is not, with the field that was probably meant."""
    of_field = (override for override in overrides if override.partition("=")[0].lstrip("+~") == field)
    given = masked(next(of_field, field))
    config = resolve_config([override for override in overrides if override.partition("=")[0] == "method"])
    names, name = {known.rpartition(".")[2]: known for known in _fields(config)}, field.rpartition(".")[2]
    close = difflib.get_close_matches(field, _fields(config), n=1, cutoff=0.8)
    close = close or [names[found] for found in difflib.get_close_matches(name, names, n=1, cutoff=0.8)]
    meant = f"; did you mean {close[0]}?" if close else ""
    return f"{given}: there is no such setting{meant} (+{given} would add it)"


def _fields(config: DictConfig) -> list[str]:
    return list(flatten(OmegaConf.to_container(config)))
