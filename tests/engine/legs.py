# SPDX-License-Identifier: Apache-2.0
"""Legs of verl's training worker on one fixed batch, and the two processes that run them one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from tempo_verl.algo.calibration import position_mask
from tempo_verl.trainer.batch import as_jagged

ROWS, TOKENS = 16, 10  # rows of the batch, and how many different tokens it has
RANKS = 2
TIMEOUT = 300.0  # seconds for a leg; the first one waits for the imports as well


@dataclass(frozen=True)
class Leg:
    """What is done with the batch, and how.

    Attributes:
        part: ``critic`` or ``actor``.
        options: overrides of the whole configuration.
        ranks: processes that share the rows or, with Ulysses, each row's tokens.
        loss: the critic's, see ``tempo_verl.trainer.losses.LOSSES``.
        synthetic: rows of verl's making, without a token to learn from.
        mini_batch: rows of one update.
        updates: passes over the batch.
        reload: save after the first update, and go on in a new worker.
    """

    part: str
    options: tuple[str, ...] = ()
    ranks: int = 1
    loss: str = "calibration"
    synthetic: tuple[int, ...] = (6, 15)
    mini_batch: int = ROWS
    updates: int = 1
    reload: bool = False


@dataclass
class Outcome:
    """What came of a leg.

    Attributes:
        outputs: of each row V(x, y_1:t), t = 0..T, or the log-probabilities of y_1..y_T: before the first
            pass over the batch, and after each.
        metrics: verl's, of each pass.
        dtype: of the outputs as verl stores them.
        inputs: shapes of what one rank's model is given in the first inference pass, one a micro-batch.
        is_offloaded, is_checkpointed: whether the engine took the option.
        transformers: version.
    """

    outputs: list[list[list[float]]] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    dtype: str = ""
    inputs: list[tuple[int, int]] = field(default_factory=list)
    is_offloaded: bool = False
    is_checkpointed: bool = False
    transformers: str = ""


def batch(leg: Leg) -> TensorDict:
    """The rows, with the fields that verl and this trainer send. One response in four has a tool's turn in it."""
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, 9, (ROWS,), generator=draw).tolist()
    lengths = torch.randint(2, 20, (ROWS,), generator=draw).tolist()
    rows = [torch.randint(0, TOKENS, (p + t,), generator=draw) for p, t in zip(prompts, lengths, strict=True)]
    outcome = torch.randint(0, 2, (ROWS, 1), generator=draw).float()
    masks = [torch.full((length,), int(row not in leg.synthetic)) for row, length in enumerate(lengths)]
    for mask in masks[1::4]:
        mask[len(mask) // 3 : 2 * len(mask) // 3] = 0
    fields = {
        "input_ids": rows,
        "position_ids": [torch.arange(len(row)) for row in rows],
        "prompts": [row[:p] for row, p in zip(rows, prompts, strict=True)],
        "responses": [row[p:] for row, p in zip(rows, prompts, strict=True)],
        "response_mask": masks,
        "loss_mask": masks,
        "returns": [of_row.expand(length) for of_row, length in zip(outcome, lengths, strict=True)],
    }
    ranges = {"values": (0, 1), "advantages": (-1, 1), "old_log_probs": (-4, 0), "ref_log_prob": (-4, 0)}
    for name, ends in ranges.items():
        fields[name] = [torch.empty(length).uniform_(*ends, generator=draw) for length in lengths]
    if leg.part == "critic" and leg.loss == "calibration":
        fields["loss_mask"] = [position_mask(mask[None])[0] for mask in masks]
    return tu.get_tensordict({name: as_jagged(rows) for name, rows in fields.items()} | {"outcome": outcome})


class Ranks:
    """Two processes that import verl once. They start with the first leg, and anew after one that failed.

    Args:
        folder: for logs and checkpoints.
        packages: folder that is searched for packages before all others.
    """

    def __init__(self, folder: Path, packages: Path | None = None):
        self._folder, self._packages, self._legs = folder, packages, 0
        self._processes: list[subprocess.Popen] = []
        self._connections: list[Connection] = []

    def run(self, leg: Leg, config: DictConfig) -> Outcome:
        """A leg in as many of the processes as it has ranks.

        Raises:
            RuntimeError: a rank failed, with what it told; or no answer came in time.
        """
        if not self._processes:
            self._start()
        self._legs += 1
        folder = self._folder / f"leg_{self._legs}"
        folder.mkdir()
        try:
            for connection in self._connections[: leg.ranks]:
                connection.send((leg, config, folder))
            parts = self._answers(leg.ranks)
        except BaseException:
            self.close()
            raise
        found = parts[0]
        for part in parts[1:]:
            found.outputs = [first + more for first, more in zip(found.outputs, part.outputs, strict=True)]
        return found

    def close(self) -> None:
        """End the processes."""
        for connection, process in zip(self._connections, self._processes, strict=True):
            connection.close()
            process.kill()
            process.wait()
        self._processes, self._connections = [], []

    def _start(self) -> None:
        here = Path(__file__).parent
        paths = [here, here.parent, here.parents[1]]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, [self._packages, *paths] if self._packages else paths)),
            "VERL_USE_EXTERNAL_MODULES": "flash_stand_in",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",  # verl wants one; the ranks of a leg meet at a file
        }
        for rank in range(RANKS):
            ours, its = Pipe()
            with its, open(self._folder / f"rank_{rank}.log", "a") as log:
                command = [sys.executable, str(here / "rank.py"), str(rank), str(its.fileno())]
                options = {"pass_fds": [its.fileno()], "stdout": log, "stderr": log}
                self._processes.append(subprocess.Popen(command, env=environment, **options))
            self._connections.append(ours)

    def _answers(self, ranks: int) -> list[Outcome]:
        """Of the ranks that have one, in data-parallel order."""
        found, silent, until = [], set(self._connections[:ranks]), time.monotonic() + TIMEOUT
        while silent:
            ready = wait(silent, until - time.monotonic())
            if not ready:
                raise RuntimeError(f"no answer in {TIMEOUT:.0f} s{self._told()}")
            for connection in ready:
                silent.discard(connection)
                try:
                    place, answer = connection.recv()
                except EOFError:
                    raise RuntimeError(f"a rank ended{self._told()}") from None
                if isinstance(answer, str):
                    raise RuntimeError(answer)
                if answer is not None:
                    found.append((place, answer))
        return [answer for _, answer in sorted(found, key=lambda one: one[0])]

    def _told(self) -> str:
        logs = sorted(self._folder.glob("rank_*.log"))
        return "".join(f"\n--- {log.name}\n" + "\n".join(log.read_text().splitlines()[-20:]) for log in logs)
