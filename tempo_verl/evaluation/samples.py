# SPDX-License-Identifier: Apache-2.0
"""A folder of samples: ``samples.jsonl``, one a line, and ``settings.json``, what they were drawn with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tempo_verl.errors import UserError
from tempo_verl.rewards import one_spelling

# Where the files lie does not matter: their digest is compared.
UNCOMPARED = frozenset({"data"})


@dataclass(frozen=True)
class Sample:
    """One response to one question.

    Attributes:
        index, id, hash, data_source, style: of its question, see ``evaluation.questions.Question``.
        sample: its number among the question's samples, from 0.
        seed: of its own random stream; None where the rollout engine of a training run drew it.
        response: the text, without special tokens.
        answer: what was extracted from it, see also :func:`spelled`; None if nothing was.
        correct: the verdict; None where the question has no ground truth.
        formatted: the answer stands where it was asked for.
        tokens: length of the response, the end token included.
        truncated: the length limit ended it.
        value: the critic's V(x, y_1:T), as it is; None without a critic.
        error: why there is no verdict (the response counts as wrong); None if there is one.
    """

    index: int
    id: str
    hash: str
    data_source: str
    sample: int
    seed: int | None
    response: str
    answer: str | None
    correct: bool | None
    formatted: bool
    tokens: int
    truncated: bool
    value: float | None = None
    error: str | None = None
    style: str = "math"


def spelled(samples: Sequence[Sample]) -> list[Sample]:
    """The same samples, answers that say the same in one spelling within a question, so that votes can count them."""
    answers = one_spelling(
        [sample.answer for sample in samples],
        [str(sample.index) for sample in samples],
        [sample.style for sample in samples],
    )
    return [replace(sample, answer=answer) for sample, answer in zip(samples, answers, strict=True)]


class SampleStore:
    """The samples in a folder. A run that was killed goes on from what is there.

    Args:
        folder: need not exist.
        settings: what the samples are drawn with.

    Raises:
        UserError: the folder holds samples drawn with other settings, or unreadable ones.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder, self.settings = folder, json.loads(json.dumps(settings))
        self._path = folder / "samples.jsonl"
        self.samples: dict[tuple[int, int], Sample] = {}
        if self._path.exists():
            earlier = read_settings(folder)
            for name in sorted((earlier.keys() | self.settings.keys()) - UNCOMPARED):
                if earlier.get(name) != self.settings.get(name):
                    raise UserError(
                        f"{folder} holds samples made with {name}={earlier.get(name)!r:.100}, not "
                        f"{self.settings.get(name)!r:.100}; name another folder, or use the same settings"
                    )
            self._add(_read(self._path))

    def create(self) -> None:
        """Make the folder ready for :meth:`append`: what a killed run left of a line is cut off."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / "settings.json", json.dumps(self.settings, indent=2))
        with self._path.open("ab") as file:
            file.truncate(_whole_lines(self._path.read_bytes()))

    def append(self, samples: Iterable[Sample]) -> None:
        """Add samples, on disk when this returns."""
        samples = list(samples)
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(map(_line, samples))
        self._add(samples)

    def ordered(self) -> list[Sample]:
        """All samples by question and number, in whatever order they were drawn."""
        return [self.samples[key] for key in sorted(self.samples)]

    def _add(self, samples: Iterable[Sample]) -> None:
        self.samples |= {(sample.index, sample.sample): sample for sample in samples}


def sample_folders(out: Path) -> tuple[Path, Path]:
    """Where ``tempo-verl answer`` keeps its samples of the questions and of the labelled ones: beside ``out``.

    Raises:
        UserError: a file is in the way of one, or is to be ``out`` itself.
    """
    folders = out.with_suffix(".samples"), out.with_suffix(".labeled")
    for folder in folders:
        if folder == out or (folder.exists() and not folder.is_dir()):
            raise UserError(f"--out={out}: its samples are kept in the folder {folder}; name a file unlike that")
    return folders


def write_samples(folder: Path, settings: dict[str, Any], samples: Iterable[Sample]) -> None:
    """Write a folder anew. Its settings come last: where there are any, the samples are whole and belong to them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").unlink(missing_ok=True)
    write_whole(folder / "samples.jsonl", "".join(map(_line, samples)))
    write_whole(folder / "settings.json", json.dumps(settings, indent=2))


def written_samples(folder: Path) -> tuple[dict[str, Any], list[Sample]] | None:
    """What :func:`write_samples` wrote; None if it did not, or was interrupted.

    Raises:
        UserError: a file is unreadable.
    """
    if not (folder / "settings.json").is_file():
        return None
    return read_settings(folder), list(_read(folder / "samples.jsonl"))


def read_samples(folder: Path) -> tuple[dict[str, Any], list[Sample]]:
    """Settings and :func:`spelled` samples of a finished evaluation.

    Raises:
        UserError: there is none, it is not finished, or a line is unreadable.
    """
    settings = read_settings(folder)
    store = SampleStore(folder, settings)
    missing = settings["questions"] * settings["n"] - len(store.samples)
    if missing:
        raise UserError(f"{folder}: {missing} samples are missing; run the same tempo-verl command again to finish it")
    return settings, spelled(store.ordered())


def read_settings(folder: Path) -> dict[str, Any]:
    """``settings.json`` of a folder of samples.

    Raises:
        UserError: it is missing or unreadable.
    """
    path = folder / "settings.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); name a folder that tempo-verl evaluate wrote") from error


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a kill leaves the old one or the new one, not a part."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)  # there only if that failed


def _line(sample: Sample) -> str:
    return json.dumps(asdict(sample), ensure_ascii=False) + "\n"


def _read(path: Path) -> Iterable[Sample]:
    content = path.read_bytes()
    for number, line in enumerate(content[: _whole_lines(content)].split(b"\n")[:-1], start=1):
        try:
            yield Sample(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}, line {number}: not a sample ({error}); remove the line") from error


def _whole_lines(content: bytes) -> int:
    """Length of the part that ends in a line feed."""
    return content.rfind(b"\n") + 1
