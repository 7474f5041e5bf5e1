# SPDX-License-Identifier: Apache-2.0
"""verl's launcher for a run with a Ray cluster of its own: ``python -m tempo_verl.local``. The trainer runs right here.

verl's own starts another process for it, because on a cluster the trainer may belong on another node. On one machine
that process only imports verl once more, and nothing else begins before that is done.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import ray


class Here:
    """Stands in for verl's task runner, which is a Ray actor, where ``run_ppo`` makes one and calls it.

    Args:
        actor_class: verl's.
    """

    def __init__(self, actor_class: Any):
        self._runner_class = actor_class.__ray_metadata__.modified_class

    def remote(self) -> Any:
        """A runner whose ``run.remote`` has run when it returns."""
        os.environ.update(ray.get_runtime_context().runtime_env["env_vars"])
        runner = self._runner_class()
        return SimpleNamespace(run=SimpleNamespace(remote=lambda config: ray.put(runner.run(config))))


def main() -> None:
    from verl.trainer import main_ppo

    sys.stdin.read()  # open as long as the command still makes what the run needs
    main_ppo.TaskRunnerV1 = Here(main_ppo.TaskRunnerV1)
    main_ppo.main()


if __name__ == "__main__":
    main()
