# SPDX-License-Identifier: Apache-2.0
"""What a round of TEMPO costs beside a step of verl's own PPO on as many samples.

All run verl's launcher on one configuration: model, lengths, engine, mini-batches, verifier, questions. Rounds are
timed from outside, from one line of the metrics file to the next; the first ones are left out.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from sections import Section, ratio, show, spread
from spy import FILE, POLL

WARM_UP = 2  # rounds that fill caches
N = 8  # responses a prompt
LAUNCHER = (
    sys.executable, "-m", "verl.trainer.main_ppo",
    "--config-path", "pkg://tempo_verl.config", "--config-name", "tempo_trainer",
)  # fmt: skip
AGENT_LOOP = "actor_rollout_ref.rollout.agent.agent_loop_manager_class=null"  # verl's, sample by sample
BYPASS = ("algorithm.rollout_correction.bypass_mode=true", "actor_rollout_ref.actor.calculate_entropy=true")
VERL = (
    "trainer.v1.trainer_mode=sync", "method=ppo",
    "hydra.callbacks.tempo_preflight._target_=hydra.experimental.callback.Callback",
)  # fmt: skip
PASSES = ("critic reads", "critic learns", "policy reads", "policy learns")
FLOPS = {"reads": 2, "learns": 6}  # a token and parameter
LARGE = {"width": 320, "layers": 12}  # 100 times the tiny policy's parameters


@dataclass(frozen=True)
class Way:
    """A way to train, on as many samples a round as the others.

    Attributes:
        halves: half of the samples are labelled and half unlabelled; else all are labelled.
        overrides: its own.
        poll: how often verl's own trainer looks for rollouts, in seconds; None: as shipped, or our trainer.
    """

    halves: bool
    overrides: tuple[str, ...]
    poll: float | None = None


PPO, EQUAL, OURS, TEMPO = "PPO, verl as shipped", "PPO, equal polling", "PPO, equal polling, batched rollouts", "TEMPO"
SHORT, SAME, OFFICIAL = "TEMPO, rollouts' log-probabilities", "TEMPO, verl's agent loop", "official scheme"
BOTH = "PPO, batched rollouts and their log-probabilities"
WAYS = {
    PPO: Way(False, (*VERL, AGENT_LOOP)),
    EQUAL: Way(False, (*VERL, AGENT_LOOP), 0.05),
    OURS: Way(False, VERL, 0.05),
    BOTH: Way(False, (*VERL, *BYPASS), 0.05),
    TEMPO: Way(True, ("method=tempo",)),
    SHORT: Way(True, ("method=tempo", *BYPASS)),
    SAME: Way(True, ("method=tempo", AGENT_LOOP)),
    OFFICIAL: Way(True, ("method=official", "tempo.official.filter_groups=false")),
}


@dataclass
class Seen:
    """What was seen of a way.

    Attributes:
        rounds: seconds of each round, from line to line.
        phases: seconds by verl's name of a phase, one a round.
        parts: what -> rows, tokens and seconds of a round, on average.
    """

    rounds: list[float] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    parts: dict[str, dict[str, float]] = field(default_factory=dict)

    def part(self, what: str, figure: str) -> float:
        return self.parts.get(what, {}).get(figure, 0.0)

    def add(self, other: Seen) -> None:
        """Another run of the same way, with as many rounds."""
        self.rounds += other.rounds
        for phase, seconds in other.phases.items():
            self.phases[phase] += seconds
        runs = len(self.rounds) // len(other.rounds)
        for what, figures in other.parts.items():
            mine = self.parts.setdefault(what, defaultdict(float))
            for name, value in figures.items():
                mine[name] += (value - mine[name]) / runs

    def flops(self, *kinds: str) -> float:
        """A round, in units of the parameters of one model; both have as many."""
        return sum(FLOPS[what.split()[1]] * self.part(what, "tokens") for what in PASSES if what.split()[1] in kinds)


# ---------------------------------------------------------------------- one run


def train(made: Path, way: Way, samples: int, rounds: int, *more: str) -> Seen:
    """Train ``rounds`` rounds of ``samples`` samples, and look at all but the first."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        metrics, counted = folder / "metrics.jsonl", folder / "counted.jsonl"
        counted.touch()
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "WANDB_MODE": "offline",
            "VERL_USE_EXTERNAL_MODULES": "spy",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
            "VERL_FILE_LOGGER_PATH": str(metrics),
            FILE: str(counted),
            **({} if way.poll is None else {POLL: str(way.poll)}),
        }
        command = [*LAUNCHER, *overrides(made, way, samples, rounds, folder), *more]
        with (folder / "output.txt").open("w+") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            times, marks = follow(process, metrics, counted)
            if process.wait():
                output.seek(0)
                raise RuntimeError(output.read()[-3000:])
        seen = Seen(np.diff(times[WARM_UP - 1 :]).tolist())
        for line in metrics.read_text().splitlines()[WARM_UP:]:
            for name, value in json.loads(line)["data"].items():
                if name.startswith("timing_s/"):
                    seen.phases[name.removeprefix("timing_s/")].append(value)
        for line in counted.read_text().splitlines()[marks[WARM_UP - 1] : marks[-1]]:
            found = json.loads(line)
            total = seen.parts.setdefault(found.pop("what"), defaultdict(float))
            for name, value in found.items():
                total[name] += value / len(seen.rounds)
    return seen


def follow(process: subprocess.Popen, metrics: Path, counted: Path) -> tuple[list[float], list[int]]:
    """When each line of the metrics file was there, and how many others had been counted by then."""
    times: list[float] = []
    marks: list[int] = []
    while process.poll() is None:
        lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        if lines > len(times):
            times.append(time.perf_counter())
            marks.append(counted.read_bytes().count(b"\n"))
        time.sleep(0.005)
    return times, marks


def overrides(made: Path, way: Way, samples: int, rounds: int, folder: Path) -> list[str]:
    """Of the shipped configuration: two updates a round of each model that learns."""
    prompts = samples // N
    part = prompts // 2 if way.halves else prompts
    mini_batch, data = max(part // 2, 1), made / "data"
    streams = [f"tempo.labeled.files='{data / 'labeled.parquet'}'", f"tempo.labeled.batch_size={part}"]
    if way.halves:  # the held-out questions are like the labelled ones, so both are as long
        streams += [f"tempo.unlabeled.files='{data / 'heldout.parquet'}'", f"tempo.unlabeled.batch_size={part}"]
    return [
        "hardware=cpu",
        *streams,
        f"tempo.rounds={rounds}",
        f"tempo.calibration.mini_batch_size={mini_batch}",
        f"critic.ppo_mini_batch_size={mini_batch}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={mini_batch}",
        "tempo.calibration.lr=1e-4",
        "actor_rollout_ref.actor.optim.lr=1e-6",
        f"actor_rollout_ref.rollout.n={N}",
        f"actor_rollout_ref.model.path='{made / 'policy'}'",
        f"critic.model.path='{made / 'policy'}'",
        "critic.allow_new_value_head=true",
        f"data.val_files='{data / 'labeled.parquet'}'",
        "data.max_prompt_length=12",
        "data.max_response_length=16",
        "trainer.logger=[file]",
        "trainer.save_freq=-1",
        "trainer.test_freq=-1",
        "trainer.resume_mode=disable",
        f"trainer.default_local_dir='{folder / 'checkpoints'}'",
        *way.overrides,
    ]


def make(folder: Path, **size: int) -> Path:
    """The tiny task and a policy for it: pretrained, or a larger one that knows nothing."""
    from tempo_verl.quickstart import prepare
    from tempo_verl.tasks.pretrain import pretrain
    from tempo_verl.tasks.running_sums import RunningSums

    task = RunningSums(seed=1)
    prepare(folder, task, 1 if size else 1200, Console(quiet=True))
    if size:
        pretrain(folder / "policy", task, 1, seed=1, **size)
    return folder


# ---------------------------------------------------------------------- tables


def measure(fast: bool = False) -> Iterator[Section]:
    """Rounds, their phases and tokens, overhead of rollouts, checkpoints, growth."""
    rounds, samples = (4, 64) if fast else (8, 256)
    with tempfile.TemporaryDirectory() as temporary:
        tiny = make(Path(temporary) / "tiny")
        seen = {name: Seen() for name in WAYS}
        for repetition in range(1 if fast else 2):  # in turn: the machine's speed drifts
            for name, way in WAYS.items():
                if repetition == 0 or name in (PPO, OURS, TEMPO):
                    seen[name].add(train(tiny, way, samples, rounds))
        yield of_rounds(f"A round of {samples} samples", seen)
        yield of_phases("Where its seconds go", seen)
        yield of_tokens(seen)
        yield of_rollouts(seen, samples)
        large = make(Path(temporary) / "large", **LARGE)
        few = (3, 32) if fast else (5, 64)
        of_large = {name: train(large, WAYS[name], few[1], few[0]) for name in (PPO, EQUAL, OURS, BOTH, TEMPO, SHORT)}
        yield of_rounds(f"The same with a model 100 times larger, {few[1]} samples", of_large)
        yield of_phases("Where its seconds go, larger model", of_large)
        yield of_checkpoints({"tiny": tiny, "100 times larger": large}, samples if fast else 64)
        yield of_growth(tiny, (32, 64) if fast else (32, 128, 512, 1024), 4 if fast else 5)


def of_rounds(title: str, seen: dict[str, Seen]) -> Section:
    others = (PPO, EQUAL, OURS, BOTH)
    header = ("way", "seconds a round", *(f"to {name}" for name in others))
    section = Section(title, header)
    for name, of in seen.items():
        ratios = (ratio(of.rounds, seen[to].rounds) for to in others)
        section.rows.append((name, spread(of.rounds), *ratios))
    section.text = (
        "Half of TEMPO's samples are labelled, half unlabelled. *Batched rollouts* are ours for a CPU; verl's agent "
        "loop handles every sample by itself. All else is equal between TEMPO and PPO with batched rollouts, and "
        "between TEMPO with the rollouts' log-probabilities and PPO with both. All are started by verl's launcher, in "
        "which the trainer is a process of Ray's."
    )
    return section


def of_phases(title: str, seen: dict[str, Seen]) -> Section:
    section = Section(title, ("way", "rollout", *PASSES, "all else"))
    for name, of in seen.items():
        rollout, passes = statistics.median(of.phases["gen"]), [of.part(what, "seconds") for what in PASSES]
        rest = statistics.median(of.rounds) - rollout - sum(passes)
        section.rows.append((name, *(f"{seconds:.2f}" for seconds in (rollout, *passes, rest))))
    reads, learns = (FLOPS[kind] for kind in ("reads", "learns"))
    section.text = (
        "Seconds of a round: the rollout as verl counts it, the models' own seconds in the training worker, and what "
        "is left. Counted in FLOPs, a row of PPO costs 16 units (read and learnt by both models), a labelled and an "
        f"unlabelled row of TEMPO 18 together ({reads} + {learns} of the critic, {reads} of the critic, {reads} + "
        f"{learns} of the policy): 0.56 of two rows of PPO, before rollouts, which cost both the same. Without old "
        "log-probabilities it is 16 to 28, 0.57. Means of the models' seconds, medians of the rest."
    )
    return section


def of_tokens(seen: dict[str, Seen]) -> Section:
    section = Section(
        "Tokens a round, counted in the training worker",
        ("way", *PASSES, "training FLOPs to PPO's", "all FLOPs to PPO's"),
    )
    base = seen[EQUAL]
    for name in (EQUAL, OFFICIAL, TEMPO, SHORT):
        of = seen[name]
        shares = (of.flops(*kinds) / base.flops(*kinds) for kinds in (("learns",), ("reads", "learns")))
        tokens = (f"{of.part(what, 'tokens'):,.0f}" for what in PASSES)
        section.rows.append((name, *tokens, *(f"{share:.2f}" for share in shares)))
    section.text = "Without rollouts, which all ways share. 2 FLOPs a token and parameter for reading, 6 for learning."
    return section


def of_rollouts(seen: dict[str, Seen], samples: int) -> Section:
    section = Section("Overhead of a sample in the rollout", ("rollouts", "milliseconds a sample", "of that"))
    for name in (EQUAL, SAME, OURS, TEMPO):
        of = seen[name]
        whole, generating = statistics.median(of.phases["gen"]), of.part("generate", "seconds")
        known = {part: of.part(part, "seconds") for part in ("score", "store") if part in of.parts}
        parts = ", ".join(f"{part} {1000 * seconds / samples:.2f}" for part, seconds in known.items())
        section.rows.append((name, f"{1000 * (whole - generating) / samples:.2f}", parts or "not counted apart"))
    section.text = "The rollout phase without the seconds in which the model generates."
    return section


def of_checkpoints(models: dict[str, Path], samples: int) -> Section:
    header = ("model", "checkpoint, s", "weights to the rollout, s", "MB a model")
    section = Section("Checkpoint and weight sync", header)
    for name, made in models.items():
        of = train(made, WAYS[SHORT], samples, 6, "trainer.save_freq=1", "tempo.checkpoint.keep=last")
        size = (made / "policy" / "model.safetensors").stat().st_size / 1e6
        saved, synced = (spread(of.phases[phase]) for phase in ("save_checkpoint", "update_weights"))
        section.rows.append((name, saved, synced, f"{size:.1f}"))
    section.text = "A checkpoint: policy, critic, both optimisers, Hugging Face directories, hashes; float32."
    return section


def of_growth(made: Path, sizes: tuple[int, ...], rounds: int) -> Section:
    ways = (OURS, TEMPO)
    section = Section("Growth", ("samples a round", *(f"{name}: rounds a minute" for name in ways), "ratio"))
    for samples in sizes:
        of = [train(made, WAYS[name], samples, rounds).rounds for name in ways]
        rates = (f"{60 / statistics.median(seconds):.1f}" for seconds in of)
        section.rows.append((str(samples), *rates, ratio(of[1], of[0])))
    section.text = "The last column: seconds of TEMPO to those of PPO, all else equal."
    return section


def main(fast: Annotated[bool, typer.Option("--fast")] = False) -> None:
    """Measure, and print the tables."""
    show(measure(fast))


if __name__ == "__main__":
    typer.run(main)
