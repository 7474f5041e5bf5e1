# SPDX-License-Identifier: Apache-2.0
"""Recipes (``recipe/*.yaml``), and what in them depends on the method: its class is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from tempo_verl.errors import UserError

FOLDER = Path(__file__).with_name("recipe")


def names() -> list[str]:
    """The recipes of this package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name: str) -> DictConfig:
    """What a recipe and the files that it builds on say, for whoever composes no whole configuration.

    Raises:
        UserError: there is none of this name.
    """
    if name not in names():
        raise UserError(f"recipe={name} is unknown; choose one of {', '.join(names())}")
    own = OmegaConf.load(FOLDER / f"{name}.yaml")
    parts = [own if part == "_self_" else OmegaConf.load(FOLDER / f"{part}.yaml") for part in own.defaults]
    merged = OmegaConf.merge(*parts)
    del merged["defaults"]  # Hydra's; names files, sets nothing
    return merged  # type: ignore[return-value]


def uses(stream: str, method: str, critic: bool) -> bool:
    """Whether a run trains on ``labeled`` or ``unlabeled`` questions: D_L trains the policy or the critic.

    Args:
        critic: ``critic.enable``.
    """
    from tempo_verl.methods import find

    of = find(method)
    return of.needs.unlabeled if stream == "unlabeled" else bool(of.needs.labeled or (of.fits_critic and critic))


def learns_on(method: str) -> str:
    """The stream that trains the policy: ``labeled`` or ``unlabeled``."""
    from tempo_verl.methods import find

    return find(method).learns_on()


def reads_answers(method: str) -> bool:
    """Whether a method trains on answers of D_U."""
    from tempo_verl.methods import find

    return find(method).reads_answers


def batch_size(stream: str, method: str, samples_per_step: int, n: int) -> int:
    """Prompts of a stream in a round: half of a step, and all of it for D_L if the policy learns there.

    Args:
        n: responses to each of the stream's prompts.
    """
    whole = stream == learns_on(method) == "labeled"
    return prompts(samples_per_step if whole else samples_per_step // 2, n)


def prompts(samples: int, n: int) -> int:
    """How many prompts make so many samples with ``n`` responses to each, at least one."""
    return max(samples // n, 1)


def stream_files(stream: str, method: str, critic: bool, folder: str, sets: Sequence[str]) -> ListConfig | None:
    """The files of a stream; None for one that the run does not train on."""
    return set_files(folder, sets) if uses(stream, method, critic) else None


def set_files(folder: str, *sets: Sequence[str]) -> ListConfig:
    """The parquet files of question sets. ``OmegaConf.resolve``, which verl calls, refuses a plain list."""
    return OmegaConf.create([f"{folder}/{name}.parquet" for names in sets for name in names])
