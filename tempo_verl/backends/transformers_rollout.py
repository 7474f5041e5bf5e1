# SPDX-License-Identifier: Apache-2.0
"""``rollout.name=transformers``: a verl rollout backend without an inference server, for machines without accelerator.

A replica is one Ray actor that gathers concurrent requests into batched ``generate`` calls; the adapter, inside each
training process, hands it new weights through Ray's object store.
"""

from __future__ import annotations

from types import ModuleType

NAME = "transformers"


def register_adapter(rollout_base: ModuleType) -> None:
    """Name the training-side adapter in verl's (dotted-path) table."""
    rollout_base._ROLLOUT_REGISTRY[(NAME, "async")] = "tempo_verl.backends.adapter.TransformersAdapter"


def register_replica(replica_module: ModuleType) -> None:
    """Register the replica by a loader, so that nothing is imported before it is used."""

    def load():
        from tempo_verl.backends.replica import TransformersReplica

        return TransformersReplica

    replica_module.RolloutReplicaRegistry.register(NAME, load)
