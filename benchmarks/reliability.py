# SPDX-License-Identifier: Apache-2.0
"""Kills trainings at random, runs the same command again, and compares with a run that nobody disturbed.

See reliability.md. Victims and moments are drawn from a seed. Everything is real: the command, Ray, verl, FSDP.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from sections import machine

COMMAND = (sys.executable, "-m", "tempo_verl.cli.main", "train")
# Who can be killed: a pattern in the command line.
VICTIMS = {
    "the command": r"tempo_verl\.cli\.main train",
    "the trainer": r"tempo_verl\.local",
    "a training worker": r"^ray::WorkerDict|WorkerDict",
    "the rollout server": r"^ray::TransformersServer",
    "the reward worker": r"^ray::RewardLoopWorker",
    "TransferQueue's storage": r"^ray::SimpleStorageUnit",
    "TransferQueue's controller": r"^ray::TransferQueueController",
    "the raylet": r"/raylet/raylet",
    "Ray's head": r"/gcs/gcs_server",
}
# Those, and who is there only with verl's own agent loop.
PATTERNS = VICTIMS | {"an agent-loop worker": r"^ray::AgentLoopWorker"}
POLL_SECONDS = 0.3  # a look at all processes takes some 20 ms
PATIENCE = 120.0  # seconds in which a run has to end after a kill
# What differs between two runs of the same thing: times and memory.
UNSTEADY = re.compile(r"^(timing|perf/|tempo/time/|tempo/memory/|training/epoch)|mfu|memory|throughput|time/|_time\b")
# Method and training processes, in turn.
CASES = (("tempo", 1), ("ttrl", 1), ("ppo", 1), ("official", 1), ("tempo", 2))


@dataclass(frozen=True)
class Made:
    """What every run starts from."""

    folder: Path

    def overrides(self, method: str, rounds: int, ranks: int = 1) -> list[str]:
        """A run of a few seconds a round, with all that a checkpoint has to hold."""
        data = self.folder / "data"
        common = [
            f"method={method}",
            "hardware=cpu",
            f"tempo.rounds={rounds}",
            f"tempo.labeled.files='{data / 'labeled.parquet'}'",
            f"tempo.unlabeled.files='{data / 'unlabeled.parquet'}'",
            "tempo.labeled.batch_size=8",
            "tempo.calibration.mini_batch_size=4",
            "tempo.calibration.lr=1e-3",
            "actor_rollout_ref.actor.ppo_mini_batch_size=4",
            "actor_rollout_ref.actor.optim.lr=1e-4",
            "actor_rollout_ref.rollout.n=4",
            "actor_rollout_ref.rollout.val_kwargs.n=2",
            f"actor_rollout_ref.model.path='{self.folder / 'policy'}'",
            f"data.val_files=['{data / 'heldout.parquet'}']",
            "data.max_prompt_length=16",
            "data.max_response_length=24",
            "trainer.save_freq=1",
            "trainer.test_freq=2",
            "trainer.val_before_train=true",
            f"trainer.n_gpus_per_node={ranks}",
            "tempo.predictions.n=2",
            "tempo.predictions.labeled=32",
        ]
        if method != "ttrl":
            common += [f"critic.model.path='{self.folder / 'policy'}'", "critic.allow_new_value_head=true"]
        if method != "ppo":
            common += ["tempo.unlabeled.batch_size=8", "tempo.checkpoint.keep=both"]
        if method == "ttrl":
            common += ["tempo.ttrl.n_votes=8", "tempo.ttrl.n_train=4"]
        if method == "tempo":
            common += [
                "tempo.unlabeled.focus=0.5",
                "tempo.calibration.replay.prompts=8",
                "tempo.calibration.replay.window=2",
                "tempo.calibration.gate.min_auroc=0.05",
            ]
        return common


def make(folder: Path, steps: int = 150) -> Made:
    """The tiny task with few questions, so that epochs end, and a pretrained policy."""
    from tempo_verl.tasks.pretrain import pretrain
    from tempo_verl.tasks.running_sums import RunningSums, write_parquet

    task = RunningSums(seed=1)
    for name, prompts in task.make_sets().items():
        write_parquet(folder / "data" / f"{name}.parquet", prompts[: 40 if name == "labeled" else 20], split=name)
    pretrain(folder / "policy", task, steps=steps, seed=1, progress=lambda *_: None)
    return Made(folder)


# ---------------------------------------------------------------------- what a run leaves


def evidence(run: Path) -> dict[str, str]:
    """Hashes of all that has to be equal: the last checkpoint, metrics, predictions, a few numbers of each row."""
    found = {name: _hash(value) for name, value in _metrics(run).items()}
    named = int((run / "checkpoints" / "latest_checkpointed_iteration.txt").read_text())
    for path in sorted((run / "checkpoints" / f"global_step_{named}").rglob("*.pt")):
        content = _plain(path)
        if isinstance(content, dict):
            content.pop("rng", None)  # verl's workers draw theirs from the system, and nothing is drawn from them here
        found[path.relative_to(run / "checkpoints").as_posix()] = _hash(content)
    for name in ("predictions.jsonl", "predictions_before.jsonl", "checkpoints/best.json"):
        if (run / name).is_file():
            found[name] = _hash((run / name).read_text())
    for path in sorted((run / "rounds").glob("*.npz")):
        import numpy as np

        with np.load(path) as arrays:
            found[f"rounds/{path.name}"] = _hash({name: arrays[name].tolist() for name in arrays})
    return found


def differences(first: dict[str, str], second: dict[str, str]) -> list[str]:
    """What is not in both, or not the same."""
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def _metrics(run: Path) -> dict[str, Any]:
    """By round and name; of a round that was trained twice, the later part."""
    parts = sorted(run.glob("metrics.*.jsonl"), key=lambda path: int(path.name.split(".")[1]))
    found: dict[str, Any] = {}
    for path in [*parts, run / "metrics.jsonl"]:
        for line in path.read_text().splitlines() if path.is_file() else []:
            with contextlib.suppress(json.JSONDecodeError):  # a torn last line, of a round that is trained again
                entry = json.loads(line)
                for name, value in entry["data"].items():
                    if not UNSTEADY.search(name):
                        found[f"round {entry['step']}: {name}"] = value
    return found


def _plain(path: Path) -> Any:
    import torch

    from tempo_verl.compat import only_weights

    with only_weights():
        return torch.load(path, weights_only=False, map_location="cpu")


def _hash(value: Any) -> str:
    digest = hashlib.sha256()
    for part in _parts(value):
        digest.update(part)
    return digest.hexdigest()[:16]


def _parts(value: Any) -> Iterator[bytes]:
    if hasattr(value, "to_local"):
        value = value.to_local()
    if isinstance(value, dict):
        for key in value:
            yield repr(key).encode()
            yield from _parts(value[key])
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _parts(part)
    elif hasattr(value, "numpy"):
        yield value.detach().contiguous().numpy().tobytes()
    else:
        yield repr(value).encode()


# ---------------------------------------------------------------------- killing


@dataclass
class Ended:
    """How a command ended.

    Attributes:
        status: its exit status.
        output: stdout and stderr.
        seconds: from the kill, or else from the start, to the end.
        killed: who was killed.
        left: processes that it started and that are still there.
        lost: rounds that were trained and are trained again.
    """

    status: int
    output: str
    seconds: float
    killed: str | None = None
    left: list[str] = field(default_factory=list)
    lost: int = 0


def train(run: Path, overrides: list[str], kill: Callable[[Path, Watched], str | None] | None = None) -> Ended:
    """Run the command; ``kill`` is asked again and again until it has killed somebody."""
    shared = _shared_memory()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([*COMMAND, "--run-dir", str(run), *overrides], stdout=output, stderr=output)
        watched, killed, since = Watched(process.pid), None, time.monotonic()
        while process.poll() is None:
            watched.look()
            if kill is not None and killed is None and (killed := kill(run, watched)):
                since = time.monotonic()
            if killed and time.monotonic() - since > PATIENCE:
                process.kill()
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - since
        output.seek(0)
        left = watched.left()
        left += [f"shared memory {name}" for name in sorted(_shared_memory() - shared)]
        return Ended(process.returncode, output.read(), seconds, killed, left, _trained(run) - _saved(run))


def _trained(run: Path) -> int:
    status = run / "status.json"
    return json.loads(status.read_text())["round"] if status.is_file() else 0


def _saved(run: Path) -> int:
    from tempo_verl.trainer.checkpoints import Checkpoints

    return Checkpoints(run / "checkpoints").latest() or 0


def _shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


class Watched:
    """The processes of a command, also those that have lost their parent."""

    def __init__(self, pid: int):
        self._root, self._known = psutil.Process(pid), {}

    def look(self) -> None:
        """Take note of new ones."""
        roots = [self._root, *(process for process in self._known.values() if process.is_running())]
        for root in roots:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [root, *root.children(recursive=True)]:
                    self._known.setdefault((process.pid, process.create_time()), process)

    def find(self, pattern: str) -> list[psutil.Process]:
        """Living ones by a pattern in their command line."""
        return [process for process in self._alive() if re.search(pattern, _line(process))]

    def left(self, patience: float = 15.0) -> list[str]:
        """Those that are still alive; they are ended."""
        until = time.monotonic() + patience
        while (alive := self._alive()) and time.monotonic() < until:
            time.sleep(0.2)
        told = [_line(process)[:120] for process in alive]
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return told

    def _alive(self) -> list[psutil.Process]:
        found = []
        for process in self._known.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def at_random(victim: str, delay: float, number: int) -> Callable[[Path, Watched], str | None]:
    """Kill ``victim`` (a key of PATTERNS) ``delay`` seconds after round ``number`` (0: after the trainer's start)."""
    since: list[float] = []

    def kill(run: Path, watched: Watched) -> str | None:
        if not since:
            status = run / "status.json"
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                state = json.loads(status.read_text())
                if state["state"] in ("starting", "running") and state["round"] >= number:
                    since.append(time.monotonic())
            return None
        if time.monotonic() - since[0] < delay:
            return None
        found = watched.find(PATTERNS[victim])
        if not found:
            return None
        with contextlib.suppress(psutil.NoSuchProcess):
            found[-1].send_signal(signal.SIGKILL)
        return victim

    return kill


def disturb(made: Made, folder: Path, case: tuple[str, int], rounds: int, rng: random.Random) -> dict[str, Any]:
    """Train, kill somebody at some moment, run the same command again. What happened, and what is not equal."""
    method, ranks = case
    overrides, whole = made.overrides(method, rounds, ranks), made.folder / f"{method}_{ranks}"
    if not whole.exists():
        undisturbed = train(whole, overrides)
        if undisturbed.status:
            raise RuntimeError(undisturbed.output)
    victim, after, delay = rng.choice(list(VICTIMS)), rng.randrange(rounds), rng.uniform(0, 4)
    ended = train(folder, overrides, at_random(victim, delay, after))
    again = train(folder, overrides)
    differ = differences(evidence(whole), evidence(folder)) if again.status == 0 else [again.output[-300:]]
    last = ended.output.strip().splitlines()
    return {
        "method": method, "ranks": ranks, "victim": victim, "after_round": after, "delay": round(delay, 1),
        "killed": ended.killed, "status": ended.status, "seconds_to_end": round(ended.seconds, 1),
        "told": last[-1] if last else "", "left": ended.left + again.left, "rounds_lost": ended.lost,
        "differ": differ[:5], "equal": not differ,
    }  # fmt: skip


def main(
    seed: Annotated[int, typer.Option(help="Of victims and moments.")] = 0,
    kills: Annotated[int, typer.Option(help="How many.")] = 20,
    rounds: Annotated[int, typer.Option(help="Of each training.")] = 4,
    out: Annotated[Path, typer.Option(help="JSON lines, one a kill.")] = Path("reliability.jsonl"),
) -> None:
    """Kill, restart, compare; print one line a kill."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    rng, found = random.Random(seed), []
    with tempfile.TemporaryDirectory() as temporary, out.open("w") as lines:
        made = make(Path(temporary))
        for number in range(kills):
            told = disturb(made, made.folder / f"{number}", CASES[number % len(CASES)], rounds, rng)
            found.append(told)
            print(json.dumps(told), file=lines, flush=True)
            print(json.dumps(told), flush=True)
    killed = [told for told in found if told["killed"]]
    print(f"{len(killed)} kills in {len(found)} runs; equal afterwards: {sum(told['equal'] for told in found)}")
    print(f"slowest end {max(told['seconds_to_end'] for told in killed):.0f} s; {machine()}")


if __name__ == "__main__":
    typer.run(main)
