# SPDX-License-Identifier: Apache-2.0
"""Can the place that an option names be written? Asked before anything expensive is done."""

from __future__ import annotations

import os
from pathlib import Path

from tempo_verl.errors import UserError


def output_folder(option: str, path: Path) -> None:
    """A folder, there or not, that files can be put into.

    Args:
        option: that names it, for messages.

    Raises:
        UserError: it is a file, lies in one, or must not be written.
    """
    if os.path.lexists(path) and not path.is_dir():
        raise UserError(f"{option}={path} is a file; name a folder")
    _writable(option, path, path)


def output_file(option: str, path: Path) -> None:
    """As :func:`output_folder`, for a file."""
    if path.is_dir():
        raise UserError(f"{option}={path} is a folder; name a file")
    _writable(option, path, path.parent)
    if path.exists() and not os.access(path, os.W_OK):
        raise UserError(f"{option}={path} must not be written; name another place, or change its permissions")


def _writable(option: str, path: Path, folder: Path) -> None:
    """``folder`` can be made, and files in it."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))
    if not there.is_dir():
        raise UserError(f"{option}={path} cannot be made: {there} is a file; name another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{option}={path}: {there} must not be written; name another place, or change its permissions")
