# SPDX-License-Identifier: Apache-2.0
"""The documentation: links that lead somewhere, settings and methods that are all there, commands that exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import typer

from tempo_verl.methods import known

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "recipes/**/*.md", "docker/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
DOCS = [path for path in PAGES if path == ROOT / "README.md" or path.is_relative_to(ROOT / "docs")]
EXAMPLE = ROOT / "examples" / "own_method" / "README.md"
FENCE = re.compile(r"^``` ?(?P<language>[^\n]*)\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[(?:[^\]`]|`[^`]*`)*\]\((?P<target>[^)\s]+)\)")


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "site" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generate = _load()


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and the site both make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    words = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"\s", "-", heading) for heading in words}


def commands(page: Path) -> list[list[str]]:
    """Every line that is run in a page's shell blocks, as words; comments and continuations resolved."""
    blocks = (match["code"] for match in FENCE.finditer(text_of(page)) if match["language"].strip() == "bash")
    lines = (line for block in blocks for line in block.replace("\\\n", " ").splitlines())
    return [words for line in lines if (words := shlex.split(line, comments=True))]


# ---------------------------------------------------------------------- links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page: Path) -> None:
    for match in LINK.finditer(FENCE.sub("", text_of(page))):
        target, _, anchor = match["target"].partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{target} is not there"
        assert file.is_relative_to(ROOT)
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{target}#{anchor}: no such heading"


def test_every_page_is_in_the_navigation() -> None:
    navigation = text_of(ROOT / "docs" / "site" / "mkdocs.yml")
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.relative_to(ROOT / "docs").as_posix() in navigation


def test_readme_is_short_and_shows_how_to_begin() -> None:
    readme = text_of(ROOT / "README.md")
    assert len(readme.splitlines()) <= 130
    assert "make quickstart" in readme
    assert "make test" in readme


# ---------------------------------------------------------------------- settings and methods


FIELDS = [field for field in generate.shipped() if field.name.startswith("tempo.")]
OF_METHODS = [(name, field) for name, method in known().items() for field in generate.of_method(method)]


def test_every_field_is_explained_and_in_the_reference() -> None:
    reference = generate.configuration()
    for field in FIELDS:
        assert field.comment, f"{field.name} has no comment above it"
        assert f"`{field.name}` {{ #{field.name} }}" in reference
        assert generate.prose(field.comment) in reference


def test_the_reference_has_every_field_that_a_run_reads() -> None:
    from tempo_verl.config.schema import TempoSettings

    def names(model: type, prefix: str) -> set[str]:
        found = set()
        for name, field in model.model_fields.items():
            section = getattr(field.annotation, "model_fields", None)
            found |= names(field.annotation, f"{prefix}.{name}") if section else {f"{prefix}.{name}"}
        return found

    assert {field.name for field in FIELDS if not field.is_section} == names(TempoSettings, "tempo")


def test_fields_are_read_as_yaml_reads_them() -> None:
    import yaml

    for path in (generate.CONFIG / "tempo_trainer.yaml", *(generate.CONFIG / "method").glob("*.yaml")):
        tree = yaml.safe_load(text_of(path))
        for field in generate.read_yaml(path):
            if not field.name.startswith(("defaults", "hydra")) and not field.is_section:
                value = tree
                for key in field.name.split("."):
                    value = value[key]
                assert yaml.safe_load(field.value) == value, field.name


@pytest.mark.parametrize(("name", "field"), OF_METHODS, ids=lambda part: getattr(part, "name", part))
def test_what_a_method_sets_is_explained(name: str, field: object) -> None:
    assert field.is_section or field.comment, f"method/{name}.yaml: {field.name} has no comment above it"


@pytest.mark.parametrize("name", known())
def test_a_method_has_a_page_and_a_row(name: str) -> None:
    method = known()[name]
    assert all(method.row), f"{name}: row is not filled in"
    assert f"[`{name}`]({name}.md)" in generate.methods_table()
    page = generate.method_page(method)
    assert page.startswith(f"# `{name}`")
    assert method.title in page
    assert all(f"#tempo.{name}.{option} }}" in page for option in method.Options.model_fields)
    assert (generate.CONFIG / "method" / f"{name}.yaml").is_file()


def test_readme_has_the_methods_as_they_are() -> None:
    readme = text_of(ROOT / "README.md")
    assert readme == generate.with_methods(readme), "run: python docs/site/generate.py"


def test_generated_parts_have_a_place() -> None:
    marks = set(re.findall(r"<!-- generated: ([\w-]+) -->", "".join(map(text_of, DOCS)))) - {"end"}
    assert marks == set(generate.BLOCKS)


# ---------------------------------------------------------------------- commands


def test_commands_and_options_exist() -> None:
    from tempo_verl.cli.main import app

    group = typer.main.get_command(app)
    found = 0
    for page in (*DOCS, EXAMPLE):
        for words in commands(page):
            start = next((i for i, word in enumerate(words) if word.endswith("tempo-verl")), None)
            if start is None or start + 1 == len(words) or words[start - 1] == "install":
                continue
            command = group.commands[words[start + 1]]
            options = {option for parameter in command.params for option in parameter.opts}
            for word in words[start + 2 :]:
                assert not word.startswith("--") or word in {*options, "--help"}, (
                    f"{page.name}: {words[start + 1]} {word}"
                )
            found += 1
    assert found > 10


def test_overrides_name_fields_that_exist() -> None:
    known_fields = {field.name for field in FIELDS} | {field.name for _, field in OF_METHODS}
    pages = {page: text_of(page) for page in (*DOCS, EXAMPLE)}
    pages |= {ROOT / name: generate.method_page(method) for name, method in known().items()}
    for page, text in pages.items():
        for name in re.findall(r"(?<![\w+./])(tempo\.[a-z_0-9]+(?:\.[a-z_0-9]+)*)", FENCE.sub(_overrides, text)):
            assert name in known_fields or name == "tempo.confident.critic_share", f"{page.name}: {name}"


def _overrides(block: re.Match[str]) -> str:
    return block["code"] if block["language"].strip() == "bash" else ""
