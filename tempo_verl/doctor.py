# SPDX-License-Identifier: Apache-2.0
"""Is the installation whole? verl hides a plugin that fails to load, so we load it in the open."""

from __future__ import annotations

import os
import platform
import sys
import warnings
from importlib.metadata import PackageNotFoundError, entry_points, metadata, requires, version
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tempo_verl.compat import check_verl_version
from tempo_verl.errors import UserError

PACKAGES = (
    "tempo-verl", "verl", "torch", "transformers", "ray", "TransferQueue", "tensordict", "vllm", "sglang",
    "flash-attn", "megatron-core", "math-verify", "hydra-core", "omegaconf", "numpy",
)  # fmt: skip
MATTER = ("python", "verl", "torch", "ray", "transformers")


def versions() -> dict[str, str]:
    """Installed versions of the packages that matter; what is not installed is left out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def surroundings() -> dict[str, Any]:
    """``versions`` and ``machine``, which a reader needs to judge numbers that were measured here."""
    return {
        "versions": {"python": platform.python_version(), **versions()},
        "machine": {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()},
    }


def check_entry_point() -> None:
    """See that verl will look for the plugin.

    Raises:
        UserError: verl's version does not fit, or the entry point is missing or left out; with the reason.
    """
    check_verl_version()
    if not any(point.value == "tempo_verl.plugin" for point in entry_points(group="verl.plugins")):
        raise UserError("the entry point verl.plugins/tempo is missing; reinstall: pip install tempo-verl")
    plugins = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    if plugins.strip().lower() != "auto" and "tempo" not in {name.strip().lower() for name in plugins.split(",")}:
        raise UserError(f"VERL_USE_EXTERNAL_PLUGINS={plugins} leaves out 'tempo'; add it, or unset the variable")


def check_plugin() -> None:
    """Load the plugin and the trainer with nothing caught.

    Raises:
        UserError: as :func:`check_entry_point`, or a registration failed.
    """
    check_entry_point()
    try:
        import tempo_verl.plugin  # noqa: F401

        with warnings.catch_warnings():
            # verl tells of each of its training engines that is not installed; one is enough
            warnings.filterwarnings("ignore", message=".*engine is not available")
            from verl.plugin.platform import PlatformRegistry
            from verl.trainer.ppo.v1 import get_trainer_cls

            get_trainer_cls("tempo")
    except Exception as error:
        raise UserError(f"the plugin does not load: {type(error).__name__}: {error}") from error
    if PlatformRegistry.get("cpu") is None:
        raise UserError("the CPU platform is not registered; reinstall: pip install tempo-verl")


def registered() -> str:
    """What ``import verl`` alone, which hides a plugin that fails, has brought into this process, in words.

    Raises:
        UserError: not the plugin.
    """
    import verl  # noqa: F401

    if "tempo_verl.plugin" not in sys.modules:
        raise UserError("import verl did not load the plugin; install the same environment on every node")
    from verl.trainer.ppo.v1 import get_trainer_cls

    get_trainer_cls("tempo")
    return "loaded; trainer_mode=tempo registered"


def requirements() -> dict[str, SpecifierSet]:
    """What this package asks for, by package; that of extras as well, whose packages need not be there."""
    asked: dict[str, SpecifierSet] = {"python": SpecifierSet(metadata("tempo-verl")["Requires-Python"])}
    for line in requires("tempo-verl") or ():
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        asked[name] = asked.get(name, SpecifierSet()) & requirement.specifier
    return asked


def check_versions() -> str:
    """See that what is installed is what this package was made for.

    Returns:
        The versions that matter most, in words.

    Raises:
        UserError: which do not fit.
    """
    asked, wrong = requirements(), []
    needed = {canonicalize_name(Requirement(line).name) for line in requires("tempo-verl") or () if "extra" not in line}
    for name, specifier in asked.items():
        try:
            found = platform.python_version() if name == "python" else version(name)
        except PackageNotFoundError:
            if name in needed:
                wrong.append(f"{name} is not installed, {specifier or 'any version'} is needed")
            continue
        if not specifier.contains(found, prereleases=True):
            wrong.append(f"{name} {found} is installed, {specifier} is needed")
    if wrong:
        raise UserError(f"{'; '.join(wrong)}; reinstall: pip install tempo-verl")
    told = [f"{name} {platform.python_version() if name == 'python' else version(name)}" for name in MATTER]
    return ", ".join(f"{name} ({asked[name.split()[0]]})" for name in told)
