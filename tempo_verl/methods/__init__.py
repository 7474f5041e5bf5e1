# SPDX-License-Identifier: Apache-2.0
"""The methods that share the trainer, one file each. ``method=NAME`` chooses one of these.

A user's own needs no change here: ``tempo.method=my_package.my_module:MyMethod`` names a :class:`Method` subclass that
is importable on every node. Everything that depends on a method asks its class: checks, reports, recipes and docs.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import lru_cache

from tempo_verl.errors import UserError
from tempo_verl.methods.base import Method, Needs, Options, Plan, Round, Trained

DEFAULT = "tempo"  # first in every list

__all__ = ["Method", "Needs", "Options", "Plan", "Round", "Trained", "find", "known"]


@lru_cache
def known() -> dict[str, type[Method]]:
    """The methods of this package by name, the default one first, then by the alphabet."""
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    methods = {method.name: method for module in modules for method in _methods_of(module)}
    return dict(sorted(methods.items(), key=lambda item: (item[0] != DEFAULT, item[0])))


def find(name: str) -> type[Method]:
    """A method by its name, or by ``module:Class``.

    Raises:
        UserError: there is none of this name, or the module or class cannot be imported.
    """
    if ":" not in name:
        if name not in known():
            raise UserError(
                f"tempo.method={name} is unknown; choose one of {', '.join(known())}, or name your own as module:Class"
            )
        return known()[name]
    module, _, attribute = name.partition(":")
    try:
        method = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a user's module may raise anything
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"tempo.method={name} cannot be imported ({why}); install its package on every node, or put its folder on "
            "PYTHONPATH"
        ) from error
    if not (inspect.isclass(method) and issubclass(method, Method)):
        raise UserError(f"tempo.method={name} is not a class derived from tempo_verl.methods.Method")
    missing = [field for field in ("name", "title", "needs") if not hasattr(method, field)]
    if missing or inspect.isabstract(method):
        raise UserError(f"tempo.method={name} lacks {', '.join(missing) or 'a step'}; see docs/own-method.md")
    return method


def _methods_of(module) -> list[type[Method]]:
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Method) and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]  # fmt: skip
