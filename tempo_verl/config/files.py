# SPDX-License-Identifier: Apache-2.0
"""Checks of the files that a run reads and writes: questions, checkpoints, predictions."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tempo_verl.config.layout import roles
from tempo_verl.data.aside import rows_aside
from tempo_verl.data.validation import HDFS, Questions, check_disjoint, read_judging_sources, read_questions
from tempo_verl.errors import UserError
from tempo_verl.methods import Method
from tempo_verl.rewards import check_allowed, check_style, useless
from tempo_verl.trainer.checkpoints import Checkpoints
from tempo_verl.trainer.manifest import fault

# Settings of verl with which no checkpoint is whole for a time, or nobody knows when: field, values that do no harm.
IN_THE_WAY_OF_WHOLE = (
    ("trainer.max_actor_ckpt_to_keep", lambda most: most != 1),
    ("trainer.max_critic_ckpt_to_keep", lambda most: most != 1),
    ("trainer.remove_previous_ckpt_in_save", lambda remove: not remove),
    ("actor_rollout_ref.actor.checkpoint.async_save", lambda later: not later),
    ("critic.checkpoint.async_save", lambda later: not later),
)
# Those that remove checkpoints, or end them late, beside tempo.checkpoint.keep: field, neutral value.
IN_THE_WAY_OF_KEEP = (
    ("trainer.max_actor_ckpt_to_keep", None),
    ("trainer.max_critic_ckpt_to_keep", None),
    ("trainer.remove_previous_ckpt_in_save", False),
    ("trainer.del_local_ckpt_after_load", False),
    ("trainer.default_hdfs_dir", None),
    ("actor_rollout_ref.actor.checkpoint.async_save", False),
    ("critic.checkpoint.async_save", False),
)

# Paths that verl and TEMPO write to, or read, as local ones.
LOCAL = (
    "trainer.default_local_dir", "trainer.resume_from_path", "tempo.start_from", "tempo.predictions.file",
    "tempo.dump_dir", "tempo.status_file",
)  # fmt: skip


def check_paths(config: DictConfig) -> None:
    """See that what has to be on a file system is not on HDFS.

    Raises:
        UserError: it is; or checkpoints are to be uploaded by an engine that does not.
    """
    for field in LOCAL:
        path = OmegaConf.select(config, field)
        if path is not None and str(path).startswith(HDFS):
            raise UserError(f"{field}={path}: must be on a file system; name a folder that every node finds")
    remote = config.trainer.default_hdfs_dir
    if remote is not None and any(role.is_fsdp for role in roles(config).values()):
        raise UserError(
            f"trainer.default_hdfs_dir={remote} would have no effect (verl's FSDP engine saves to "
            "trainer.default_local_dir only); leave it at null, and copy the checkpoints"
        )


def check_questions(config: DictConfig, method: Method) -> dict[str, Questions]:
    """Read every question file that the run will read.

    Returns:
        The questions by the field that names their files.

    Raises:
        UserError: a file or a row that cannot be used, a question in both streams, or a batch larger than its set.
    """
    settings, found = method.settings, {}
    if method.needs.labeled or settings.labeled.files:
        found["tempo.labeled"] = read_questions("tempo.labeled.files", settings.labeled.files, needs_answers=True)
    if method.needs.unlabeled:
        found["tempo.unlabeled"] = read_questions(
            "tempo.unlabeled.files", settings.unlabeled.files, needs_answers=method.reads_answers
        )
    if len(found) == 2:
        check_disjoint(found["tempo.labeled"], found["tempo.unlabeled"])
    # verl opens the validation files of a run that never validates, too
    validates = config.trainer.test_freq > 0 or config.trainer.val_before_train
    validation = read_questions("data.val_files", config.data.val_files, needs_answers=validates)
    for field, questions in [*((f"{name}.files", of) for name, of in found.items()), ("data.val_files", validation)]:
        check_allowed(
            questions.styles, settings.verifier.allow, f"{field}={questions.source}", "tempo.verifier.allow=[NAME]"
        )
    for name, questions in found.items():
        for style in set(questions.styles):
            check_style(style)
        stream = getattr(settings, name.removeprefix("tempo."))
        repeat = getattr(stream, "repeat", None)
        aside = len(rows_aside(method, len(questions))) if name == "tempo.labeled" else 0
        most = (repeat or 1) * (len(questions) - aside)
        if stream.batch_size > most:
            raise UserError(
                f"{name}.batch_size={stream.batch_size} is larger than the set ({len(questions)} questions in "
                f"{questions.source}); set it to at most {most}" + (f", or raise {name}.repeat" if repeat else "")
            )
    fields = {f"{name}.files": questions for name, questions in found.items()}
    fields |= {"data.val_files": validation} if validates else {}
    for field, questions in fields.items():
        nameless = [row for row, source in enumerate(questions.data_sources) if not source]
        if nameless:
            raise UserError(
                f"{field}={questions.source}: data_source is empty in {len(nameless)} of {len(questions)} rows (first: "
                f"row {nameless[0]}); name the set that they are from, metrics and reports go by it"
            )
    return fields


def check_truths(questions: dict[str, Questions], timeout: float) -> None:
    """See that responses can be compared with every ground truth, those that only monitor included.

    Args:
        questions: by the field that names their files.
        timeout: seconds for one ground truth.

    Raises:
        UserError: how many are of no use to their verifier, and the first.
    """
    for field, asked in questions.items():
        found = useless(asked.truths, asked.styles, asked.options, timeout=timeout)
        if found:
            row, why = min(found.items())
            answers = list(zip(asked.truths, asked.styles, map(str, asked.options), strict=True))
            given = {answer for answer in answers if answer[0] is not None}  # different ones
            first = f"row {row}, {asked.truths[row]!r:.60} as style={asked.styles[row]}: {why}"
            raise UserError(
                f"{field}: {len({answers[number] for number in found})} of {len(given)} ground truths are of no use to "
                f"their verifier (first: {first}); mend them, or take these rows out"
            )


def check_checkpoints(config: DictConfig, method: Method) -> None:
    """See that a run neither loses nor mistakes what is in the folder of its checkpoints.

    Raises:
        UserError: in one line.
    """
    checkpoints, data_sources = Checkpoints.from_config(config), []
    if checkpoints.keep == "all":
        _check_whole(config)
        return
    keep = f"tempo.checkpoint.keep={checkpoints.keep}"
    for field, neutral in IN_THE_WAY_OF_KEEP:
        value = OmegaConf.select(config, field)
        if value not in (neutral, None):
            raise UserError(f"{field}={value} does not go with {keep}; leave it at {written(neutral)}, or set keep=all")
    if checkpoints.keeps_best:
        if config.trainer.test_freq <= 0:
            raise UserError(
                f"trainer.test_freq={config.trainer.test_freq}: {keep} goes by the accuracy in validation; set it to "
                "the number of rounds between two validations"
            )
        data_sources = read_judging_sources(
            config.data.val_files, method.settings.unlabeled.files, method.settings.checkpoint.validation
        )
    checkpoints.check_start(config.trainer.resume_mode, data_sources)


def _check_whole(config: DictConfig) -> None:
    for field, harmless in IN_THE_WAY_OF_WHOLE:
        value = OmegaConf.select(config, field)
        if value is not None and not harmless(value):
            raise UserError(
                f"{field}={value} would leave the run without a whole checkpoint while one is saved; leave it out "
                "(tempo.checkpoint.keep says which ones stay)"
            )


def restored_checkpoint(config: DictConfig, *, hashes: bool = False) -> Path | None:
    """The folder ``global_step_N`` that verl will go on from; None: it begins anew.

    Args:
        hashes: read every file of the one that ``trainer.resume_from_path`` names.

    Raises:
        UserError: verl cannot make out the checkpoint.
    """
    mode, path = config.trainer.resume_mode, config.trainer.resume_from_path
    if mode == "disable":
        return None
    if mode == "auto":
        checkpoints = Checkpoints.from_config(config)
        checkpoints.check_ours()
        latest = checkpoints.latest()
        return None if latest is None else checkpoints.path(latest)
    if mode != "resume_path":
        raise UserError(f"trainer.resume_mode={mode} is unknown; choose one of auto, disable, resume_path")
    if not re.search(r"global_step_\d+$", str(path)) or not Path(path).is_dir():
        raise UserError(
            f"trainer.resume_from_path={written(path)}: no checkpoint of verl's; give a folder .../global_step_N"
        )
    if why := fault(Path(path), hashes=hashes):
        raise UserError(f"trainer.resume_from_path={path}: no whole checkpoint ({why}); name another")
    return Path(path)


def round_of(checkpoint: Path) -> int:
    """The round after which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("_")[2])


def lacks_predictions(method: Method, checkpoint: Path) -> bool:
    """Whether predictions are asked for that were not written since a checkpoint."""
    if method.settings.predictions.file is None or not method.needs.unlabeled:
        return False
    file = Path(method.settings.predictions.file)
    return not file.is_file() or file.stat().st_mtime_ns < checkpoint.stat().st_mtime_ns


def check_predictions(method: Method) -> None:
    """See that the predictions can be written where they are asked for.

    Raises:
        UserError: they cannot.
    """
    if method.settings.predictions.file is None or not method.needs.unlabeled:
        return
    path = Path(method.settings.predictions.file)
    if path.suffix in (".samples", ".labeled"):
        raise UserError(f"tempo.predictions.file={path}: samples are kept under that name; name it .jsonl")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(
            f"tempo.predictions.file={path}: a file cannot be written there; name another, or set it to null"
        )


def written(value: Any) -> str:
    """As it is written in an override."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
