# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints of a run stay on disk: verl's folders ``global_step_N``, and the files that name the newest and
the best of them."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from tempo_verl.errors import UserError

if TYPE_CHECKING:
    from tempo_verl.config.schema import TempoSettings

KEEP = ("all", "last", "best", "both")


@dataclass(frozen=True)
class Best:
    """The round with the highest validation accuracy so far: the mean over ``data_sources``, in [0, 1]."""

    round: int
    accuracy: float
    data_sources: list[str]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in ``folder`` (verl's ``trainer.default_local_dir``); ``keep`` is ``tempo.checkpoint.keep``."""

    folder: Path
    keep: str = "all"

    @classmethod
    def from_config(cls, config: DictConfig) -> Checkpoints:
        """A run that only validates (``trainer.val_only``) leaves the folder as it is."""
        keep = "all" if config.trainer.val_only else config.tempo.checkpoint.keep
        return cls(Path(config.trainer.default_local_dir), keep)

    @classmethod
    def of_run(cls, folder: Path) -> Checkpoints:
        """The checkpoints of a run folder, or the folder itself if they are right in it.

        Raises:
            UserError: there is no folder.
        """
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; name the folder of a run")
        inside = folder / "checkpoints"
        return cls(inside if inside.is_dir() else folder)

    def chosen(self, which: str) -> Path:
        """Folder of the ``last`` or the ``best`` checkpoint.

        Raises:
            UserError: there is none.
        """
        best = self.best()
        number = self.latest() if which == "last" else None if best is None else best.round
        if number is None or not self.path(number).is_dir():
            remedy = (
                "run with trainer.save_freq > 0" if which == "last" else "run with tempo.checkpoint.keep=best or both"
            )
            raise UserError(f"{self.folder}: no {which} checkpoint there yet; {remedy}")
        return self.path(number)

    @property
    def keeps_best(self) -> bool:
        """Whether validation has a say."""
        return self.keep in ("best", "both")

    def path(self, number: int) -> Path:
        """Folder of the checkpoint of a round, whether it is there or not."""
        return self.folder / f"global_step_{number}"

    def rounds(self) -> set[int]:
        """Rounds that have a folder; that of an interrupted save is among them."""
        found = (re.fullmatch(r"global_step_(\d+)", path.name) for path in self.folder.glob("global_step_*"))
        return {int(match[1]) for match in found if match}

    def latest(self) -> int | None:
        """The round whose checkpoint was the last to be complete: verl writes this file after it, and resumes there."""
        return int(self._tracker.read_text()) if self._tracker.is_file() else None

    def best(self) -> Best | None:
        """The best round so far, None before the first one is chosen."""
        return Best(**json.loads(self._best.read_text())) if self._best.is_file() else None

    def is_complete(self, number: int) -> bool:
        """Whether the checkpoint of a round that was just trained or resumed is there."""
        return self.latest() == number and self.path(number).is_dir()

    def is_better(self, number: int, accuracy: float) -> bool:
        """Whether a round beats the best one: an equal does not, nor does the best itself validated once more."""
        best = self.best()
        return best is None or (number != best.round and accuracy > best.accuracy)

    def set_best(self, best: Best) -> None:
        """Name the best round; what was the best until now may go."""
        write_text(self._best, json.dumps(asdict(best), indent=2))
        self.prune()

    def prune(self) -> None:
        """Remove every checkpoint but the newest and, where ``keep`` says so, the best."""
        if self.keep == "all":
            self._kept.unlink(missing_ok=True)
            return
        write_text(self._kept, self.keep)
        kept, best = {self.latest()}, self.best()
        if self.keeps_best and best is not None:
            kept.add(best.round)
        for number in self.rounds() - kept:
            shutil.rmtree(self.path(number))

    def finish(self) -> None:
        """At the end of a run: of ``keep=best`` only the best one remains, and is the one to resume and to export."""
        best = self.best()
        if self.keep == "best" and best is not None:
            write_text(self._tracker, str(best.round))
            self.prune()

    def check_start(self, resume_mode: str, data_sources: list[str]) -> None:
        """Look before a run starts whether it could lose or mistake what an earlier run left in the folder.

        Args:
            resume_mode: verl's ``trainer.resume_mode``.
            data_sources: by whose accuracy this run chooses the best; empty if it chooses none.

        Raises:
            UserError: checkpoints that the run does not go on from or that an earlier run kept and this one would not,
                or a best one that is not among its own or was chosen by other data sources.
        """
        if self.keep == "all":
            return
        if resume_mode != "auto" and self.rounds():
            raise UserError(
                f"trainer.resume_mode={resume_mode}: {self.folder} holds checkpoints, which tempo.checkpoint.keep="
                f"{self.keep} would remove; go on from them with resume_mode=auto, or name another "
                "trainer.default_local_dir"
            )
        best, latest = self.best(), self.latest()
        lost: set[int] = set()
        if latest is not None and not self._kept.is_file():  # later ones are of interrupted saves
            lost = {number for number in self.rounds() if number < latest}
        if best is not None:
            lost = lost - {best.round} if self.keeps_best else (lost | {best.round} & self.rounds()) - {latest}
        if lost:
            raise UserError(
                f"tempo.checkpoint.keep={self.keep} would remove the checkpoints of {len(lost)} earlier rounds (first: "
                f"{min(lost)}) from {self.folder}; move away those you want, remove the others and best.json, or set "
                "keep=all"
            )
        if not self.keeps_best or best is None:
            return
        if best.round not in self.rounds() or latest is None or latest < best.round:
            raise UserError(
                f"{self._best}: the checkpoint of round {best.round} is not there, or later than the one a run goes on "
                "from; put it back, or remove this file"
            )
        if sorted(best.data_sources) != sorted(data_sources):
            raise UserError(
                f"{self._best}: round {best.round} was chosen by {', '.join(best.data_sources)}, this run would choose "
                f"by {', '.join(data_sources)}; set tempo.checkpoint.validation to the former, or remove this file"
            )

    @property
    def _tracker(self) -> Path:
        return self.folder / "latest_checkpointed_iteration.txt"

    @property
    def _best(self) -> Path:
        return self.folder / "best.json"

    @property
    def _kept(self) -> Path:
        """Holds ``keep`` once checkpoints have been removed by it: marks the folder as pruned, so gaps are expected."""
        return self.folder / "keep.txt"


@dataclass
class Keeper:
    """Chooses the best checkpoint by validation while a run goes on.

    Attributes:
        checkpoints: the folder.
        data_sources: by whose accuracy the best is chosen; empty if none is.
        validated_first: the run begins with a validation.
    """

    checkpoints: Checkpoints
    data_sources: list[str]
    validated_first: bool
    _accuracy: float | None = field(default=None, init=False)
    _validations: int = field(default=0, init=False)

    @classmethod
    def from_config(cls, config: DictConfig, settings: TempoSettings) -> Keeper:
        """As ``tempo.checkpoint`` says."""
        from tempo_verl.data.validation import read_judging_sources

        checkpoints, sources = Checkpoints.from_config(config), []
        if checkpoints.keeps_best:
            sources = read_judging_sources(
                config.data.val_files, settings.unlabeled.files, settings.checkpoint.validation
            )
        return cls(checkpoints, sources, bool(config.trainer.val_before_train))

    def validated(self, metrics: Mapping[str, float]) -> None:
        """Take note of a validation."""
        self._validations += 1
        if self.checkpoints.keeps_best:
            self._accuracy = validation_accuracy(metrics, self.data_sources)

    def keep(self, number: int, save: Callable[[], None]) -> None:
        """After the validation of a round: if it beats all before it, save it if need be, and name it the best.

        The start of a resumed run was judged before the interruption; validating the same weights again only re-rolls
        the noise.
        """
        resumed = self._validations == 1 and self.validated_first and number and self.checkpoints.best()
        if not self.checkpoints.keeps_best or resumed:
            return
        assert self._accuracy is not None
        if not self.checkpoints.is_better(number, self._accuracy):
            return
        if not self.checkpoints.is_complete(number):
            save()
        self.checkpoints.set_best(Best(number, self._accuracy, self.data_sources))

    def prune(self) -> None:
        """After a save."""
        self.checkpoints.prune()

    def finish(self) -> None:
        """After the last round."""
        self.checkpoints.finish()


def validation_accuracy(metrics: Mapping[str, float], data_sources: list[str]) -> float:
    """Mean over data sources of their ``mean@n``, as verl names it.

    Raises:
        UserError: a data source of which no question was validated.
    """
    accuracies = []
    for source in data_sources:
        found = [value for name, value in metrics.items() if name.startswith(f"val-core/{source}/acc/mean@")]
        if not found:
            raise UserError(
                f"no question of data source {source} was validated, by which tempo.checkpoint.keep chooses; see "
                "data.val_max_samples and data.filter_overlong_prompts, or set tempo.checkpoint.validation"
            )
        accuracies += found
    return sum(accuracies) / len(accuracies)


def write_text(path: Path, text: str) -> None:
    """Whoever reads the file finds the old text or the new one, even after a crash."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    os.replace(new, path)
