# SPDX-License-Identifier: Apache-2.0
"""The TEMPO trainer on verl's v1 synchronous trainer."""

from types import ModuleType


def register(_v1_module: ModuleType) -> None:
    """Register ``trainer.v1.trainer_mode=tempo`` (importing the module does it)."""
    import tempo_verl.trainer.trainer  # noqa: F401
