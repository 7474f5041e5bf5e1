# SPDX-License-Identifier: Apache-2.0
"""The list of a checkpoint's files, with sizes and hashes. It is written last: where it is, all of them are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

NAME = "manifest.json"
BEGUN = "unfinished"  # in a folder as long as its checkpoint is being written
DAMAGED = f"damaged_{NAME}"
CHUNK = 2**22  # bytes read at a time
READERS = 8  # files at a time


def write_text(path: Path, text: str) -> None:
    """Whoever reads the file finds the old text or the new one, even after a crash."""
    new = path.with_name(f"{path.name}.new")
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def sha256(path: Path, *, sync: bool = False) -> str:
    """Hash of a file's content.

    Args:
        sync: also wait until the disk holds it.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
        if sync:
            os.fsync(file.fileno())
    return digest.hexdigest()


def begin(folder: Path) -> None:
    """Make the folder of a checkpoint that is about to be written."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / BEGUN).touch()


def discard(folder: Path) -> None:
    """Remove what can be removed of a checkpoint whose writing failed.

    The mark of an unfinished one stays: other ranks may be writing still, and what they leave must not be taken for
    another run's.
    """
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != BEGUN:
            with contextlib.suppress(OSError):  # why the writing failed is told
                path.unlink()


def write_manifest(folder: Path, about: Mapping[str, Any], *, hashes: bool = True) -> None:
    """Make a checkpoint a whole one.

    Args:
        folder: where all else is written.
        about: what else the manifest holds: JSON values.
        hashes: read every file back; else the manifest tells of sizes alone.
    """
    files = _files(folder)
    found: dict[str, dict[str, Any]] = {name: {"bytes": (folder / name).stat().st_size} for name in files}
    if hashes:
        for name, digest in _hashed(folder, files, sync=True).items():
            found[name]["sha256"] = digest
    write_text(folder / NAME, json.dumps({**about, "files": found}, indent=1))
    (folder / BEGUN).unlink(missing_ok=True)


def is_ours(folder: Path) -> bool:
    """Whether a folder was written, or begun, with a manifest; verl alone writes none."""
    return any((folder / name).exists() for name in (NAME, BEGUN, DAMAGED))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What it holds; None where there is none, or none that can be read."""
    try:
        manifest = json.loads((folder / NAME).read_text())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) else None


def fault(folder: Path, *, hashes: bool = False) -> str | None:
    """Why a folder is no whole checkpoint, in words; None if it is one.

    Args:
        hashes: read every file, too.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return f"{NAME} is missing or torn" if folder.is_dir() else "the folder is missing"
    files: dict[str, dict[str, Any]] = manifest["files"]
    for name, told in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != told["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {told['bytes']}"
    if hashes:
        known = {name: told["sha256"] for name, told in files.items() if "sha256" in told}
        for name, digest in _hashed(folder, list(known)).items():
            if digest != known[name]:
                return f"{name} was changed after it was saved"
    return None


def disown(folder: Path) -> None:
    """Let a folder whose files are not as they were saved count as no checkpoint from now on."""
    if (folder / NAME).exists():
        (folder / NAME).rename(folder / DAMAGED)


def _files(folder: Path) -> list[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name not in (NAME, f"{NAME}.new", BEGUN))


def _hashed(folder: Path, names: list[str], *, sync: bool = False) -> dict[str, str]:
    with ThreadPoolExecutor(READERS) as readers:  # hashing lets go of the interpreter
        return dict(zip(names, readers.map(lambda name: sha256(folder / name, sync=sync), names), strict=True))
