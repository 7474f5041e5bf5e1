# SPDX-License-Identifier: Apache-2.0
"""``pyproject.toml`` declares what the code imports, and ``constraints/cpu.txt`` pins what it declares."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:  # comes with pytest there
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
# What a user may do without: imported where it is used, after a check that names the extra.
OPTIONAL = {"math-verify": "math", "vllm": "vllm"}
OF_VERL = {"megatron"}  # Megatron-Core, which verl's extra of that name brings


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements: Iterable[str]) -> set[str]:
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


def extra(name: str) -> set[str]:
    return names(project()["optional-dependencies"][name])


def imported(folder: str) -> dict[str, set[str]]:
    """Distributions that the files below ``folder`` import, at their top or within functions; and which files do."""
    known = packages_distributions()
    own = {"tempo_verl", *(path.stem for part in (folder, "benchmarks") for path in (ROOT / part).rglob("*.py"))}
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            else:
                continue
            for module in {module.partition(".")[0] for module in modules} - own - sys.stdlib_module_names:
                for name in known.get(module, [module]):  # one that is not installed is called as its module is
                    found.setdefault(canonicalize_name(name), set()).add(str(path.relative_to(ROOT)))
    return found


def test_the_package_declares_what_it_imports() -> None:
    found = imported("tempo_verl")
    assert {"torch", "tqdm", "pyyaml", "vllm"} <= found.keys()  # the search finds them at all
    undeclared = {name: files for name, files in found.items() if name not in names(project()["dependencies"])}
    assert undeclared.keys() == OPTIONAL.keys() | OF_VERL, undeclared
    for name, of in OPTIONAL.items():
        assert name in extra(of)


@pytest.mark.parametrize("folder", ["recipes", "benchmarks", "tests"])
def test_what_else_the_repository_imports_is_declared_for_developers(folder: str) -> None:
    found = imported(folder)
    assert "typer" in found
    declared = names(project()["dependencies"]) | extra("dev") | extra("math")
    if folder == "tests":
        declared |= {"tomli", "vllm"}  # see above; tests/vllm_cpu/requirements.txt
    assert {name: files for name, files in found.items() if name not in declared} == {}


def test_every_package_of_the_cpu_environment_has_an_exact_version() -> None:
    lines = (ROOT / "constraints" / "cpu.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"==[^*,]+", str(pin.specifier)) for pin in pins)
    wanted = names(project()["dependencies"]).union(*map(extra, ("cpu", "math", "dev", "docs")))
    assert wanted <= names(map(str, pins))
