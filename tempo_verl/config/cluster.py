# SPDX-License-Identifier: Apache-2.0
"""Checks of what a run needs of Ray and of TransferQueue. Ray is not started; a running cluster is asked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from omegaconf import DictConfig

from tempo_verl.config.schema import TempoSettings
from tempo_verl.errors import UserError

# Ray's switch by which it keeps to 127.0.0.1. Its name tells where that is the default; without it every port but the
# dashboard's is open to the network, whatever ray.init is told. Read when ray is imported.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

CPUS_PER_RANK = 3  # that verl reserves in Ray


def is_local(config: DictConfig) -> bool:
    """Whether a run makes a Ray cluster of its own, which nobody else joins: ``ray_kwargs.ray_init.address=local``."""
    return config.ray_kwargs.get("ray_init", {}).get("address") == "local"


def loopback(config: DictConfig) -> dict[str, str]:
    """Environment variables for a training whose Ray nobody else joins."""
    return LOOPBACK if is_local(config) else {}


def trains_here(config: DictConfig) -> bool:
    """Whether the trainer can run in the process that starts the run, see :mod:`tempo_verl.local`.

    On a CPU, in a cluster of its own, with nothing that Ray would have to do for its process but set variables.
    """
    own = config.ray_kwargs.get("ray_init", {}).get("runtime_env") or {}
    asked = {name for name, value in own.items() if value is not None}
    return is_local(config) and config.trainer.device == "cpu" and asked <= {"env_vars"}


def trainer_environment(config: DictConfig) -> dict[str, str]:
    """What Ray would set for a trainer that runs in the process that starts the run."""
    if not trains_here(config):
        return {}
    configured = config.ray_kwargs.ray_init.get("runtime_env", {}).get("env_vars", {})
    return {"TRANSFER_QUEUE_ENABLE": "1"} | {name: str(value) for name, value in configured.items()}


def required_cpus(num_ranks: int, num_storage_units: int) -> int:
    """Logical CPUs of Ray that a run holds, plus one in which the actors that hold none can start.

    verl reserves 3 for each training process, TransferQueue 1 for its controller and 1 for each storage unit. With
    fewer, TransferQueue's actors wait for ever and verl hangs without a message.
    """
    return CPUS_PER_RANK * num_ranks + num_storage_units + 2


def workers() -> int:
    """Agent-loop workers of a run, and as many reward workers: a quarter of the cores each, at most verl's 8.

    Each is a process that imports torch and transformers. Cores: those that this process may use, by its affinity and
    its container's quota.
    """
    from joblib import cpu_count

    return min(8, max(1, cpu_count() // 4))


def check_ray(config: DictConfig) -> None:
    ranks = config.trainer.n_gpus_per_node * config.trainer.nnodes
    required = required_cpus(ranks, config.transfer_queue.backend.SimpleStorage.num_data_storage_units)
    options = config.ray_kwargs.get("ray_init", {})
    running = running_cluster(options.get("address"))
    if running is not None:
        where, nodes = running
        cpus = sum(node.get("CPU", 0) for node in nodes)
    elif options.get("num_cpus") is not None:
        where, cpus = "ray_kwargs.ray_init.num_cpus: Ray", options.num_cpus
    else:
        where, cpus = "this machine", os.cpu_count() or 1
    if running is not None:
        check_accelerators(where, nodes, config.trainer.nnodes, config.trainer.n_gpus_per_node, training_device(config))
    if cpus < required:
        raise UserError(
            f"{where} has {cpus:g} CPUs, this run needs {required} "
            f"({CPUS_PER_RANK} for each training process, 1 for each of TransferQueue's storage units, 2 more); "
            "raise ray_kwargs.ray_init.num_cpus or lower transfer_queue.backend.SimpleStorage.num_data_storage_units"
        )


def check_accelerators(
    where: str, nodes: Sequence[Mapping[str, float]], nnodes: int, n_gpus_per_node: int, device: str
) -> None:
    """See that verl finds room for its training processes: it would wait for ever for a node that is missing.

    verl reserves, ``nnodes`` times, ``n_gpus_per_node`` accelerators on one node, and 3 CPUs with each.

    Args:
        where: has the nodes, in words.
        nodes: their resources, as Ray names them.
        nnodes: ``trainer.nnodes``.
        n_gpus_per_node: ``trainer.n_gpus_per_node``.
        device: ``trainer.device``, see :func:`training_device`.

    Raises:
        UserError: it does not; with what was expected and what each node has.
    """
    wanted = "NPU" if device == "npu" else "GPU"
    other = "GPU" if device == "npu" else "NPU"
    found, found_other = (sum(node.get(name, 0) for node in nodes) for name in (wanted, other))
    if not found and found_other:
        fitting = "npu" if other == "NPU" else "cuda"
        raise UserError(
            f"trainer.device={device}: {where} has {found_other:g} {other}s and no {wanted}; set it to {fitting}"
        )
    each = {wanted: n_gpus_per_node, "CPU": CPUS_PER_RANK * n_gpus_per_node}
    room = sum(int(min(node.get(name, 0) // number for name, number in each.items())) for node in nodes)
    if room < nnodes:
        have = (f"{_address(node)}: {node.get(wanted, 0):g} {wanted}s, {node.get('CPU', 0):g} CPUs" for node in nodes)
        raise UserError(
            f"{where} has only {room} of {nnodes} nodes (trainer.nnodes) with {n_gpus_per_node} {wanted}s "
            f"(trainer.n_gpus_per_node) and {each['CPU']} CPUs ({'; '.join(have)}); lower one of them, or wait until "
            "every node has joined"
        )


def _address(node: Mapping[str, float]) -> str:
    """Ray gives every node a resource of this name."""
    named = (name.removeprefix("node:") for name in node if name.startswith("node:") and "internal" not in name)
    return next(named, "a node")


def training_device(config: DictConfig) -> str:
    """``trainer.device`` as verl's launcher sets it: an accelerator of this host goes before what is configured."""
    from verl.plugin.platform import get_platform

    here = get_platform().device_name
    return config.trainer.device if here == "cpu" else here


def check_storage(config: DictConfig, settings: TempoSettings) -> None:
    storage = config.transfer_queue.backend.SimpleStorage
    if not settings.calibration.replay.prompts:
        return
    rows = {
        "labeled": settings.labeled.batch_size * settings.labeled.n,
        "unlabeled": settings.unlabeled.batch_size * config.actor_rollout_ref.rollout.n,
    }
    needed = (settings.calibration.replay.window + 1) * rows["labeled"] + sum(rows.values())
    needed += sum(rows[name] for name in settings.ahead.streams)
    if needed > storage.total_storage_size:
        raise UserError(
            f"tempo.calibration.replay.window={settings.calibration.replay.window} keeps samples in TransferQueue, "
            f"which would have to hold {needed} and holds {storage.total_storage_size}; lower it, or raise "
            "transfer_queue.backend.SimpleStorage.total_storage_size"
        )


def running_cluster(address: str | None) -> tuple[str, list[dict[str, float]]] | None:
    """The cluster that ``ray.init(address)`` joins, in words, and what each of its nodes has. None: it starts one.

    Raises:
        UserError: it does not answer.
    """
    import ray
    from ray._private.services import canonicalize_bootstrap_address

    if ray.is_initialized():
        return "the Ray cluster", _nodes()
    try:
        address = canonicalize_bootstrap_address(address)  # as ray.init() will find it
        if address:
            ray.init(address=address, logging_level="ERROR")
    except (ConnectionError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers ({str(error).splitlines()[0]}); check ray_kwargs.ray_init.address and RAY_ADDRESS"
        ) from error
    if not address:
        return None
    try:
        return f"the Ray cluster at {address}", _nodes()
    finally:
        ray.shutdown()


def _nodes() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def default_hardware() -> str:
    """The config group ``hardware`` where the user names none.

    ``fsdp`` where this host has an accelerator, or the cluster that a run would join from here: its head node may have
    none. A cluster that does not answer is not taken for none; the checks tell of it.
    """
    from tempo_verl.backends.cpu_platform import accelerator_present

    if accelerator_present():
        return "fsdp"
    try:
        running = running_cluster(None)
    except UserError:
        return "fsdp"
    return (
        "fsdp"
        if running is not None and any(node.get(name) for node in running[1] for name in ("GPU", "NPU"))
        else "cpu"
    )


def check_processes(config: DictConfig) -> None:
    """On a CPU every training process wants a core."""
    ranks, cores = config.trainer.n_gpus_per_node, os.cpu_count() or 1
    if config.trainer.device == "cpu" and ranks > max(cores, 2):
        raise UserError(
            f"trainer.n_gpus_per_node={ranks}: on a CPU that is the number of training processes, and this machine has "
            f"{cores} cores; set it to 1"
        )
