# SPDX-License-Identifier: Apache-2.0
"""An estimate as tables of at most 80 columns."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from tempo_verl.console import tell
from tempo_verl.planning.estimate import Estimate


def show(found: Estimate, console: Console) -> None:
    """Memory by stage, a round by phase, disk, and the whole."""
    for table in (_memory(found), _round(found)):
        console.print(table)
    for line in _whole(found):
        tell(console, line)


def size(number: float) -> str:
    """Bytes in words."""
    for unit, of in (("GB", 1e9), ("MB", 1e6)):
        if number >= of:
            return f"{number / of:,.1f} {unit}"
    return f"{number / 1e3:,.1f} kB"


def _memory(found: Estimate) -> Table:
    where = f"one of {found.machine.gpus} GPUs" if found.machine.gpu else f"one of {found.machine.gpus} processes"
    table = Table("memory", where, title="memory, estimated", width=76)
    table.columns[1].justify = "right"
    for stage in found.memory.stages:
        for part in stage.parts:
            if part.size:
                table.add_row(f"  {part.name}", size(part.size))
        table.add_row(stage.name, size(stage.size), style="bold", end_section=True)
    return table


def _round(found: Estimate) -> Table:
    table = Table("a round", "responses", "tokens", "FLOPs", "seconds", title="work, estimated", width=76)
    for column in table.columns[1:]:
        column.justify = "right"
    for number, phase in enumerate(found.phases):
        seconds = "" if found.seconds is None else f"{found.seconds[number]:,.1f}"
        flops = f"{phase.flops:.2e}" if phase.flops else ""
        table.add_row(phase.name, f"{phase.responses:,.0f}", f"{phase.tokens:,.0f}", flops, seconds)
    return table


def _whole(found: Estimate) -> list[str]:
    weights = ", ".join(f"{role} {count / 1e6:,.1f}M weights" for role, count in found.weights.items())
    parts = [f"{role} {size(each)} x {number}" for role, (each, number) in found.checkpoints.items()]
    means = f"prompts of {found.assumed.prompt} tokens, responses of {found.assumed.response}"
    lines = [
        f"method: {found.method}, {found.rounds} rounds",
        f"models: {weights}",
        f"assumed: {means}",
    ]
    if found.machine.gpu is not None:
        lines[-1] += f"; MFU {found.assumed.mfu:g}, {found.assumed.bandwidth:g} of the memory bandwidth"
        lines.append(f"KV cache of a replica: {size(max(found.memory.kv_space or 0.0, 0.0))}")
    if found.memory.host:
        lines.append(f"CPU memory for what is offloaded, all nodes: {size(found.memory.host)}")
    lines.append(f"checkpoints on the disk, at most: {size(found.disk)} ({', '.join(parts)})")
    if found.seconds is not None:
        lines.append(
            f"time: {sum(found.seconds):,.0f} s a round, {found.gpu_hours:,.1f} GPU-hours for all rounds, without "
            "validation, predictions, loading and saving"
        )
    return lines
