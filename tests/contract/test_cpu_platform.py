# SPDX-License-Identifier: Apache-2.0
"""The CPU as a verl platform: complete, chosen where there is no accelerator, and never where there is one."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import verl
import verl.plugin.platform.platform_manager as platform_manager
from verl.plugin.platform import PlatformBase, PlatformRegistry, get_platform
from verl.utils.device import auto_set_device
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead

from tempo_verl import plugin
from tempo_verl.backends import cpu_platform
from tempo_verl.config import cluster
from tempo_verl.errors import UserError


@pytest.fixture
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without accelerator, and a process in which verl has not chosen its platform yet."""
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    monkeypatch.setattr(cpu_platform, "ACCELERATOR_NODES", ())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(PlatformBase, "check_smi_command", staticmethod(lambda command: False))
    monkeypatch.setattr(platform_manager, "_current_platform", None)


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "running_cluster", lambda address: None)


@pytest.fixture
def npu(no_accelerator: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with Ascend NPUs, as ``torch_npu`` shows it."""
    monkeypatch.setattr(torch, "npu", SimpleNamespace(is_available=lambda: True), raising=False)


@pytest.fixture
def accelerator(no_accelerator: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node = tmp_path / "nvidiactl"
    node.touch()
    monkeypatch.setattr(cpu_platform, "ACCELERATOR_NODES", (str(tmp_path / "kfd"), str(node)))


def platform() -> PlatformBase:
    return PlatformRegistry.get("cpu")()


def test_the_platform_implements_everything_abstract() -> None:
    assert not PlatformRegistry.get("cpu").__abstractmethods__
    cpu = platform()
    assert (cpu.device_name, cpu.vendor_name) == ("cpu", "cpu")
    assert cpu.current_device() == torch.device("cpu")
    assert cpu.device_count() == 1
    assert cpu.get_device_capability() == (None, None)
    assert cpu.communication_backend_name() == "gloo"
    assert cpu.visible_devices_envvar() == "CUDA_VISIBLE_DEVICES"
    assert cpu.ray_resource_options(2) == {"num_gpus": 2}
    assert cpu.ray_noset_envvars() == []
    assert not cpu.is_ipc_supported()
    for name in ("synchronize", "empty_cache", "profiler_start", "profiler_stop", "cudart"):
        assert getattr(cpu, name)() is None
    cpu.set_device(0)
    cpu.set_allocator_settings("expandable_segments:True")
    with cpu.nvtx_range("phase"):
        pass


def test_the_platform_seeds_torch() -> None:
    draws = []
    for seed in (platform().manual_seed, platform().manual_seed_all):
        seed(7)
        draws.append(torch.rand(3).tolist())
    assert draws[0] == draws[1]


def test_the_device_module_has_what_verls_training_path_asks_of_it() -> None:
    root, asked = Path(verl.__file__).parent, set()
    for pattern in ("workers/engine_workers.py", "workers/engine/*.py", "workers/engine/fsdp/*.py", "utils/**/*.py"):
        for file in root.glob(pattern):
            # triton kernels, offloading from a device's memory, other engines: nothing that a CPU run can ask for
            if not {"kernel", "activation_offload", "vllm", "megatron"} & {*file.parts, file.stem}:
                asked |= set(re.findall(r"get_torch_device\(\)\.(\w+)", file.read_text()))
    assert {"empty_cache", "memory_allocated", "get_rng_state"} <= asked
    asked.remove("set_per_process_memory_fraction")  # by two helpers for tight GPU memory
    assert {name for name in asked if not hasattr(platform().device_module, name)} == set()


def test_the_device_module_saves_and_restores_the_random_state() -> None:
    module = platform().device_module
    state = module.get_rng_state()
    first = torch.rand(2)
    module.set_rng_state(state)
    assert torch.equal(torch.rand(2), first)
    assert module.memory_allocated() == module.max_memory_reserved() == 0
    assert module.mem_get_info() == (0, 0)


@pytest.mark.usefixtures("no_accelerator", "no_cluster")
def test_the_cpu_wins_where_there_is_no_accelerator() -> None:
    assert platform().is_available()
    assert get_platform().device_name == "cpu"
    assert plugin._default_hardware() == "cpu"
    cpu_platform.use_platform_for("cpu")
    assert get_platform().device_name == "cpu"


@pytest.mark.usefixtures("no_accelerator")
@pytest.mark.parametrize(("device", "resource"), [("cuda", "GPU"), ("npu", "NPU")])
def test_a_head_node_without_accelerator_steers_a_cluster_of_them(device: str, resource: str) -> None:
    cpu_platform.use_platform_for(device)
    assert get_platform().device_name == device
    assert get_platform().ray_resource_name() == resource


@pytest.mark.usefixtures("no_accelerator")
@pytest.mark.parametrize(
    ("resources", "hardware"), [({"CPU": 64.0}, "cpu"), ({"CPU": 64.0, "GPU": 8.0}, "fsdp"), ({"NPU": 16.0}, "fsdp")]
)
def test_the_default_hardware_is_that_of_the_cluster_that_a_run_joins(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, float], hardware: str
) -> None:
    monkeypatch.setattr(cluster, "running_cluster", lambda address: ("the Ray cluster", [resources]))
    assert plugin._default_hardware() == hardware


@pytest.mark.usefixtures("no_accelerator")
def test_a_cluster_that_does_not_answer_is_not_taken_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(address: str | None) -> None:
        raise UserError("no Ray cluster answers")

    monkeypatch.setattr(cluster, "running_cluster", silent)
    assert plugin._default_hardware() == "fsdp"  # whose checks tell of it; cpu would start a cluster of its own


@pytest.mark.usefixtures("npu")
def test_an_ascend_host_trains_on_its_npus(compose) -> None:
    assert plugin._default_hardware() == "fsdp"
    assert get_platform().device_name == "npu"
    config = compose(["hardware=fsdp"])
    assert config.trainer.device == "cuda"  # verl's launcher changes it after the checks
    assert cluster.training_device(config) == "npu"
    auto_set_device(config)
    assert config.trainer.device == "npu"


@pytest.mark.slow  # starts a cluster; what it is asked for is tested above
@pytest.mark.usefixtures("no_accelerator")
def test_a_head_node_is_asked_for_its_cluster(compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real cluster, of which Ray is told that it has 8 NPUs."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 64, "num_gpus": 0, "resources": {"NPU": 8}})
    try:
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        assert plugin._default_hardware() == "fsdp"
        config = compose(["hardware=fsdp", "trainer.n_gpus_per_node=8"])
        with pytest.raises(UserError, match=r"^trainer\.device=cuda: .* has 8 NPUs and no GPU; set it to npu$"):
            cluster.check_ray(config)
        config.trainer.device = "npu"
        cluster.check_ray(config)
        config.trainer.nnodes = 2
        for _ in range(2):
            nodes.add_node(num_cpus=64, num_gpus=0, resources={"NPU": 4})
        only = r"has only 1 of 2 nodes \(trainer\.nnodes\) with 8 NPUs .*: 8 NPUs, 64 CPUs"
        with pytest.raises(UserError, match=only):  # though 16 in all
            cluster.check_ray(config)
        nodes.add_node(num_cpus=64, num_gpus=0, resources={"NPU": 8})
        cluster.check_ray(config)
    finally:
        nodes.shutdown()


@pytest.mark.usefixtures("accelerator")
def test_the_cpu_never_wins_where_there_is_an_accelerator() -> None:
    assert not platform().is_available()
    assert get_platform().device_name != "cpu"
    assert plugin._default_hardware() == "fsdp"
    with pytest.raises(UserError, match=r"trainer\.device=cpu.*use hardware=fsdp, or set VERL_PLATFORM=cpu"):
        cpu_platform.use_platform_for("cpu")


@pytest.mark.usefixtures("accelerator")
def test_the_cpu_can_be_insisted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    assert platform().is_available()
    assert get_platform().device_name == "cpu"
    cpu_platform.use_platform_for("cpu")


@pytest.mark.usefixtures("no_accelerator")
def test_verl_finds_its_own_engines_for_the_cpu() -> None:
    for backend in ("fsdp", "fsdp2"):
        assert EngineRegistry.get_engine_cls("language_model", backend) is FSDPEngineWithLMHead
        assert EngineRegistry.get_engine_cls("value_model", backend) is FSDPEngineWithValueHead
