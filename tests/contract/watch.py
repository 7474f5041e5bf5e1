#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Run the contract tests against other versions of verl: what an upgrade would break, before anybody upgrades.

    make watch-verl                              # the newest release, and verl's main branch
    make watch-verl ARGS="verl==0.9.0 ../verl"   # these: a requirement, or the folder of a checkout

Each version is installed into a folder of its own, without its dependencies, and found before the one in ``.venv``.
Ends with 1 if a contract test fails. What cannot be fetched is told and left out; with nothing left, it ends with 2.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

CONTRACT = Path(__file__).parent
MAIN = "verl @ git+https://github.com/volcengine/verl"
TARGETS = ("verl", MAIN)


def install(target: str, folder: Path) -> str | None:
    """Install a version of verl alone into ``folder``. Returns why it could not be fetched, None if it could."""
    command = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps", "--target"]
    tried = subprocess.run([*command, str(folder), target], capture_output=True, text=True)
    return None if tried.returncode == 0 else tried.stderr.strip().splitlines()[-1]


def installed_version(folder: Path) -> str:
    from importlib.metadata import distributions

    return next(found.version for found in distributions(path=[str(folder)], name="verl"))


def contract_holds(folder: Path) -> bool:
    """Run the contract tests with the verl in ``folder``; pytest tells which fail."""
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--no-header",
        "--tb=line",
        "-p",
        "no:cacheprovider",
        str(CONTRACT),
    ]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode == 0


def main(targets: list[str]) -> int:
    held: list[bool] = []
    for target in targets or TARGETS:
        with tempfile.TemporaryDirectory(prefix="verl-") as name:
            folder = Path(name)
            reason = install(target, folder)
            if reason is not None:
                print(f"{target}: not fetched ({reason})", flush=True)
                continue
            version = installed_version(folder)
            print(f"{target}: verl {version}", flush=True)
            held.append(contract_holds(folder))
            print(f"{target}: verl {version}: the contract {'holds' if held[-1] else 'is broken'}", flush=True)
    return 2 if not held else 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
