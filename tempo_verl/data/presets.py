# SPDX-License-Identifier: Apache-2.0
"""Data sets by name: where they are published, under which columns, and how they are asked and checked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from tempo_verl.errors import UserError

FILE = Path(__file__).with_name("presets.yaml")


@dataclass(frozen=True)
class Preset:
    """An entry of presets.yaml.

    Attributes:
        hub: ids on the Hugging Face hub, read one after the other.
        licence: of the data, as its authors give it.
        config, split: on the hub; ``*`` stands for all configurations.
        question, answer, options, distractors, passage, id: columns in the forms in which the set is published; what is
            left out is guessed.
        strip: regular expressions for what to take away from the published question.
        template, verifier, ability: as the options of ``tempo-verl prepare``; ``None`` for its default.
        label_base: what numbers that name options are, as ``--label-base``; ``None`` to decide by all of them.
        note: what its user should know; ``hub_note`` only where it was read from the hub, as written here.
    """

    hub: tuple[str, ...]
    licence: str
    config: str | None = None
    split: str | None = None
    question: tuple[str, ...] | None = None
    answer: tuple[str, ...] | None = None
    options: tuple[str, ...] | None = None
    distractors: tuple[str, ...] | None = None
    passage: tuple[str, ...] | None = None
    id: tuple[str, ...] | None = None
    strip: tuple[str, ...] = ()
    template: str | None = None
    verifier: str = "auto"
    ability: str | None = None
    label_base: str | None = None
    note: str | None = None
    hub_note: str | None = None


@lru_cache
def presets() -> dict[str, Preset]:
    """All presets by name."""
    entries: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    for entry in entries.values():
        entry.update({key: tuple(value) for key, value in entry.items() if isinstance(value, list)})
    return {name: Preset(**entry) for name, entry in entries.items()}


def preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in presets():
        raise UserError(f"--preset {name}: unknown; there are {', '.join(presets())}")
    return presets()[name]
