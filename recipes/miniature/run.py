# SPDX-License-Identifier: Apache-2.0
"""The paper's comparison in small: every method from one RLVR checkpoint on the tiny task, on a CPU.

    python recipes/miniature/run.py --seeds 21,22,23 --out runs/miniature

Each seed makes its own task, pretrained policy and stage 0, from which every method starts with the same data and
seeds. What differs between the methods stands in settings.yaml. The same command goes on after an interruption.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer
from omegaconf import OmegaConf
from results import run_script, summarise
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tempo_verl.errors import UserError

SETTINGS = Path(__file__).with_name("settings.yaml")
STAGE0 = "stage0"


@dataclass(frozen=True)
class Training:
    """One call of ``tempo-verl train``.

    Attributes:
        seed: of everything.
        name: ``stage0``, or of a method or variant.
        folder: of the run.
        overrides: of the shipped configuration.
        command: the same with paths from the miniature's folder, and what its start was made with; for ``run.json``.
    """

    seed: int
    name: str
    folder: Path
    overrides: tuple[str, ...]
    command: str

    @property
    def done(self) -> bool:
        """Whether it has been trained."""
        return (self.folder / "run.json").is_file()

    def claim(self) -> None:
        """Take the folder for these settings, before anything is in it.

        Raises:
            UserError: it has been begun with others.
        """
        begun = self.folder / "command.txt"
        if begun.is_file() and begun.read_text(encoding="utf-8") != self.command:
            raise UserError(f"--out: {self.folder} was begun with other settings (see {begun}); name another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        begun.write_text(self.command, encoding="utf-8")


def overrides(settings: Any, folder: Path, seed: int, name: str) -> tuple[str, ...]:
    """What ``settings.yaml`` asks of one training, with its seed and the seed's folder filled in."""
    places = {
        "seed": seed,
        "data": str(folder / "data"),
        "policy": str(folder / "policy"),
        "critic_start": str(folder / "critic_start"),
        "start": str(folder / STAGE0),
    }
    filled: dict[str, Any] = OmegaConf.to_container(OmegaConf.merge(settings, places), resolve=True)  # type: ignore
    if name == STAGE0:
        return (*filled["common"], *filled["on_labeled"], *filled["stage0"])
    method = (filled["methods"] | filled["variants"])[name]
    taken = [override for part in method["takes"] for override in filled[part]]
    return (*filled["common"], *filled["test_time"], *taken, *method["overrides"])


def train(training: Training) -> None:
    """Train, or go on from the last checkpoint; ``run.json`` is written when it is done."""
    from tempo_verl.launch import Run, run_training, write_run_info

    if training.done:
        return
    title = f"seed {training.seed}, {training.name}"
    seconds = run_training(Run(training.folder), training.overrides, Console(quiet=True), title=title)
    write_run_info(training.folder, training.command, {"training": seconds}, training.seed)


def start_from(out: Path, settings: Any, stage0: Training) -> None:
    """All that comes before the methods: question sets, pretrained policy and critic, stage 0."""
    from tempo_verl.quickstart import prepare
    from tempo_verl.tasks.pretrain import pretrain
    from tempo_verl.tasks.running_sums import RunningSums

    folder, steps = out / f"seed_{stage0.seed}", settings.pretrain_steps
    task = RunningSums(seed=stage0.seed, **settings.task)
    last_written = "tokenizer.json"
    if not (folder / "policy" / last_written).is_file():
        prepare(folder, task, steps, Console(quiet=True))
    if not (folder / "critic_start" / last_written).is_file():
        pretrain(folder / "critic_start", task, steps, seed=task.seed, **settings.critic)
    train(stage0)


def end_with_parent() -> None:
    """Interrupt this worker when the process that it works for is gone: no training goes on unseen."""
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # `nohup ... &` in a script has it ignored

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


def work(function: Callable, *arguments: Any) -> None:
    """One task of a worker; an interrupted worker begins none of those that wait."""
    try:
        function(*arguments)
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGINT)


class Bar:
    """Progress over all trainings; a line for each that is done."""

    def __init__(self, progress: Progress, total: int):
        self._progress = progress
        self._bar = progress.add_task("trainings", total=total)

    def wait_for(self, futures: dict[Future, Training]) -> None:
        """Until all are done.

        Raises:
            UserError: the first that failed; the others are not begun.
        """
        try:
            for future in as_completed(futures):
                future.result()
                training = futures[future]
                seconds = json.loads((training.folder / "run.json").read_text())["seconds"]["training"]
                self._progress.print(f"seed {training.seed}, {training.name}: {seconds:.0f} s", highlight=False)
                self._progress.advance(self._bar)
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def run_all(out: Path, settings: Any, seeds: Sequence[int], names: Sequence[str], jobs: int, console: Console) -> None:
    """Stage 0 of every seed, then every method of every seed, ``jobs`` at a time.

    Raises:
        UserError: a training failed; what is done stays done.
    """

    def training(seed: int, name: str) -> Training:
        folder = out / f"seed_{seed}"
        from_out = overrides(settings, Path(folder.name), seed, name)
        start = OmegaConf.to_yaml(OmegaConf.masked_copy(settings, ["task", "pretrain_steps", "critic"]))
        command = f"{shlex.join(['tempo-verl', 'train', *from_out])}  # {' '.join(start.split())}"
        return Training(seed, name, folder / name, overrides(settings, folder.resolve(), seed, name), command)

    first = [training(seed, STAGE0) for seed in seeds]
    rest = [training(seed, name) for seed in seeds for name in names]
    check([one for one in (*first[:1], *rest[: len(names)]) if not one.done])  # they differ in nothing but the seed
    for one in (*first, *rest):
        one.claim()
    done = sum(of.done for of in (*first, *rest))
    console.print(f"{len(first) + len(rest) - done} trainings to do, {done} done, in {out}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # processes of their own: Hydra composes one configuration at a time; "spawn": the imports are not safe to fork
    with (
        Progress(*columns, console=console) as progress,
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=end_with_parent) as pool,
    ):
        bar = Bar(progress, len(first) + len(rest))
        bar.wait_for({pool.submit(work, start_from, out, settings, of): of for of in first})
        bar.wait_for({pool.submit(work, train, of): of for of in rest})


def numbers(text: str) -> list[int]:
    """``21,22,23``

    Raises:
        UserError: something else.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds={text}: not whole numbers; give them as 21,22,23") from error
    if len(set(found)) < len(found) or min(found) < 0:
        raise UserError(f"--seeds={text}: give each seed once, none below 0")
    return found


def chosen(text: str | None, settings: Any) -> list[str]:
    """Names of methods and variants; all methods by default.

    Raises:
        UserError: an unknown one.
    """
    known = [*settings.methods, *settings.variants]
    names = list(settings.methods) if text is None else text.split(",")
    for name in names:
        if name not in known:
            raise UserError(f"--methods={text}: {name} is unknown; choose from {', '.join(known)}")
    return list(dict.fromkeys(names))


def changed(settings: Any, fast: bool, changes: Sequence[str]) -> Any:
    """The settings, with those of ``fast`` and of ``--set`` in their place.

    Raises:
        UserError: a change of something that is not there, or to something that cannot be.
    """
    from tempo_verl.tasks.running_sums import RunningSums

    small = settings.pop("fast")
    if fast:
        settings = OmegaConf.merge(settings, small)
    for change in changes:
        name, _, value = change.partition("=")
        if not value or OmegaConf.select(settings, name, default=None) is None:
            raise UserError(f"--set {change}: give NAME=VALUE with a name from {SETTINGS.name}, such as rounds=50")
        before, settings = settings, OmegaConf.merge(settings, OmegaConf.from_dotlist([change]))
        _check_value(change, OmegaConf.select(before, name), OmegaConf.select(settings, name))
    try:
        RunningSums(**settings.task)
    except ValueError as error:
        raise UserError(f"--set task.{error}") from error
    width, layers = settings.critic.width, settings.critic.layers
    if width < 16 or width % 16 or layers < 1:  # 16: the width of a head, see tasks.pretrain
        raise UserError(f"--set critic.width={width} critic.layers={layers}: expected a multiple of 16, and 1 or more")
    return settings


def _check_value(change: str, before: Any, now: Any) -> None:
    """Whether a setting can take this value, as far as its type tells; the trainings' own checks know more."""
    number = isinstance(before, int | float)
    kinds = (int, float) if isinstance(before, float) else (type(before),)
    if type(now) not in kinds or (number and now < 0):
        what = ("a whole number" if isinstance(before, int) else "a number") + ", 0 or more" if number else "its like"
        raise UserError(f"--set {change}: {SETTINGS.name} has {before} there; expected {what}")


def check(trainings: Sequence[Training]) -> None:
    """Find what no training would accept before any of them begins.

    Raises:
        UserError: the first such setting.
    """
    from tempo_verl.config.schema import read_settings
    from tempo_verl.launch import resolve_config

    for training in trainings:
        read_settings(resolve_config(training.overrides))


def written(
    script: str, seeds: str, methods: str | None, changes: Sequence[str], jobs: int, others: Sequence[str] = ()
) -> str:
    """The command that makes these results again."""
    options = ["--seeds", seeds, *(["--methods", methods] if methods else []), *others]
    options += [part for change in changes for part in ("--set", change)]
    return shlex.join(["python", f"recipes/miniature/{script}", *options, "--jobs", str(jobs)])


def main(
    seeds: Annotated[str, typer.Option(help="Each makes a task, a policy, and a run of every method.")] = "21,22,23",
    out: Annotated[Path, typer.Option(help="Folder of all runs; what is there is not trained again.")] = Path(
        "runs/miniature"
    ),
    methods: Annotated[str | None, typer.Option(help="Only these, from methods and variants in settings.yaml.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="A value of settings.yaml, as in --set rounds=50.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="A few rounds: shows that it works, not the effect.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at a time; each takes a core and 5 GB.")] = 2,
) -> None:
    """Run every method from one RLVR checkpoint on the tiny task; make the table, the figures and the report."""
    console = Console()
    settings = changed(OmegaConf.load(SETTINGS), fast, changes or [])
    names = chosen(methods, settings)
    started = time.monotonic()
    run_all(out, settings, numbers(seeds), names, jobs, console)
    command = written("run.py", seeds, methods, changes or [], jobs, ["--fast"] if fast else [])
    for line in summarise(command, out, numbers(seeds), names):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"took {(time.monotonic() - started) / 60:.0f} minutes; report: {out / 'report' / 'report.html'}")


if __name__ == "__main__":
    run_script(main)
