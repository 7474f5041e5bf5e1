# SPDX-License-Identifier: Apache-2.0
"""Saves what a run goes on from: between two rounds, as a whole or not at all, and the best round by validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from tempo_verl.config.files import restored_checkpoint
from tempo_verl.config.resume import Fingerprint
from tempo_verl.config.space import free_bytes
from tempo_verl.errors import UserError
from tempo_verl.trainer.checkpoints import Best, Checkpoints
from tempo_verl.trainer.manifest import NAME, begin, discard, is_ours, read_manifest, write_manifest
from tempo_verl.trainer.status import told

if TYPE_CHECKING:
    from tempo_verl.methods import Method

GB = 1e9


@dataclass
class Keeper:
    """Saves checkpoints and chooses the best one while a run goes on.

    verl asks for a checkpoint within a round, before the round is validated and its metrics are written. A run that was
    killed in between would lack them, so everything is saved before the next round begins.

    Attributes:
        checkpoints: the folder.
        data_sources: by whose accuracy the best is chosen; empty if none is.
        fingerprint: of settings and data, for the manifests.
        hashes: whether manifests have hashes.
        due: the round that was just trained is to be saved.
    """

    checkpoints: Checkpoints
    data_sources: list[str]
    fingerprint: Fingerprint
    hashes: bool = True
    due: bool = field(default=False, init=False)
    _written: set[int] = field(default_factory=set, init=False)
    _better: Best | None = field(default=None, init=False)
    _accuracy: float | None = field(default=None, init=False)

    @classmethod
    def from_config(cls, config: DictConfig, method: Method) -> Keeper:
        """As ``tempo.checkpoint`` says."""
        from tempo_verl.data.validation import read_judging_sources

        checkpoints, sources, settings = Checkpoints.from_config(config), [], method.settings
        if checkpoints.keeps_best:
            sources = read_judging_sources(
                config.data.val_files, settings.unlabeled.files, settings.checkpoint.validation
            )
        return cls(checkpoints, sources, Fingerprint.of(config, method), settings.checkpoint.hashes)

    def settle(self, config: DictConfig) -> tuple[Path | None, list[str]]:
        """See that verl goes on from a checkpoint whose files are as they were saved.

        Returns:
            Its folder, None if the run begins anew, and what is told of checkpoints that are passed over.

        Raises:
            UserError: the one that was asked for (``trainer.resume_from_path``) is none.
        """
        if config.trainer.resume_mode == "resume_path":
            return restored_checkpoint(config, hashes=True), []
        if config.trainer.resume_mode != "auto":
            return None, []
        if config.trainer.val_only and self.checkpoints.latest() == self.checkpoints.named():
            number, told = self.checkpoints.named(), []  # such a run leaves the folder as it is
        else:
            number, told = self.checkpoints.settle()
        if number is None:
            return None, told
        self._written = {number}
        manifest, best = read_manifest(self.checkpoints.path(number)) or {}, self.checkpoints.best()
        if manifest.get("better") and (best is None or best.round < number):  # killed before it was named
            self.checkpoints.set_best(Best(**manifest["better"]))
        return self.checkpoints.path(number), told

    def validated(self, metrics: Mapping[str, float]) -> None:
        """Take note of a validation."""
        if self.checkpoints.keeps_best:
            self._accuracy = validation_accuracy(metrics, self.data_sources)

    def judge(self, number: int) -> None:
        """After the validation of a round: one that beats all before it is to be saved, and is the best then."""
        if not self.checkpoints.keeps_best:
            return
        assert self._accuracy is not None
        if self.checkpoints.is_better(number, self._accuracy):
            self._better, self.due = Best(number, self._accuracy, self.data_sources), True

    def save(self, number: int, write: Callable[[Path], None]) -> Path | None:
        """Save the round that is over, if it is due.

        Args:
            number: of the round.
            write: writes its checkpoint into a folder.

        Returns:
            The folder; None if nothing was written.

        Raises:
            UserError: it cannot be written; what was saved before is still there.
        """
        folder = None
        if self.due and not (number in self._written and self.checkpoints.is_whole(number)):
            folder = self._write(number, write)
            self._written.add(number)
        if self._better is not None:
            self.checkpoints.set_best(self._better)
        if self.due:
            self.checkpoints.prune()
        self.due, self._better = False, None
        return folder

    def finish(self) -> None:
        """After the last round."""
        self.checkpoints.finish()

    def _write(self, number: int, write: Callable[[Path], None]) -> Path:
        folder = self.checkpoints.path(number)
        if folder.exists() and not is_ours(folder):
            raise UserError(f"{folder} has no {NAME}, so it is not of this run; move it away")
        try:
            if folder.exists():  # of an interrupted save, or of a run that began anew
                self.checkpoints.remove(number)
            begin(folder)
            write(folder)
            better = {} if self._better is None else {"better": asdict(self._better)}
            write_manifest(folder, {"round": number, **better, **self.fingerprint.as_json()}, hashes=self.hashes)
        except Exception as error:  # whatever a writer of files, in whatever process, may raise
            why = told(error)
            discard(folder)
            last, free = self.checkpoints.latest(), free_bytes(folder)
            kept = "no checkpoint is there" if last is None else f"the checkpoint of round {last} is untouched"
            raise UserError(
                f"the checkpoint of round {number} cannot be written to {folder} ({why}; {free / GB:.1f} GB are free "
                f"there); {kept}; make room, or name another trainer.default_local_dir, and run the same command again"
            ) from error
        return folder


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
