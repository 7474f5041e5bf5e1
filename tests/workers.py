# SPDX-License-Identifier: Apache-2.0
"""verl's own training workers in this process, without Ray, and rows to feed them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from transformers import AutoTokenizer
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.distributed import destroy_global_process_group
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker, TrainingWorkerConfig

from tempo_verl.algo.calibration import position_mask
from tempo_verl.tasks.running_sums import RunningSums
from tempo_verl.trainer.batch import as_jagged
from tempo_verl.trainer.losses import LOSSES

Sample = tuple[list[int], list[int], float]  # prompt, response, verdict


@contextmanager
def rank_of(folder: Path, rank: int = 0, ranks: int = 1) -> Iterator[None]:
    """This process as a rank of a process group, which meets at a file in ``folder``; verl's worker starts it."""
    place = {
        "RANK": str(rank), "WORLD_SIZE": str(ranks), "DIST_INIT_METHOD": f"file://{folder}/store",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
    }  # fmt: skip
    with patch.dict(os.environ, place):
        yield
        destroy_global_process_group()


def worker_of(config: DictConfig, role: str, loss: str = "calibration") -> TrainingWorker:
    """The worker of a role (``actor`` or ``critic``) as verl's trainer makes it, with the loss that ours sets."""
    if role == "actor":
        actor = ActorRolloutRefWorker(config.actor_rollout_ref, role="actor")
        actor.init_model()
        return actor.actor
    critic = omega_conf_to_dataclass(config.critic)
    critic.engine.infer_max_token_len_per_gpu = critic.ppo_infer_max_token_len_per_gpu
    critic.engine.max_token_len_per_gpu = critic.ppo_infer_max_token_len_per_gpu
    worker = TrainingWorker(
        TrainingWorkerConfig(
            model_type="value_model",
            model_config=critic.model,
            engine_config=critic.engine,
            optimizer_config=critic.optim,
            checkpoint_config=critic.checkpoint,
            profiler_config=None,
        )
    )
    worker.reset()
    worker.set_loss_fn(LOSSES[loss].build(config))
    return worker


def samples(policy: Path, count: int = 16) -> list[Sample]:
    """(prompt, response, verdict) of responses to the tiny task, right and wrong."""
    task, tokenizer, draw = RunningSums(seed=1), AutoTokenizer.from_pretrained(policy), random.Random(0)
    found = []
    for prompt, answer in task.make_sets()["labeled"][:count]:
        response = task.write_response(prompt, draw)
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in (prompt, response)]
        found.append((ids[0], [*ids[1], tokenizer.eos_token_id], float(response[-2] == answer)))
    assert {verdict for *_, verdict in found} == {0.0, 1.0}
    return found


def rows_for(role: str, samples: Sequence[Sample], seed: int = 0) -> TensorDict:
    """Rows of (prompt, response, verdict), with the fields that the role's loss reads; advantages are random."""
    draw = torch.Generator().manual_seed(seed)
    prompts, responses = ([torch.tensor(sample[part]) for sample in samples] for part in (0, 1))
    masks = [torch.ones(len(response), dtype=torch.int64) for response in responses]
    whole = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
    fields = {
        "prompts": prompts,
        "responses": responses,
        "input_ids": whole,
        "position_ids": [torch.arange(len(row)) for row in whole],
        "response_mask": masks,
        "loss_mask": [position_mask(mask[None])[0] for mask in masks] if role == "critic" else masks,
        "advantages": [torch.randn(len(mask), generator=draw) for mask in masks],
        "old_log_probs": [-torch.ones(len(mask)) for mask in masks],
    }
    outcome = torch.tensor([[sample[2]] for sample in samples])
    return tu.get_tensordict({name: as_jagged(rows) for name, rows in fields.items()} | {"outcome": outcome})


def outputs_of(worker: TrainingWorker, role: str, rows: TensorDict) -> list[torch.Tensor]:
    """Of each row V(x, y_1:t), t = 0..T, or the log-probabilities of y_1..y_T, in the dtype that verl stores."""
    data = rows.copy()
    tu.assign_non_tensor(data, compute_loss=False, temperature=1.0, calculate_entropy=role == "actor")
    full = worker.infer_batch(data)["values" if role == "critic" else "log_probs"]
    lengths = rows["responses"].offsets().diff().tolist()
    parts = [row[-(length + 1) :] for row, length in zip(full.unbind(), lengths, strict=True)]
    return parts if role == "critic" else [row[:-1] for row in parts]


def train(worker: TrainingWorker, role: str, rows: TensorDict, updates: int, ranks: int = 1) -> dict[str, Any]:
    """So many updates on all rows (of this rank). Returns verl's metrics."""
    data = rows.copy()
    size = len(rows) * ranks
    tu.assign_non_tensor(
        data, temperature=1.0, global_batch_size=size, mini_batch_size=size, epochs=updates, calculate_entropy=False
    )
    return tu.get(worker.train_mini_batch(data), "metrics")


@torch.inference_mode()
def plain_outputs(model: torch.nn.Module, role: str, rows: TensorDict) -> list[torch.Tensor]:
    """As :func:`outputs_of`, by transformers alone, row by row."""
    found = []
    for ids, response in zip(rows["input_ids"].unbind(), rows["responses"].unbind(), strict=True):
        logits = model.eval()(input_ids=ids[None]).logits[0]
        if role == "critic":
            found.append(logits[-(len(response) + 1) :, 0])
        else:
            every = logits.float().log_softmax(dim=-1)[:-1].gather(1, ids[1:, None])[:, 0]
            found.append(every[-len(response) :])
    return found


def furthest(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> float:
    """Largest absolute difference between rows."""
    return max((a.float() - b.float()).abs().max().item() for a, b in zip(first, second, strict=True))
