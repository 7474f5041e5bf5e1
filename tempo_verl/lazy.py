# SPDX-License-Identifier: Apache-2.0
"""Imports that wait until something is asked of the module."""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any


class _Waiting(ModuleType):
    """A module that runs its code when the first attribute is missed.

    Not importlib's ``LazyLoader``: a second ``import`` statement asks such a module for its ``__spec__``, and loads it.
    """

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        self.__class__ = ModuleType  # type: ignore[assignment]
        assert spec is not None and spec.loader is not None
        if spec.submodule_search_locations is not None:
            self.__path__ = spec.submodule_search_locations
        try:
            spec.loader.exec_module(self)
        except BaseException:
            sys.modules.pop(spec.name, None)
            raise
        return getattr(self, name)


def import_lazily(name: str) -> None:
    """Let ``import name`` cost nothing until the module is used.

    A command that only reads settings touches every method, and with them torch, which takes a second or more to load.

    Args:
        name: of a module; what is imported already, or not installed, is left alone.
    """
    spec = None if name in sys.modules else find_spec(name)
    if spec is None or spec.loader is None:
        return
    module = module_from_spec(spec)
    vars(module).pop("__path__", None)  # missed as soon as a part of it is imported
    module.__class__ = _Waiting
    sys.modules[name] = module


def is_waiting(name: str) -> bool:
    """Whether a module was imported lazily and nothing has been asked of it yet."""
    return isinstance(sys.modules.get(name), _Waiting)
