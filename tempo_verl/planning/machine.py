# SPDX-License-Identifier: Apache-2.0
"""Accelerators: memory, dense bf16 FLOP/s without sparsity, memory bandwidth."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tempo_verl.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """``memory`` in bytes, ``flops`` a second, ``bandwidth`` in bytes a second."""

    memory: float
    flops: float
    bandwidth: float


# NVIDIA's data sheets (A100, H100 and H200: SXM; L40S; B200), half of the FLOP/s that they give with sparsity.
GPUS = {
    "a100": Gpu(80e9, 312e12, 2.04e12),
    "a100-40gb": Gpu(40e9, 312e12, 1.555e12),
    "h100": Gpu(80e9, 989e12, 3.35e12),
    "h200": Gpu(141e9, 989e12, 4.8e12),
    "b200": Gpu(180e9, 2250e12, 8e12),
    "l40s": Gpu(48e9, 362e12, 0.864e12),
}


@dataclass(frozen=True)
class Machine:
    """``nodes`` with ``per_node`` GPUs each; ``gpu`` None: without a known accelerator."""

    nodes: int
    per_node: int
    gpu: Gpu | None

    @property
    def gpus(self) -> int:
        return self.nodes * self.per_node


def read(
    text: str, memory: float | None = None, tflops: float | None = None, bandwidth: float | None = None
) -> Machine:
    """``8xH100``, or with nodes ``2x8xH100``.

    Args:
        memory: GB, in place of the table's. With all three, the name may be any.
        tflops: TFLOP/s in dense bf16.
        bandwidth: TB/s.

    Raises:
        UserError: not of this form, or an unknown GPU.
    """
    found = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)x([a-z][\w-]*)", text.strip().lower())
    if found is None:
        raise UserError(f"--gpus={text}: write 8xH100, or 2x8xH100 for two nodes")
    if any(value is not None and value <= 0 for value in (memory, tflops, bandwidth)):
        raise UserError("--gpu-memory, --tflops and --bandwidth must be more than 0")
    known = GPUS.get(found[3])
    if known is None and (memory is None or tflops is None or bandwidth is None):
        raise UserError(
            f"--gpus={text}: {found[3]} is unknown; choose one of {', '.join(GPUS)}, or give --gpu-memory (GB), "
            "--tflops and --bandwidth (TB/s)"
        )
    gpu = Gpu(
        memory * 1e9 if memory is not None else known.memory,  # type: ignore[union-attr]
        tflops * 1e12 if tflops is not None else known.flops,  # type: ignore[union-attr]
        bandwidth * 1e12 if bandwidth is not None else known.bandwidth,  # type: ignore[union-attr]
    )
    return Machine(int(found[1] or 1), int(found[2]), gpu)
