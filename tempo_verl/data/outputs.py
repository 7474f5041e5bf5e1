# SPDX-License-Identifier: Apache-2.0
"""Files that are written together."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from tempo_verl.errors import UserError


class Outputs:
    """Files that appear together, at the end, or not at all."""

    def __init__(self, stack: ExitStack):
        self._stack = stack
        self._files: dict[Path, IO[str]] = {}

    def open(self, path: Path) -> IO[str]:
        """A text file that :meth:`commit` will put at ``path``."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[path] = file = self._stack.enter_context(temporary.open("w", encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
        self._stack.callback(temporary.unlink, missing_ok=True)
        return file

    def commit(self) -> None:
        """Put every file in its place; one that stayed empty is not kept, nor is one from before in its place."""
        for path, file in self._files.items():
            file.close()
            temporary = Path(file.name)
            if temporary.stat().st_size:
                temporary.replace(path)
            else:
                path.unlink(missing_ok=True)


def beside(path: Path, suffix: str) -> Path:
    """The file that goes with a parquet file."""
    return path.with_name(path.name.removesuffix(".parquet") + suffix)
