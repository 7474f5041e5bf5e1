# SPDX-License-Identifier: Apache-2.0
"""``tempo-verl plan``: what a run would take, before there is anything of it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console


def plan(
    context: typer.Context,
    gpus: Annotated[str, typer.Option(help="8xH100, or 2x8xH100 for two nodes.")],
    model: Annotated[
        str | None,
        typer.Option(help="A known name, such as qwen3-14b, or a directory with a config.json; default: the override."),
    ] = None,
    gpu_memory: Annotated[float | None, typer.Option(help="GB of one GPU, in place of the table's.")] = None,
    tflops: Annotated[float | None, typer.Option(help="Dense bf16 TFLOP/s of one GPU.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Memory bandwidth of one GPU, TB/s.")] = None,
    mfu: Annotated[float, typer.Option(help="Share of the FLOP/s that training and scoring reach.")] = 0.3,
    bandwidth_share: Annotated[float, typer.Option(help="Share of the bandwidth that generation reaches.")] = 0.5,
    mean_prompt: Annotated[int | None, typer.Option(help="Tokens; default 256, at most the limit.")] = None,
    mean_response: Annotated[int | None, typer.Option(help="Tokens; default half of the limit.")] = None,
) -> None:
    """Estimate memory, time and disk of a run: no file, no GPU and no download is needed.

    Every other argument is a Hydra override, as of tempo-verl train. Exit status 1: it does not fit; then overrides to
    try are shown, each with what becomes of it.
    """
    from tempo_verl.config.composed import resolve_config
    from tempo_verl.console import tell
    from tempo_verl.errors import UserError
    from tempo_verl.planning import estimate as planning
    from tempo_verl.planning.architecture import find
    from tempo_verl.planning.machine import read
    from tempo_verl.planning.shown import show

    machine = read(gpus, gpu_memory, tflops, bandwidth)
    overrides = [f"trainer.nnodes={machine.nodes}", f"trainer.n_gpus_per_node={machine.per_node}"]
    if not any(argument.startswith("hardware=") for argument in context.args):
        overrides.append("hardware=fsdp")
    config = resolve_config([*overrides, *context.args])
    if (config.trainer.nnodes, config.trainer.n_gpus_per_node) != (machine.nodes, machine.per_node):
        raise UserError(f"--gpus={gpus} sets trainer.nnodes and trainer.n_gpus_per_node; leave these two out")
    if config.trainer.device == "cpu":
        raise UserError("hardware=cpu trains on no GPU; tempo-verl train --dry-run estimates such a run")
    path = config.actor_rollout_ref.model.path
    if model is None and path is None:
        raise UserError("--model is not set; name one, such as --model=qwen3-8b, or a directory with a config.json")
    actor = find(model or path)
    critic = actor if model or config.critic.model.path is None else find(config.critic.model.path)
    models = {"actor": (actor, actor.policy_parameters)}
    if config.critic.enable:
        models["critic"] = (critic, critic.critic_parameters)
    given = planning.assumed(config, mean_prompt, mean_response, mfu, bandwidth_share)
    found = planning.estimate(config, models, machine, given)
    console = Console()
    show(found, console)
    if not found.problems:
        tell(console, "fits")
        return
    for problem in found.problems:
        tell(console, f"does not fit: {problem}")
    for changes, outcome in planning.advice(config, models, machine, given):
        tell(console, f"try {' '.join(changes)}: {outcome}")
    raise typer.Exit(1)
