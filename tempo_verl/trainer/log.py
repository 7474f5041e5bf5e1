# SPDX-License-Identifier: Apache-2.0
"""What a round tells: metrics for verl's loggers, seconds of each phase, arrays for a file."""

from __future__ import annotations

import resource
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from verl.utils.debug import marked_timer

PHASES = {"rollout": "gen", "e_step": "e_step", "m_step": "m_step"}  # tempo/time/<name>_s: verl's name of the phase


@dataclass
class Log:
    """The log of one round.

    Attributes:
        metrics: by full name; verl logs them.
        seconds: by phase; verl logs them as ``timing_s/<phase>``.
        arrays: what ``tempo.dump_dir`` gets of this round; a few numbers of each row.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def time(self, phase: str) -> AbstractContextManager[None]:
        """Count the seconds within as those of ``phase``."""
        return marked_timer(phase, self.seconds)

    def finish(self, number: int, folder: str | None) -> None:
        """Log the times of the phases, and write the arrays to ``folder`` if there is one."""
        times = {f"tempo/time/{name}_s": self.seconds[key] for name, key in PHASES.items() if key in self.seconds}
        self.metrics.update(times)
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            np.savez_compressed(Path(folder) / f"round_{number:06d}.npz", **self.arrays)


def peak_memory() -> float:
    """Resident memory of this process at its highest so far, in GB as verl counts them."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
