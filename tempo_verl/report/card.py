# SPDX-License-Identifier: Apache-2.0
"""Model cards: what a run measured and how it was made, beside the weights of its last checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from tempo_verl.config.start import start_path
from tempo_verl.errors import UserError
from tempo_verl.markdown import cell
from tempo_verl.report.data import PHASES, RunData, command_of, read_run
from tempo_verl.report.methods import about
from tempo_verl.report.results import Results
from tempo_verl.report.tables import markdown
from tempo_verl.trainer.manifest import NAME, read_manifest, write_text

CARD = "README.md"
# of a model's hub name; every other path is of the machine on which the run was made
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
ROLES = {
    "actor": ("the policy", "text-generation", "actor_rollout_ref.model.path"),
    "critic": ("the critic: its value head tells how likely a response is right", "token-classification",
               "critic.model.path"),
}  # fmt: skip


def write_cards(run_dir: Path, results: Results) -> list[Path]:
    """Write ``README.md`` into the Hugging Face directories of the last checkpoint, in place of an earlier one.

    Args:
        run_dir: of one run; of a quickstart's folder the last of its trainings.
        results: of its report.

    Returns:
        The directories. None where the run saved no model.
    """
    run, written = read_run(run_dir), []
    phase = next((run_dir / name for name in reversed(PHASES) if (run_dir / name).is_dir()), run_dir)
    for role in ROLES:
        try:
            folder = Path(str(start_path(role, str(phase), "last")))
        except UserError:  # no checkpoint, or none that is whole
            continue
        if any(folder.glob("*.safetensors")):
            write_text(folder / CARD, _card(role, run, results, folder))
            written.append(folder)
    return written


def _card(role: str, run: RunData, results: Results, folder: Path) -> str:
    what, pipeline, field = ROLES[role]
    checkpoint = next(parent for parent in folder.parents if (parent / NAME).is_file() or parent == parent.parent)
    manifest = read_manifest(checkpoint) or {}
    base = str(run.settings.get(field, ""))
    method = run.method or "unknown"
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=pipeline,
        base_model=base if HUB_NAME.fullmatch(base) and not Path(base).exists() else None,
        tags=["tempo-verl", "verl", "test-time-training", method.rpartition(":")[2]],
    )
    environment = Environment(
        loader=PackageLoader("tempo_verl.report", "."), undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("card.md.j2").render(
        metadata=data.to_yaml(),
        name=cell(f"{run.name}: {what}"),
        method=about(run.method).text,
        base=_named(base),
        on_tests=about(run.method).learns_on == "unlabeled",
        round=manifest.get("round"),
        rounds=run.settings.get("tempo.rounds"),
        critic=role == "critic",
        questions=_questions(run.settings, manifest),
        seed=run.info.get("seed"),
        command=command_of(run),
        versions=run.section("versions"),
        machine=run.section("machine"),
        tables=_one_level_down(markdown(results)),
    )


def _named(model: str) -> str:
    """A model in words, without a path of this machine."""
    parts = Path(model).parts
    if "checkpoints" in parts:
        place = parts.index("checkpoints")
        return f"{parts[place + 1].replace('global_step_', 'round ')} of the run `{parts[place - 1]}`"
    return f"`{Path(model).name if Path(model).is_absolute() else model}`" if model else ""


def _questions(settings: dict[str, Any], manifest: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Set, file name and SHA-256 of every question file that the run was trained on."""
    found = []
    for field, name in (("tempo.labeled.files", "D_L, labelled"), ("tempo.unlabeled.files", "D_U, unlabelled")):
        files = settings.get(field) or []
        files = [files] if isinstance(files, str) else files
        hashes = manifest.get("data", {}).get(field, ["not known"] * len(files))
        found += [(name, Path(file).name, digest) for file, digest in zip(files, hashes, strict=False)]
    return found


def _one_level_down(text: str) -> str:
    """The report's tables below a heading of the card's; its title goes."""
    lines = text.splitlines()[1:]
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in lines).strip()
