# SPDX-License-Identifier: Apache-2.0
"""The program of one rank: verl's training worker without Ray, for one leg after the other."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import transformers
import verl  # noqa: F401  (loads the plugin, and the stand-in for flash attention)
from legs import Leg, Outcome, batch
from omegaconf import DictConfig, OmegaConf
from verl.utils import tensordict_utils as tu
from verl.utils.distributed import destroy_global_process_group
from verl.utils.metric import reduce_metrics
from workers import worker_of


class Run:
    """This rank's part of a leg.

    Attributes:
        place: among the data-parallel ranks.
        found: its rows' outputs, and verl's metrics; no outputs where another rank of its place has them.
    """

    def __init__(self, leg: Leg, config: DictConfig, folder: Path):
        self._leg, self._config = leg, OmegaConf.merge(config, OmegaConf.from_dotlist(list(leg.options)))
        self._worker = worker_of(self._config, leg.part, leg.loss)
        engine, rows = self._worker.engine, batch(leg)
        self.place = engine.get_data_parallel_rank()
        share = torch.arange(len(rows)).chunk(engine.get_data_parallel_size())[self.place]
        self._rows = tu.index_select_tensor_dict(rows, share)
        self.found = Outcome(
            is_offloaded=engine.is_param_offload_enabled and engine.is_optimizer_offload_enabled,
            is_checkpointed=engine.module.is_gradient_checkpointing,
            transformers=transformers.__version__,
        )
        look = engine.module.register_forward_pre_hook(self._look, with_kwargs=True)
        self._infer()
        look.remove()
        for update in range(leg.updates):
            if leg.reload and update == 1:
                self._worker.save_checkpoint(str(folder), None, 1)
                self._worker = worker_of(self._config, leg.part, leg.loss)
                self._worker.load_checkpoint(str(folder))
            self._train()
            self._infer()

    def _look(self, _module: torch.nn.Module, _arguments: tuple, named: dict[str, torch.Tensor]) -> None:
        self.found.inputs.append(tuple(named["input_ids"].shape))

    def _infer(self) -> None:
        critic, data = self._leg.part == "critic", self._rows.copy()
        tu.assign_non_tensor(data, compute_loss=False, temperature=1.0, calculate_entropy=not critic)
        output = self._worker.infer_batch(data)
        if output is None:
            return
        full = output["values" if critic else "log_probs"]
        lengths = data["responses"].offsets().diff().tolist()
        rows = [row[-(length + 1) :].double().tolist() for row, length in zip(full.unbind(), lengths, strict=True)]
        self.found.outputs.append(rows if critic else [row[:-1] for row in rows])
        self.found.dtype = str(full.dtype)

    def _train(self) -> None:
        data = self._rows.copy()
        tu.assign_non_tensor(
            data,
            temperature=1.0,
            global_batch_size=self._leg.mini_batch,
            mini_batch_size=self._leg.mini_batch,
            dataloader_kwargs={"shuffle": False},
            calculate_entropy=self._config.actor_rollout_ref.actor.entropy_coeff != 0,
        )
        output = self._worker.train_mini_batch(data)
        if output is not None:
            metrics = reduce_metrics(dict(tu.get(output, "metrics")))
            self.found.metrics.append({name: float(value) for name, value in metrics.items()})


def serve(rank: int, tests: Connection) -> None:
    """Run legs until the process of the tests is gone. Each leg has a process group of its own."""
    torch.set_num_threads(1)
    gc.freeze()  # verl collects garbage now and then, which need not look at all that is imported
    while True:
        try:
            leg, config, folder = tests.recv()
        except EOFError:
            return
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(leg.ranks), "DIST_INIT_METHOD": f"file://{folder}/store"}
        try:
            run = Run(leg, config, folder)
            tests.send((run.place, run.found if run.found.outputs else None))
        except Exception:
            tests.send((rank, traceback.format_exc()))
            return
        destroy_global_process_group()


if __name__ == "__main__":
    serve(int(sys.argv[1]), Connection(int(sys.argv[2])))
