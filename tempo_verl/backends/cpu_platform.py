# SPDX-License-Identifier: Apache-2.0
"""A CPU as a verl platform: gloo collectives, Ray's *logical* GPUs as worker slots, no device memory to manage."""

from __future__ import annotations

import os
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

from tempo_verl.lazy import is_waiting

# One of these exists wherever a driver for an accelerator is loaded, whether or not this process may use it
# (a Ray worker without GPUs sees none through torch, yet must not turn to the CPU platform).
ACCELERATOR_NODES = ("/dev/nvidiactl", "/dev/kfd", "/dev/davinci_manager", "/dev/dxg")

# trainer.device of a cluster's nodes -> verl's platform for it
STEERED = {"cuda": "nvidia", "npu": "huawei"}


def accelerator_present() -> bool:
    """Whether this host has an accelerator that verl could train on (NVIDIA, AMD or Ascend)."""
    if any(Path(node).exists() for node in ACCELERATOR_NODES):
        return True
    if is_waiting("torch") and not _knows_accelerators():
        return False
    return torch.cuda.is_available() or (hasattr(torch, "npu") and torch.npu.is_available())


def _knows_accelerators() -> bool:
    """Whether the installed torch was built for any, told without loading it."""
    spec = find_spec("torch")
    libraries = Path(spec.origin).parent / "lib" if spec is not None and spec.origin else Path()
    built = any(any(libraries.glob(f"*torch_{device}*")) for device in ("cuda", "hip"))
    return built or find_spec("torch_npu") is not None


def _nothing(*_args, **_kwargs) -> None:
    return None


def _device_module() -> ModuleType:
    """What verl expects of ``torch.<device>``, for a device that has no memory, streams or RNG of its own."""
    module = ModuleType("tempo_verl.backends.cpu_device")
    for name in (
        "empty_cache",
        "synchronize",
        "set_device",
        "reset_peak_memory_stats",
        "ipc_collect",
        "manual_seed",
        "manual_seed_all",
    ):
        setattr(module, name, _nothing)
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        setattr(module, name, lambda *_a, **_k: 0)
    module.mem_get_info = lambda *_a, **_k: (0, 0)
    module.is_available = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: torch.device("cpu")
    module.get_device_name = lambda *_a, **_k: "CPU"
    module.get_device_properties = lambda *_a, **_k: SimpleNamespace(name="CPU", total_memory=0)
    module.get_rng_state = lambda *_a, **_k: torch.get_rng_state()
    module.set_rng_state = lambda state, *_a, **_k: torch.set_rng_state(state)
    return module


def register(platform_module: ModuleType) -> None:
    """Add the platform "cpu" to verl's registry, last in line, and only available where no accelerator is."""
    base = platform_module.PlatformBase

    class PlatformCPU(base):
        """verl on the CPU. Ray's ``num_gpus`` are logical slots here: one for each training process."""

        _module = _device_module()

        device_name = property(lambda self: "cpu")
        vendor_name = property(lambda self: "cpu")
        device_module = property(lambda self: self._module)

        def is_available(self) -> bool:
            return not accelerator_present() or os.environ.get("VERL_PLATFORM", "").lower() == "cpu"

        def current_device(self) -> torch.device:
            return torch.device("cpu")

        def device_count(self) -> int:
            return 1

        set_device = synchronize = set_allocator_settings = empty_cache = _nothing
        profiler_start = profiler_stop = cudart = _nothing

        def manual_seed(self, seed: int) -> None:
            torch.manual_seed(seed)

        manual_seed_all = manual_seed

        def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
            return None, None

        def communication_backend_name(self) -> str:
            return "gloo"

        def visible_devices_envvar(self) -> str:
            return "CUDA_VISIBLE_DEVICES"  # what Ray sets for the resource "GPU", logical or not

        def ray_resource_name(self) -> str:
            return "GPU"

        def ray_noset_envvars(self) -> list[str]:
            return []

        def is_ipc_supported(self) -> bool:
            return False

        @contextmanager
        def nvtx_range(self, msg: str):
            yield

    platform_module.PlatformRegistry.register(platform="cpu")(PlatformCPU)


def use_platform_for(device: str) -> None:
    """Make this process's platform fit ``trainer.device``.

    A head node without accelerators that steers a cluster of them would pick the CPU platform, and ask Ray for its
    resource. verl itself falls back to its CUDA platform there.

    Raises:
        UserError: ``trainer.device=cpu`` on a host with an accelerator that was not asked for by ``VERL_PLATFORM=cpu``.
    """
    from verl.plugin.platform import PlatformRegistry, get_platform, set_platform

    from tempo_verl.errors import UserError

    current = get_platform().device_name
    if device == "cpu" and current != "cpu":
        raise UserError(
            f"trainer.device=cpu (hardware=cpu), but this host has an accelerator ({current}); "
            "use hardware=fsdp, or set VERL_PLATFORM=cpu to insist on the CPU"
        )
    if current == "cpu" and device in STEERED:
        set_platform(PlatformRegistry.get(STEERED[device])())
