# SPDX-License-Identifier: Apache-2.0
"""A module for ``actor_rollout_ref.model.external_lib``: every training process writes down on which Ray node it is."""

from __future__ import annotations

import os
from pathlib import Path

import ray

if "RANK" in os.environ:  # not in the processes that roll out or score
    node = ray.get_runtime_context().get_node_id()
    (Path(os.environ["PLACEMENT"]) / os.environ["RANK"]).write_text(f"{node} {ray.util.get_node_ip_address()}")
