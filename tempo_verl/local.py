# SPDX-License-Identifier: Apache-2.0
"""verl's launcher for a run with a Ray cluster of its own: ``python -m tempo_verl.local``. The trainer runs right here.

verl's own starts another process for it, because on a cluster the trainer may belong on another node. On one machine
that process only imports verl once more, and nothing else begins before that is done.
"""

from __future__ import annotations

import os
import sys
import traceback
from types import SimpleNamespace
from typing import Any

import ray

from tempo_verl.processes import READY

NICENESS = 15  # of Ray's workers, which the models are trained in: what the trainer does beside them is to wait


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
        os.nice(NICENESS)
        runner = self._runner_class()
        return SimpleNamespace(run=SimpleNamespace(remote=lambda config: ray.put(runner.run(config))))


def main() -> int:
    """Train. Returns the exit status."""
    from verl.trainer import main_ppo

    if sys.stdin.buffer.read(1) != READY:
        return 1  # whoever was to make it has died
    main_ppo.TaskRunnerV1 = Here(main_ppo.TaskRunnerV1)
    try:
        main_ppo.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    ray.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # Python would wait for threads that wait for a rollout, or for verdicts that nobody reads
