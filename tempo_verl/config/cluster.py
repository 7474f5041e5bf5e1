# SPDX-License-Identifier: Apache-2.0
"""Checks of what a run needs of Ray and of TransferQueue. Ray is not started; a running cluster is asked."""

from __future__ import annotations

import os

from omegaconf import DictConfig

from tempo_verl.config.schema import TempoSettings
from tempo_verl.errors import UserError


def required_cpus(num_ranks: int, num_storage_units: int) -> int:
    """Logical CPUs of Ray that a run holds, plus one in which the actors that hold none can start.

    verl reserves 3 for each training process, TransferQueue 1 for its controller and 1 for each storage unit. With
    fewer, TransferQueue's actors wait for ever and verl hangs without a message.
    """
    return 3 * num_ranks + num_storage_units + 2


def check_ray(config: DictConfig) -> None:
    required = required_cpus(
        config.trainer.n_gpus_per_node * config.trainer.nnodes,
        config.transfer_queue.backend.SimpleStorage.num_data_storage_units,
    )
    available, where = _available_cpus(config)
    if available < required:
        raise UserError(
            f"{where} has {available:g} CPUs, this run needs {required} "
            f"(3 for each training process, 1 for each of TransferQueue's storage units, 2 more); "
            "raise ray_kwargs.ray_init.num_cpus or lower transfer_queue.backend.SimpleStorage.num_data_storage_units"
        )


def check_storage(config: DictConfig, settings: TempoSettings) -> None:
    storage = config.transfer_queue.backend.SimpleStorage
    if not settings.calibration.replay.prompts:
        return
    labeled = settings.labeled.batch_size * settings.labeled.n
    unlabeled = settings.unlabeled.batch_size * config.actor_rollout_ref.rollout.n
    needed = (settings.calibration.replay.window + 1) * labeled + labeled + unlabeled
    if needed > storage.total_storage_size:
        raise UserError(
            f"tempo.calibration.replay.window={settings.calibration.replay.window} keeps samples in TransferQueue, "
            f"which would have to hold {needed} and holds {storage.total_storage_size}; lower it, or raise "
            "transfer_queue.backend.SimpleStorage.total_storage_size"
        )


def _available_cpus(config: DictConfig) -> tuple[float, str]:
    import ray
    from ray._private.services import canonicalize_bootstrap_address

    if ray.is_initialized():
        return ray.cluster_resources().get("CPU", 0), "the Ray cluster"
    options = config.ray_kwargs.get("ray_init", {})
    try:
        address = canonicalize_bootstrap_address(options.get("address"))  # as ray.init() will find it
        if address:
            ray.init(address=address, logging_level="ERROR")
    except (ConnectionError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers ({str(error).splitlines()[0]}); check ray_kwargs.ray_init.address and RAY_ADDRESS"
        ) from error
    if address:
        try:
            return ray.cluster_resources().get("CPU", 0), f"the Ray cluster at {address}"
        finally:
            ray.shutdown()
    if options.get("num_cpus") is not None:
        return options.num_cpus, "ray_kwargs.ray_init.num_cpus: Ray"
    return os.cpu_count() or 1, "this machine"


def check_processes(config: DictConfig) -> None:
    """On a CPU every training process wants a core."""
    ranks, cores = config.trainer.n_gpus_per_node, os.cpu_count() or 1
    if config.trainer.device == "cpu" and ranks > max(cores, 2):
        raise UserError(
            f"trainer.n_gpus_per_node={ranks}: on a CPU that is the number of training processes, and this machine has "
            f"{cores} cores; set it to 1"
        )
