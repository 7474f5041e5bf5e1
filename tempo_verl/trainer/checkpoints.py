# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints of a run stay on disk: verl's folders ``global_step_N``, and the files that name the newest and
the best of them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import DictConfig

from tempo_verl.errors import UserError
from tempo_verl.trainer.manifest import BEGUN, NAME, disown, fault, is_ours, write_text

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
        number = self._last() if which == "last" else None if best is None else best.round
        if number is None:
            remedy = (
                "run with trainer.save_freq > 0" if which == "last" else "run with tempo.checkpoint.keep=best or both"
            )
            raise UserError(f"{self.folder}: no {which} checkpoint there yet; {remedy}")
        why = fault(self.path(number))
        if why and (is_ours(self.path(number)) or not self.path(number).is_dir()):
            raise UserError(f"{self.path(number)}: no whole checkpoint ({why}); choose another, or run that one again")
        return self.path(number)

    def _last(self) -> int | None:
        """The newest whole one; or what verl names, where verl alone has saved it, without a manifest."""
        named = self.named()
        by_verl = named is not None and self.path(named).is_dir() and not is_ours(self.path(named))
        return named if by_verl else self.latest()

    @property
    def keeps_best(self) -> bool:
        """Whether validation has a say."""
        return self.keep in ("best", "both")

    def path(self, number: int) -> Path:
        """Folder of the checkpoint of a round, whether it is there or not."""
        return self.folder / f"global_step_{number}"

    def rounds(self) -> set[int]:
        """Rounds that have a folder; that of an interrupted save may be among them."""
        found = (re.fullmatch(r"global_step_(\d+)", path.name) for path in self.folder.glob("global_step_*"))
        return {int(match[1]) for match in found if match}

    def latest(self) -> int | None:
        """The newest round with a whole checkpoint, not newer than the one that verl names. None: there is none.

        What verl names may be torn: it does so before the manifest is written, and files get lost later, too.
        """
        named = self.named()
        whole = sorted((number for number in self.rounds() if named is None or number <= named), reverse=True)
        return next((number for number in whole if self.is_whole(number)), None)

    def named(self) -> int | None:
        """The round that verl would resume: it writes its number after the checkpoint. None: none, or a torn file."""
        text = self._tracker.read_text() if self._tracker.is_file() else ""
        return int(text) if text.strip().isdigit() else None

    def is_whole(self, number: int) -> bool:
        """Whether all files of a checkpoint are there, by their sizes."""
        return fault(self.path(number)) is None

    def check_ours(self) -> None:
        """See that no checkpoint would be passed over, or written over, only because it has no manifest.

        Raises:
            UserError: there are such checkpoints, by verl alone or by an earlier version, which verl would resume.
        """
        named = self.named()
        foreign = sorted(number for number in self.rounds() if not is_ours(self.path(number)))
        if foreign and (named is None or named in foreign):
            raise UserError(
                f"{self.folder}: the checkpoints of {len(foreign)} rounds (last: {foreign[-1]}) have no {NAME}, which "
                "this version writes; move them away, and begin with their weights (actor_rollout_ref.model.path, "
                "critic.model.path)"
            )

    def settle(self) -> tuple[int | None, list[str]]:
        """Before a run goes on: let verl resume the newest checkpoint whose files are as they were saved.

        Returns:
            Its round, None if there is none, and what is told of those that are passed over.

        Raises:
            UserError: as :meth:`check_ours`.
        """
        self.check_ours()
        told, named, found = [], self.named(), None
        for number in sorted(self.rounds(), reverse=True):
            if named is not None and number > named:
                continue
            why = fault(self.path(number), hashes=True)
            if why is None:
                found = number
                break
            told.append(f"the checkpoint of round {number} cannot be used: {why} ({self.path(number)})")
            disown(self.path(number))
        if found is None:
            self._tracker.unlink(missing_ok=True)
        elif found != named:
            write_text(self._tracker, str(found))
        best = self.best()
        if best is not None and (found is None or best.round > found or not self.is_whole(best.round)):
            self._best.unlink()
            told.append(f"round {best.round} is no longer the best: its checkpoint is gone")
        return found, told

    def best(self) -> Best | None:
        """The best round so far, None before the first one is chosen."""
        return Best(**json.loads(self._best.read_text())) if self._best.is_file() else None

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
        latest, best = self.latest(), self.best()
        if latest is None:
            return
        kept = {latest}
        if self.keeps_best and best is not None:
            kept.add(best.round)
        for number in self.rounds() - kept:
            if is_ours(self.path(number)):
                self.remove(number)

    def remove(self, number: int) -> None:
        """Remove a checkpoint. One that is half removed is no whole one."""
        (self.path(number) / BEGUN).touch()
        (self.path(number) / NAME).unlink(missing_ok=True)
        shutil.rmtree(self.path(number))

    def finish(self) -> None:
        """At the end of a run: of ``keep=best`` only the best one remains, and is the one to resume and to export."""
        best = self.best()
        if self.keep == "best" and best is not None and fault(self.path(best.round), hashes=True) is None:
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
        named = self.named()  # a torn one is told when it is passed over
        if best.round not in self.rounds() or (named is not None and named < best.round):
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
