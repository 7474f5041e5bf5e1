# SPDX-License-Identifier: Apache-2.0
"""Which runs belong together: runs with the same resolved configuration, seeds aside, are one group."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from tempo_verl.report.data import RunData
from tempo_verl.report.methods import about

# Names, logging, checkpoints and Ray say nothing about what a run learns.
IGNORED = (
    "trainer.experiment_name",
    "trainer.project_name",
    "trainer.logger",
    "trainer.resume_",
    "trainer.save_freq",
    "tempo.checkpoint.",
    "tempo.predictions.before",
    "ray_kwargs.",
)
ORACLE_MARK = "[ORACLE]"


@dataclass(frozen=True)
class Difference:
    """Settings that differ between groups in the same way, and the value each group has (None: not set there)."""

    keys: list[str]
    values: list[str | None]


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds only. ``settings`` is what they share, see :func:`comparable`."""

    name: str
    runs: list[RunData]
    settings: dict[str, str]

    @property
    def oracle(self) -> bool:
        """Whether the group was trained on the answers of D_U, or may have been: by a method unknown here."""
        run = self.runs[0]
        uses = about(run.method).uses_answers_of_d_u
        return bool(run.settings.get("tempo.allow_labels_on_unlabeled")) if uses is None else uses


def comparable(settings: Mapping[str, Any]) -> dict[str, str]:
    """A resolved configuration without seeds and without what depends on where a run was kept.

    Of a path the file name remains, or what is below ``checkpoints/``: the stage 0 of another seed is the same, that of
    another length, or another data file, is not.
    """
    kept = {key: value for key, value in settings.items() if not (_is_seed(key) or key.startswith(IGNORED))}
    return {key: _text(value) for key, value in kept.items()}


def seeds(settings: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The seeds of a run, without those of a stream that it does not read."""
    streams = ("tempo.labeled", "tempo.unlabeled")
    unread = {f"{stream}.seed" for stream in streams if not settings.get(f"{stream}.files")}
    return tuple((key, value) for key, value in sorted(settings.items()) if _is_seed(key) and key not in unread)


def same_seeds(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether every seed that both runs have is the same: a method on D_L alone has none for D_U."""
    mine, theirs = dict(seeds(one)), dict(seeds(other))
    return all(theirs.get(key, value) == value for key, value in mine.items())


def _is_seed(key: str) -> bool:
    last = key.rpartition(".")[2]
    return last == "seed" or last.endswith("_seed")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value, default=str)
    if not (value.startswith(("/", "./", "../", "~")) or value.count("/") > 1):
        return value
    inside = value.partition("/checkpoints/")[2]
    return inside or PurePosixPath(value).name


def group_runs(runs: Sequence[RunData], notes: list[str]) -> list[Group]:
    """Runs by group, in the order in which they are given. A run without a configuration stands alone, with a note."""
    groups: list[Group] = []
    for run in runs:
        settings = comparable(run.settings)
        same = next((group for group in groups if settings and group.settings == settings), None)
        if same:
            same.runs.append(run)
        else:
            groups.append(Group("", [run], settings))
        if not settings:
            notes.append(f"{run.name} has no config.yaml: it is a group of its own, and its settings are not compared.")
    return [Group(name, group.runs, group.settings) for name, group in zip(_names(groups), groups, strict=True)]


def config_diff(groups: Sequence[Group]) -> list[Difference]:
    """Settings that are not the same in all groups that have any, those together that differ in the same way."""
    known = [group.settings for group in groups if group.settings]
    by_values: dict[tuple[str | None, ...], list[str]] = {}
    for key in sorted({key for settings in known for key in settings}, key=lambda key: (key[:6] != "tempo.", key)):
        if len({settings.get(key) for settings in known}) > 1:
            by_values.setdefault(tuple(group.settings.get(key) for group in groups), []).append(key)
    return [Difference(keys, list(values)) for values, keys in by_values.items()]


def _names(groups: Sequence[Group]) -> list[str]:
    """The method, and of the settings that differ within a method as few as it takes to tell its groups apart."""
    names = [group.runs[0].method or group.runs[0].name for group in groups]
    for method in set(names):
        mine = [number for number, name in enumerate(names) if name == method]
        parts: list[tuple[str, ...]] = [(method,)] * len(mine)
        longer = [_settings_text(difference) for difference in config_diff([groups[number] for number in mine])]
        while len(set(parts)) < len(mine) and longer:
            # of those that tell most groups apart the first
            told_apart = [len(set(zip(parts, texts, strict=True))) for texts in longer]
            texts = longer.pop(told_apart.index(max(told_apart)))
            parts = [(*part, text) for part, text in zip(parts, texts, strict=True)]
        for number, part in zip(mine, parts, strict=True):
            names[number] = ", ".join(part) + f" {ORACLE_MARK}" * groups[number].oracle
    return names


def _settings_text(difference: Difference) -> list[str]:
    """``calibration.lr=0.001`` for each group."""
    short = ".".join(difference.keys[0].split(".")[-2:])
    return [f"{short}={'–' if value is None else value}" for value in difference.values]
