# SPDX-License-Identifier: Apache-2.0
"""Is the installation whole? verl hides a plugin that fails to load, so we load it in the open."""

from __future__ import annotations

import os
import warnings
from importlib.metadata import PackageNotFoundError, entry_points, version

from rich.console import Console
from rich.table import Table

from tempo_verl.compat import check_verl_version
from tempo_verl.errors import UserError

PACKAGES = (
    "tempo-verl", "verl", "torch", "transformers", "ray", "TransferQueue", "tensordict", "vllm", "sglang",
    "flash-attn", "megatron-core", "math-verify", "hydra-core", "omegaconf", "numpy",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Installed versions of the packages that matter; what is not installed is left out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


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


def diagnose(console: Console) -> bool:
    """Print versions and checks. Returns whether everything is in order."""
    table = Table("package", "version", title="tempo-verl doctor")
    for package, number in versions().items():
        table.add_row(package, number)
    console.print(table)
    try:
        check_plugin()
    except UserError as error:
        console.print(f"[red]not in order:[/] {error}")
        return False
    from verl.plugin.platform import get_platform

    console.print(f"plugin: loaded; trainer_mode=tempo registered; platform: {get_platform().device_name}")
    return True
