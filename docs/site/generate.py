# SPDX-License-Identifier: Apache-2.0
"""What the documentation says about settings and methods, made from the YAML files and the classes themselves.

MkDocs calls this module as a hook (``docs/site/mkdocs.yml``): it fills the places marked ``<!-- generated: ... -->``
and adds a page for every method. ``python docs/site/generate.py`` renews the table of methods in README.md.
"""

from __future__ import annotations

import inspect
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempo_verl.config.checks import WITHOUT_EFFECT
from tempo_verl.config.files import written
from tempo_verl.config.schema import TempoSettings
from tempo_verl.methods import Method, known

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
CONFIG = ROOT / "tempo_verl" / "config"
PICTURES = "recipes/miniature/results"  # shown in docs/ as they are there
MARK = "<!-- generated: {} -->"

LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w-]+):(?: +(?P<value>.*))?$")
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)]*)?\)")
# in a comment: formulas, names of settings, commands and files, and the values that it explains ("null: off")
CODE = re.compile(
    r"A_t = R - V\(x, y_1:t-1\)|R = V\([^)]*\)|\b[RV]\(x, [^)]*\)|\bU\(0, 1\)|tempo-verl [a-z]+(?: --[a-z]+)?"
    r"|\b(?:[a-z]+_?)+(?:\.[A-Za-z_0-9]+)+(?:=[\w.]+)?|\b[a-z]+_[a-z_]+[a-z](?:=\w+)?\b|\bmethod=\w+"
    r"|\b[A-Za-z_]+/[\w*/.]*[\w*]|\bmodule:Class\b|(?:^|(?<=\. ))[a-z0-9][\w-]*(?=:| = )"
)


# ---------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Setting:
    """A key of a YAML file: dotted name, value as written ("" for a section), and the comment above it."""

    name: str
    value: str
    comment: str

    @property
    def is_section(self) -> bool:
        return not self.value


def read_yaml(path: Path) -> list[Setting]:
    """Every key of a configuration file in its order. A blank line parts a comment from the key below it."""
    settings: list[Setting] = []
    parents: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("#"):
            comment.append(text.lstrip("# "))
            continue
        if match := LINE.match(line):
            indent = len(match["indent"])
            parents = [parent for parent in parents if parent[0] < indent]
            name = ".".join([*(key for _, key in parents), match["key"]])
            settings.append(Setting(name, match["value"] or "", " ".join(comment)))
            parents.append((indent, match["key"]))
        comment = []
    return settings


def shipped() -> list[Setting]:
    """The settings of ``tempo_trainer.yaml``, without Hydra's own."""
    return [
        each for each in read_yaml(CONFIG / "tempo_trainer.yaml") if not each.name.startswith(("defaults", "hydra"))
    ]


def of_method(method: type[Method]) -> list[Setting]:
    """What ``method=NAME`` sets."""
    return read_yaml(CONFIG / "method" / f"{method.name}.yaml")


def configuration() -> str:
    """The reference of the ``tempo`` section, and what TEMPO sets of verl's own fields."""
    schema = TempoSettings.model_json_schema()
    own = [each for each in shipped() if each.name.startswith("tempo.")]
    sections = {each.name for each in own if each.is_section}
    chapters: dict[str, list[str]] = {"tempo": [], **{name: [] for name in sections}}
    for each in own:
        if not each.is_section:
            chapters[each.name.rpartition(".")[0]].append(field(each, type_of(schema, each.name.split(".")[1:])))
    text = ["## The `tempo` section", *chapters["tempo"]]
    for each in own:
        if each.is_section:
            text += [f"### `{each.name}` {{ #{each.name} }}", prose(each.comment), *chapters[each.name]]
    text += ["## Fields of verl that TEMPO sets", table_of([s for s in shipped() if not s.name.startswith("tempo")])]
    return "\n\n".join(text)


def field(setting: Setting, kind: str) -> str:
    """A setting as an entry of its own, which can be linked to and searched for."""
    name = f"#### `{setting.name}` {{ #{setting.name} }}"
    return f"{name}\n\n{default(setting)}{kind}\n{{ .facts }}\n\n{prose(setting.comment)}"


def default(setting: Setting) -> str:
    if setting.value == "???":
        return "Required"
    if same := re.fullmatch(r"\$\{([\w.]+)\}", setting.value):
        return f"Default: that of `{same[1]}`"
    return f"Default: `{setting.value}`"


def table_of(settings: list[Setting]) -> str:
    """Settings in a table; sections are left out."""
    rows = [f"| `{each.name}` | `{each.value}` | {prose(each.comment)} |" for each in settings if not each.is_section]
    return "\n".join(["| field | value | |", "|---|---|---|", *rows])


def prose(comment: str) -> str:
    """A comment as Markdown: names of settings as code, nothing else special."""
    pieces, end = [], 0
    for match in CODE.finditer(comment):
        pieces += [_escaped(comment[end : match.start()]), f"`{match[0]}`"]
        end = match.end()
    text = "".join([*pieces, _escaped(comment[end:])]).strip()
    return text if not text or text.endswith((".", ":")) else f"{text}."


def _escaped(text: str) -> str:
    return re.sub(r"([*_<|\[\]])", r"\\\1", text) if "`" not in text else text


def type_of(schema: dict[str, Any], path: list[str]) -> str:
    """What a field may be, in words, from the schema that checks it; "" if the schema does not know it."""
    node = schema
    for name in path:
        node = node.get("properties", {}).get(name)
        if node is None:
            return ""
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return f" · {_words(node)}"


def _words(node: dict[str, Any]) -> str:
    if "anyOf" in node:
        return " or ".join(_words(each) for each in node["anyOf"])
    if "enum" in node:
        return "one of " + ", ".join(f"`{each}`" for each in node["enum"])
    kind = node.get("type", "any")
    if kind == "array":
        items = node.get("items", {})
        return f"list, each {_words(items)}" if "enum" in items else "list"
    if kind == "null":
        return "`null`"
    limits = {"minimum": "at least", "exclusiveMinimum": "more than", "exclusiveMaximum": "less than"}
    words = {"integer": "integer", "number": "number", "boolean": "`true` or `false`", "string": "text"}
    return ", ".join([words.get(kind, kind), *(f"{said} {node[key]:g}" for key, said in limits.items() if key in node)])


def without_effect() -> str:
    """Settings of verl that the checks refuse, and what to use instead."""
    rows = [f"| `{name}` | `{written(neutral)}` | {instead} |" for name, neutral, instead in WITHOUT_EFFECT]
    return "\n".join(["| field | leave it at | because, or instead |", "|---|---|---|", *rows])


# ---------------------------------------------------------------------- methods


def methods_table(to_page: str = "{}.md") -> str:
    """The methods of the registry, one a row.

    Args:
        to_page: where the page of a method is; "" for no link.
    """
    rows = []
    for name, method in known().items():
        first = f"[`{name}`]({to_page.format(name)})" if to_page else f"`{name}`"
        rows.append("| " + " | ".join([first, *method.row]) + " |")
    return "\n".join(["| `method=` | rewarded for | advantage | critic |", "|---|---|---|---|", *rows])


def method_page(method: type[Method]) -> str:
    """The page of one method."""
    reward, advantage, critic = method.row
    text = inspect.cleandoc(method.__doc__ or "")
    need = {True: "needed", None: "optional", False: "not used"}
    facts = {
        "Rewarded for": reward,
        "Advantage": advantage,
        "Critic": critic,
        "The policy learns on": "D_U, the unlabelled questions" if method.needs.unlabeled else "D_L, the labelled ones",
        "Labelled questions": need[method.needs.labeled],
        "Unlabelled questions": need[method.needs.unlabeled] + (", with answers" if method.reads_answers else ""),
        "Needs a critic": {True: "yes", None: "optional", False: "no"}[method.needs.critic],
        "E-step": "yes" if method.fits_critic else "no",
        "Gate (`tempo.calibration.gate`)": "yes" if method.has_gate else "no",
        "Sees answers of D_U": "**yes**" if method.reads_answers else "no",
    }
    schema = method.Options.model_json_schema()
    mine = [each for each in of_method(method) if each.name.startswith(f"tempo.{method.name}.")]
    options = [field(each, type_of(schema, each.name.split(".")[2:])) for each in mine]
    source = Path(inspect.getfile(method)).relative_to(ROOT)
    lines = [
        f"# `{method.name}`",
        f"With `method={method.name}` {method.title}.",
        text,
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]),
        "## Run it",
        f"```bash\n{command(method)}\n```",
        "The other settings are in the [configuration reference](../configuration.md), the measures in "
        "[metrics](../metrics.md).",
        "## Options of its own",
        *(options or ["None."]),
        f"## What `method={method.name}` sets",
        table_of(of_method(method)),
        f"Source: [`{source.as_posix()}`](../../{source.as_posix()}).",
    ]
    return "\n\n".join(lines) + "\n"


def command(method: type[Method]) -> str:
    """How to train it, after stage 0; stage 0 itself starts from a model."""
    needs, words = method.needs, [f"tempo-verl train --run-dir runs/{method.name} method={method.name}"]
    if needs.labeled or method.fits_critic:
        words.append("tempo.labeled.files=data/labeled.parquet")
    if needs.unlabeled:
        words.append("tempo.unlabeled.files=data/unlabeled.parquet")
    if method.reads_answers:
        words.append("tempo.allow_labels_on_unlabeled=true")
    if needs.critic and not needs.unlabeled:
        words.append("actor_rollout_ref.model.path=MODEL critic.model.path=MODEL")
    else:
        words.append("tempo.start_from=runs/stage0")
    return " \\\n    ".join(words)


# ---------------------------------------------------------------------- hooks of MkDocs

BLOCKS = {"configuration": configuration, "methods": methods_table, "without-effect": without_effect}


def on_config(config: Any) -> Any:
    """A page of every method in the navigation, below the table of them."""
    for entry in config.nav:
        if "Methods" in entry:
            entry["Methods"] = [*entry["Methods"], *({name: f"methods/{name}.md"} for name in known())]
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for name, method in known().items():
        files.append(File.generated(config, f"methods/{name}.md", content=method_page(method)))
    for picture in (ROOT / PICTURES).glob("*.png"):
        files.append(File.generated(config, f"assets/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    for name, make in BLOCKS.items():
        if MARK.format(name) in markdown:
            markdown = markdown.replace(MARK.format(name), make())
    markdown = markdown.replace(f"../{PICTURES}/", "assets/")
    return LINK.sub(lambda link: _of_repository(link, page.file.src_uri, config.repo_url), markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Docstrings mark names as Sphinx does; on the site they are code."""
    return re.sub(r":(?:class|func|meth|mod|attr):(?=<code)", "", html)


def _of_repository(link: re.Match[str], page: str, repository: str | None) -> str:
    """A link to a file outside docs/ leads to the repository; where its address is not set, it is text."""
    target = link["target"]
    if "://" in target or target.startswith("mailto:"):
        return link[0]
    path = Path(os.path.normpath(DOCS / Path(page).parent / target))
    if path.is_relative_to(DOCS) and not path.is_relative_to(DOCS / "site"):
        return link[0]
    inside = path.relative_to(ROOT).as_posix()
    if repository:
        return f"[{link['text']}]({repository.rstrip('/')}/blob/main/{inside}{link['anchor'] or ''})"
    shown = link["text"].strip("`")
    return f"`{inside}`" if shown in inside else f"{link['text']} (`{inside}`)"


# ---------------------------------------------------------------------- README


def with_methods(readme: str) -> str:
    """README.md with the table of methods as it is now."""
    begin, end = MARK.format("methods"), MARK.format("end")
    before, _, rest = readme.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{methods_table(to_page='')}\n{end}{after}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_methods(path.read_text(encoding="utf-8")), encoding="utf-8")
