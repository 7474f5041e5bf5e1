# SPDX-License-Identifier: Apache-2.0
"""The ``tempo-verl`` command. Each sub-command is thin; a user's mistake ends in one line and status 2."""

from __future__ import annotations

import shlex
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tempo_verl import __version__
from tempo_verl.cli.evaluate import answer, evaluate
from tempo_verl.cli.label_next import label_next
from tempo_verl.cli.paths import output_file, output_folder
from tempo_verl.cli.plan import plan
from tempo_verl.cli.prepare import prepare
from tempo_verl.errors import UserError
from tempo_verl.lazy import import_lazily

app = typer.Typer(
    name="tempo-verl",
    help="Test-time training for large reasoning models, as a plugin for verl.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(show: bool) -> None:
    if show:
        print(f"tempo-verl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


app.command()(prepare)
app.command()(evaluate)
app.command()(answer)
app.command()(label_next)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(plan)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    run_dir: Annotated[Path, typer.Option(help="Folder for config, logs, metrics, checkpoints and report.")] = Path(
        "runs/train"
    ),
    verbose: Annotated[bool, typer.Option(help="Show verl's own output instead of a progress bar.")] = False,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="How often a run that fails goes on from its last checkpoint by itself.")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Make every check, tell what the run would do and take; start nothing.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="With --dry-run: file of the resolved configuration; default RUN_DIR.dry-run.yaml."),
    ] = None,
) -> None:
    """Train: check everything first, then run verl's trainer with a progress bar.

    Every other argument is a Hydra override of the shipped configuration, for example:

    tempo-verl train method=ppo tempo.labeled.files=labeled.parquet
    actor_rollout_ref.model.path=MODEL critic.model.path=MODEL trainer.save_freq=50
    """
    output_folder("--run-dir", run_dir)
    if out is not None:
        if not dry_run:
            raise UserError("--out: only with --dry-run")
        output_file("--out", out)
    if dry_run:
        from tempo_verl.planning.dry_run import dry_run as look
        from tempo_verl.run import Run as Folder

        look(Folder(run_dir), context.args, Console(), out)
        return
    from tempo_verl.config.secrets import masked
    from tempo_verl.launch import Run, run_training, write_run_info

    console = Console()
    command = shlex.join(["tempo-verl", "train", "--run-dir", str(run_dir), *map(masked, context.args)])
    run_training(
        Run(run_dir),
        context.args,
        console,
        title="training",
        verbose=verbose,
        max_restarts=max_restarts,
        hints=True,
        ended=lambda seconds: write_run_info(run_dir, command, {"training": seconds}),
    )
    _report(run_dir, console)
    if Run(run_dir).predictions.is_file():
        console.print(f"predictions: {Run(run_dir).predictions}")


@app.command()
def quickstart(
    run_dir: Annotated[Path, typer.Option(help="Folder of the run; must not hold one already.")] = Path(
        "runs/quickstart"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the task, the pretraining and the training.")] = 1,
    fast: Annotated[
        bool, typer.Option("--fast", help="A few rounds only: shows that everything works, not the effect.")
    ] = False,
    verbose: Annotated[bool, typer.Option(help="Show verl's own output instead of progress bars.")] = False,
) -> None:
    """Tiny task, tiny model, stage 0, TEMPO, evaluation and report: the whole method on a laptop CPU."""
    output_folder("--run-dir", run_dir)
    from tempo_verl.quickstart import quickstart as run

    run(run_dir, seed=seed, fast=fast, console=Console(), verbose=verbose)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, one or several.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the report; default: the run folder, and report/ here for several runs."),
    ] = None,
) -> None:
    """Make the tables, the plots and report.html of a run folder again, or of several runs side by side.

    Runs that differ in their seeds only are averaged: means, standard deviations, and what differs between the others.
    """
    output_folder("--out" if out or len(runs) > 1 else "RUN", out or (runs[0] if len(runs) == 1 else Path("report")))
    from tempo_verl.report import build_comparison, print_table

    console = Console()
    if len(runs) == 1:
        _report(runs[0], console, out)
        return
    out = out or Path("report")
    print_table(build_comparison(runs, out), console)
    console.print(f"report: {out / 'report.html'}")


def _report(run_dir: Path, console: Console, out: Path | None = None) -> None:
    from tempo_verl.report import build_report, print_table, write_cards

    results = build_report(run_dir, out)
    print_table(results, console)
    console.print(f"report: {(out or run_dir) / 'report.html'}")
    for folder in write_cards(run_dir, results) if out is None else ():
        console.print(f"model, with a card: {folder}", soft_wrap=True)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def doctor(
    context: typer.Context,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Also train for a few minutes on one GPU, and judge what came out.")
    ] = False,
    model: Annotated[Path | None, typer.Option(help="With --gpu: folder of a small instruction-tuned model.")] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run to check, default runs/train. With --gpu: of its runs, must not hold any; default "
            "runs/doctor."
        ),
    ] = None,
    no_ray: Annotated[bool, typer.Option("--no-ray", help="Start no small Ray, to look into a worker.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    verbose: Annotated[bool, typer.Option(help="With --gpu: show verl's own output.")] = False,
) -> None:
    """Check the installation: versions, the plugin's registrations, the platform verl would use.

    Other arguments are Hydra overrides, as of tempo-verl train: that run is checked, too. Every check is made. Exit
    status 1: one failed. With --gpu they are overrides of its two runs.
    """
    if not gpu and model is not None:
        raise UserError("--model: only with --gpu")
    if gpu and model is None:
        raise UserError("--gpu: name a small instruction-tuned model with --model=DIRECTORY")
    if gpu and as_json:
        raise UserError("--json: not with --gpu, whose result is a table")
    trial = run_dir or Path("runs/doctor")
    if gpu:
        output_folder("--run-dir", trial)
    from tempo_verl import diagnosis

    console, patient = Console(), diagnosis.Doctor(not no_ray)
    # what verl and others print is no part of the result
    with redirect_stdout(sys.stderr) if as_json else console.status("looking"):
        patient.installation()
        if not gpu and (context.args or run_dir is not None):
            patient.run(context.args, run_dir or Path("runs/train"))
    if as_json:
        print(diagnosis.as_json(patient))
    else:
        diagnosis.show(patient, console)
    if not patient.well:
        raise typer.Exit(1)
    if model is not None:
        from tempo_verl.trial import run_trial

        raise typer.Exit(0 if run_trial(str(model), trial, console, context.args, verbose) else 1)


def main() -> None:
    """Console script: one line for a user's mistake."""
    # whoever asks a command to end has its training ended too, as with Ctrl-C
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    import_lazily("torch")
    try:
        app()
    except UserError as error:
        print(f"tempo-verl: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
