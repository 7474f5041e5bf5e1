# SPDX-License-Identifier: Apache-2.0
"""What two rounds of each method do to the bit: metrics, arrays, and hashes of the weights.

A trace is JSON: for each round the metrics of the step, what it was trained on token by token, and of actor and critic
the SHA-256 of all weights and their Euclidean norm. Floats are written so that they read back to the same bits.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "invariant" / "traces"
# of no trace: times and memory
TIMES = ("tempo/time/", "tempo/memory/", "timing", "perf/", "actor/perf/", "critic/perf/")
# How far two forward passes over the same tokens differ. The rollout batches requests as they arrive, so its rounding
# changes from run to run, a few units of float32's last place: equal within this much, on any machine.
NOISE, NOISE_TOLERANCE = "training/rollout_", 1e-5
# Another machine now and then samples another token, hence one of 16 responses differs: of what ranks or scores the few
# right responses among them, one in three.
OF_FEW, OF_FEW_TOLERANCE = ("auroc", "explained_variance"), 0.34
LONGEST = 24  # tokens of a response, at most

# What every trace is recorded with, from a policy that is right now and then.
COMMON = [
    "tempo.rounds=2",
    "tempo.labeled.batch_size=8",
    "tempo.unlabeled.batch_size=4",
    "actor_rollout_ref.rollout.n=4",
    "tempo.calibration.mini_batch_size=4",
    "tempo.calibration.epochs=2",
    "tempo.calibration.lr=3e-4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "actor_rollout_ref.actor.optim.lr=3e-4",
]
NO_CRITIC = ["critic.model.path=null", "tempo.labeled.files=null"]
METHODS = {
    "tempo": [],
    "frozen_critic": ["tempo.calibration.interval=1"],
    "ttrl": ["tempo.ttrl.n_votes=6", "tempo.ttrl.n_train=4", *NO_CRITIC],
    "empo": NO_CRITIC,
    "random_reward": NO_CRITIC,
    "ppo": ["tempo.unlabeled.files=null", "critic.allow_new_value_head=false"],
    "grpo": ["critic.model.path=null", "tempo.unlabeled.files=null"],
    "oracle": ["tempo.allow_labels_on_unlabeled=true"],
    "official": [],
    "tempo_pp": [],
    "trapo": ["critic.model.path=null", "tempo.trapo.warmup=1", "tempo.trapo.top=0.5"],
}


def machine() -> dict[str, str]:
    """What has to be equal for traces to be equal to the bit."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {"cpu": cpu, "machine": platform.machine(), "torch": torch.__version__, "numpy": np.__version__}


def weights(model_dir: Path) -> dict[str, Any]:
    """Hash and norm of all tensors of a Hugging Face directory."""
    state = load_file(model_dir / "model.safetensors")
    digest, square = hashlib.sha256(), 0.0
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].contiguous().numpy().tobytes())
        square += state[name].double().square().sum().item()
    return {"sha256": digest.hexdigest(), "norm": math.sqrt(square)}


def of_round(metrics: dict[str, Any], arrays: dict[str, np.ndarray], folders: dict[str, Path]) -> dict[str, Any]:
    """One round of a trace.

    Args:
        metrics: of the step; times are left out.
        arrays: of :meth:`harness.Evidence.tokens`.
        folders: role -> Hugging Face directory of its weights after the round.
    """
    return {
        "metrics": {name: float(metrics[name]) for name in sorted(metrics) if not name.startswith(TIMES)},
        "arrays": {name: _plain(arrays[name]) for name in sorted(arrays)},
        "weights": {role: weights(folder) for role, folder in sorted(folders.items())},
    }


def unpadded(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rounds without what lies behind the last token of a response, which is nothing that the trainer has.

    Traces were recorded from padded tensors. The official code's advantages are not 0 there.
    """
    return [{**of, "arrays": _without_padding(of["arrays"])} for of in rounds]


def _without_padding(arrays: dict[str, Any]) -> dict[str, Any]:
    masks = arrays.get("unlabeled_mask", [])
    lengths = [max((at for at, own in enumerate(row, start=1) if own), default=0) for row in masks]
    more = {"unlabeled_mask": 0, "unlabeled_advantages": 0, "unlabeled_values": 1}
    cut = {
        name: [row[: length + more[name]] for row, length in zip(arrays[name], lengths, strict=True)]
        for name in more.keys() & arrays.keys()
    }
    return arrays | cut


def _plain(array: np.ndarray) -> Any:
    """Nested lists; a float32 as the shortest number that reads back to the same bits."""
    if array.ndim > 1:
        return [_plain(row) for row in array]
    return [float(str(number)) for number in array] if array.dtype == np.float32 else array.tolist()


def summaries(recorded: dict[str, Any], rounds: list[dict[str, Any]]) -> Iterator[tuple[Any, Any]]:
    """Pairs of what can be compared on another machine: metrics, norms, and the number of rows and mean of arrays."""
    for one, other in zip(recorded["rounds"], rounds, strict=True):
        yield tuple(
            {**of, "arrays": {name: _summary(of["arrays"][name]) for name in of["arrays"]}} for of in (one, other)
        )


def _summary(rows: Any) -> dict[str, float]:
    """The mean over responses of equal length, as the longest one says how far all of an array's rows are padded."""
    length = LONGEST if rows and isinstance(rows[0], list) else 1
    total = math.fsum(number for row in rows for number in np.ravel(row).tolist())
    return {"rows": len(rows), "mean": total / (len(rows) * length) if rows else 0.0}


def differences(expected: Any, found: Any, tolerance: float | None, path: str = "") -> Iterator[str]:
    """Lines that say where two traces differ.

    Args:
        tolerance: None: to the bit; else hashes do not count, and a number may differ by this share of the larger one
            or by this much.
    """
    if isinstance(expected, dict) and isinstance(found, dict):
        for name in sorted(expected.keys() | found.keys()):
            where = f"{path}/{name}" if path else name
            if tolerance is not None and name.endswith(OF_FEW) and not (name in found and name in expected):
                continue  # none is right, so there is nothing to rank
            if name not in found or name not in expected:
                yield f"{where}: {'gone' if name not in found else 'new'}"
            elif name.startswith(NOISE):
                yield from differences(expected[name], found[name], max(tolerance or 0, NOISE_TOLERANCE), where)
            elif tolerance is not None and name.endswith(OF_FEW):
                yield from differences(expected[name], found[name], max(tolerance, OF_FEW_TOLERANCE), where)
            elif not (name == "sha256" and tolerance is not None):
                yield from differences(expected[name], found[name], tolerance, where)
    elif isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            yield f"{path}: {len(found)} entries, not {len(expected)}"
            return
        for number, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from differences(one, other, tolerance, f"{path}[{number}]")
    elif isinstance(expected, float | int) and isinstance(found, float | int) and tolerance is not None:
        close = abs(expected - found) <= tolerance * max(1.0, abs(expected), abs(found))
        if not close and not (math.isnan(expected) and math.isnan(found)):
            yield f"{path}: {found!r}, not {expected!r}"
    elif expected != found and not (expected != expected and found != found):  # nan is as it was
        yield f"{path}: {found!r}, not {expected!r}"
