# SPDX-License-Identifier: Apache-2.0
"""What the trainer does with a round's token-level tensors, beside the time of moving them through TransferQueue."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

PROMPT = 200  # tokens
N = 8  # responses a prompt
GB = 1024**2  # KiB
MOVE, ALL = "moving the same tensors: a put and a get", "all steps on tokens"
MOST_PADDED = 2**25  # entries of a tensor that is rows x longest

Stage = Callable[[str], AbstractContextManager[None]]


@dataclass
class Figures:
    """Seconds, seconds of this process on a core, and peak GB beyond what was held before; by step and way."""

    found: dict[str, dict[str, list[tuple[float, float, float]]]] = field(default_factory=dict)

    @contextmanager
    def time(self, step: str, way: str = "now") -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        held, started, busy = _status("VmRSS"), time.perf_counter(), time.process_time()
        yield
        seconds = time.perf_counter() - started, time.process_time() - busy
        self.found.setdefault(step, {}).setdefault(way, []).append((*seconds, (_status("VmHWM") - held) / GB))


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def lengths_of(rows: int, longest: int, rng: np.random.Generator) -> np.ndarray:
    """(rows,) tokens: log-normal, half of ``longest`` on average, one in twenty cut off there."""
    drawn = np.clip(rng.lognormal(np.log(longest) - 0.9, 0.7, rows).astype(int), 50, longest)
    drawn[: rows // 20] = longest
    return rng.permutation(drawn)


@dataclass
class Given:
    """What a round begins with: the critic's output over prompt and response, and masks as the queue gives them."""

    output: torch.Tensor
    masks: torch.Tensor
    keys: list[str]

    @classmethod
    def of(cls, lengths: np.ndarray) -> Given:
        from tempo_verl.algo.jagged import jagged, starts

        output = jagged(torch.rand(int((lengths + PROMPT).sum())).bfloat16(), starts(lengths + PROMPT))
        masks = jagged(torch.ones(int(lengths.sum()), dtype=torch.long), starts(lengths))
        return cls(output, masks, [f"unlabeled-{row // N}-{row // N}_{row % N}_0" for row in range(len(lengths))])

    def metrics(self, reward: torch.Tensor, first: torch.Tensor, positive: float, tokens: int) -> None:
        from tempo_verl.trainer.metrics import unlabeled_metrics

        unlabeled_metrics(
            reward=reward, baseline_error=reward - first, advantage_positive=positive, tokens=tokens, entropy=None,
            answers=[str(row % 5) for row in range(len(reward))], prompts=[key.split("_")[0] for key in self.keys],
        )  # fmt: skip


def as_jagged_tensors(given: Given, stage: Stage, folder: str) -> dict[str, torch.Tensor]:
    """A round as the trainer does it. Returns what it writes to the queue."""
    from tempo_verl.algo.advantage import advantage, clip_values, final_value, on_tokens
    from tempo_verl.algo.calibration import position_mask
    from tempo_verl.algo.jagged import Rows, first_entries, of_rows, tokens_of
    from tempo_verl.algo.official import last_token_reward
    from tempo_verl.trainer.batch import _as_stored, _unbound, response_values
    from tempo_verl.trainer.guard import check_range
    from tempo_verl.trainer.metrics import positive_share, row_summaries

    with stage("response mask"):
        mask = of_rows(_unbound(given.masks, torch.bool))
    with stage("values out of the critic's output"):
        values = response_values(given.output, Rows.of(mask).lengths)
        check_range("values", values, None, given)  # type: ignore[arg-type]
    with stage("clip, final value"):
        values = clip_values(values, (0.0, 1.0))
        reward = final_value(values, mask)
    with stage("advantage, whitened"):
        credit = advantage(values, reward, mask)
    with stage("fields for the queue"):  # the loss mask is there
        fields = {
            "advantages": credit, "returns": on_tokens(reward, mask), "rm_scores": last_token_reward(reward, mask),
            "values": Rows.of(values).without_last().tensor,
        }  # fmt: skip
        for name, column in fields.items():
            check_range(name, column, None, given)  # type: ignore[arg-type]
    with stage("the E-step's mask"):
        fields["loss_mask"] = _as_stored(position_mask(mask))
    with stage("metrics"):
        positive = positive_share(credit, mask, np.ones(len(reward), dtype=bool))
        given.metrics(reward, first_entries(values), positive, int(tokens_of(mask).sum()))
    with stage("file of the round"):
        summaries = row_summaries(reward, credit, mask, values)
        np.savez_compressed(Path(folder) / "now.npz", key=np.array(given.keys), **summaries)
    return fields


def as_padded_tensors(given: Given, stage: Stage, folder: str) -> None:
    """The same functions on tensors of rows x longest, which are cut for the queue."""
    from tempo_verl.algo.advantage import advantage, clip_values, final_value
    from tempo_verl.algo.calibration import position_mask
    from tempo_verl.algo.official import last_token_reward
    from tempo_verl.trainer.batch import as_jagged, final_values_of
    from tempo_verl.trainer.metrics import row_summaries

    lengths = given.masks.offsets().diff().tolist()

    def stored(padded: torch.Tensor, extra: int = 0) -> None:
        rows = [row[: length + extra] for row, length in zip(padded, lengths, strict=True)]
        assert all(torch.isfinite(row).all() for row in rows)
        as_jagged(rows)

    with stage("response mask"):
        mask = torch.nn.utils.rnn.pad_sequence(given.masks.unbind(), batch_first=True)
    with stage("values out of the critic's output"):
        values = final_values_of(given.output.float(), lengths)
        assert torch.isfinite(values).all()
    with stage("clip, final value"):
        values = clip_values(values, (0.0, 1.0))
        reward = final_value(values, mask)
    with stage("advantage, whitened"):
        credit = advantage(values, reward, mask)
    with stage("fields for the queue"):
        for padded in (credit, reward[:, None] * mask, last_token_reward(reward, mask), mask, values[:, :-1]):
            stored(padded)
    with stage("the E-step's mask"):
        stored(position_mask(mask), 1)
    with stage("metrics"):
        own = mask.bool()
        positive = (credit[own] > 0).float().mean().item()
        given.metrics(reward, values[:, 0], positive, int(own.sum()))
    with stage("file of the round"):
        summaries = row_summaries(reward, credit, mask, values)
        np.savez_compressed(Path(folder) / "padded.npz", key=np.array(given.keys), **summaries)


def on_tokens_of_a_round(figures: Figures, lengths: np.ndarray, move: bool) -> float:
    """All steps, one by one and as a whole. Returns peak bytes, inputs included, over those of all token-level tensors.

    Args:
        move: beside the time of a put and a get of the same tensors, by a client of a queue that is there.
    """
    given = Given.of(lengths)
    with tempfile.TemporaryDirectory() as folder:
        as_jagged_tensors(given, figures.time, folder)
        with figures.time(ALL):
            fields = as_jagged_tensors(given, lambda step: nullcontext(), folder)
        taken = [given.output, given.masks]
        held, made = (sum(tensor.values().nbytes for tensor in of) for of in (taken, fields.values()))
        peak = held + figures.found[ALL]["now"][-1][2] * GB * 1024
        if len(lengths) * lengths.max() <= MOST_PADDED:
            as_padded_tensors(given, lambda step: figures.time(step, "padded"), folder)
            with figures.time(ALL, "padded"):
                as_padded_tensors(given, lambda step: nullcontext(), folder)
    if move:
        moving(figures, given.keys, fields | {"critic's output": given.output, "response_mask": given.masks})
    return peak / (held + made)


def moving(figures: Figures, keys: list[str], fields: dict[str, Any]) -> None:
    import transfer_queue as tq
    from tensordict import TensorDict

    with figures.time(MOVE):
        tq.kv_batch_put(keys=keys, partition_id="moved", fields=TensorDict(fields, batch_size=len(keys)))
        found = tq.kv_batch_get(keys=keys, partition_id="moved", select_fields=list(fields))
    assert set(found.keys()) == set(fields)
    tq.kv_clear(keys=keys, partition_id="moved")


def official(figures: Figures, lengths: np.ndarray) -> None:
    """The official code's credit beside ours, on the same values."""
    from tempo_verl.algo.advantage import advantage, final_value
    from tempo_verl.algo.jagged import Rows, jagged, starts
    from tempo_verl.algo.official import em_token_advantage, last_token_reward

    values = jagged(torch.rand(int((lengths + 1).sum())), starts(lengths + 1))
    mask = jagged(torch.ones(int(lengths.sum()), dtype=torch.bool), starts(lengths))
    labeled, columns = np.arange(len(lengths)) % 2 == 0, Rows.of(values).without_last().tensor
    reward = final_value(values, mask)
    rewards = last_token_reward(reward, mask)
    with figures.time("credit: R - V, whitened"):
        advantage(values, reward, mask)
    with figures.time("credit: official, em_token"):
        em_token_advantage(columns, rewards, mask, labeled)
