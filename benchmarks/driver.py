# SPDX-License-Identifier: Apache-2.0
"""What the trainer's own process does in a large round: seconds and peak memory of each step. See driver.md.

Rows of a skewed length, half as long on average as the longest. Where a step was made cheaper, the way it was done
before stands beside it, in the same run. No model and no accelerator is needed: all of this is the driver's.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from verifiers import BOMBS, SHARES, STEPS, machine, read_truths

from tempo_verl.rewards import score
from tempo_verl.rewards.process import most

PROMPT = 200  # tokens
N = 8  # responses a prompt
GB = 1024**2  # KiB


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


# ---------------------------------------------------------------------- tensors


def tensors(figures: Figures, lengths: np.ndarray) -> None:
    """From the critic's output to what the policy is trained on, and what is told of it."""
    from tempo_verl.algo.advantage import advantage, clip_values, final_value
    from tempo_verl.algo.calibration import position_mask
    from tempo_verl.trainer.batch import as_jagged, final_values_of
    from tempo_verl.trainer.metrics import row_summaries, unlabeled_metrics

    rows, offsets = len(lengths), torch.tensor(np.concatenate([[0], (lengths + PROMPT).cumsum()]))
    output = torch.nested.nested_tensor_from_jagged(torch.rand(int(offsets[-1])).bfloat16(), offsets)
    mask_rows = [torch.ones(int(length), dtype=torch.long) for length in lengths]
    prompts = [f"unlabeled-{row // N}-{row // N}" for row in range(rows)]

    def unpadded(padded: torch.Tensor, extra: int = 0) -> list[torch.Tensor]:
        return [row[: length + extra] for row, length in zip(padded, lengths, strict=True)]

    with figures.time("values out of the critic's output"):
        values = final_values_of(output.float(), lengths.tolist())
    with figures.time("response mask, padded"):
        mask = torch.nn.utils.rnn.pad_sequence(mask_rows, batch_first=True)
    with figures.time("clip, final value"):
        values = clip_values(values, (0.0, 1.0))
        reward = final_value(values, mask)
    with figures.time("advantage, whitened"):
        credit = advantage(values, reward, mask)
    with figures.time("five fields for the queue"):
        fields = [credit, reward[:, None] * mask, mask, values[:, :-1], credit]
        [as_jagged(unpadded(padded)) for padded in fields]
    with figures.time("the E-step's mask"):
        as_jagged(unpadded(position_mask(mask), 1))
    with figures.time("metrics"):
        unlabeled_metrics(
            reward=reward, baseline_error=reward - values[:, 0], advantages=credit, response_mask=mask, entropy=None,
            answers=[str(row % 5) for row in range(rows)], prompts=prompts,
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        arrays = {"values": values.numpy(), "advantages": credit.numpy(), "mask": mask.numpy()}
        with figures.time("file of the round", "before"):
            np.savez_compressed(Path(folder) / "before.npz", reward=reward.numpy(), **arrays)
        with figures.time("file of the round"):
            summaries = row_summaries(reward, credit, mask, values)
            np.savez_compressed(Path(folder) / "now.npz", key=np.array(prompts), **summaries)
        for way in ("before", "now"):
            size = (Path(folder) / f"{way}.npz").stat().st_size / 1e6
            figures.found.setdefault("file of the round, MB", {}).setdefault(way, []).append((size, 0.0, 0.0))


def balancing(figures: Figures, lengths: np.ndarray) -> None:
    """Rows over 8 ranks: of a tensor, as verl's trainer does it, and of numbers."""
    from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions

    workload = calculate_workload(torch.tensor(lengths + PROMPT))
    with figures.time("balancing over 8 ranks", "before"):
        before = get_seqlen_balanced_partitions(workload, k_partitions=8, equal_size=True)
    with figures.time("balancing over 8 ranks"):
        now = get_seqlen_balanced_partitions(workload.tolist(), k_partitions=8, equal_size=True)
    assert before == now


# ---------------------------------------------------------------------- verifiers


def texts(lengths: np.ndarray, rng: random.Random) -> tuple[list[str], list[str]]:
    """Responses of about that many tokens, and the truth that each is checked with; kinds as in verifiers.py."""
    truths, _ = read_truths(rng)
    responses, asked = [], []
    kinds = rng.choices(list(SHARES), list(SHARES.values()), k=len(lengths))
    for length, kind in zip(lengths, kinds, strict=True):
        truth, other = rng.choice(truths), rng.choice(truths)
        steps = [rng.choice(STEPS).format(a=rng.randint(2, 99), b=rng.randint(2, 99)) for _ in range(40)]
        text = "\n\n".join(rng.choice(steps) for _ in range(1 + int(length) // 50)) + "\n\n"
        answer = {"right": truth, "respelled": f" {truth}.", "wrong": other, "unmarked": truth}.get(kind, "")
        ends = {"unmarked": f"Therefore the answer is ${answer}$.", "none": "I could not find it"}
        responses.append(text + ends.get(kind, rf"So the answer is $\boxed{{{answer}}}$."))
        asked.append(truth)
    return responses, asked


def a_tokenizer(responses: list[str], folder: Path) -> Any:
    """A byte-level BPE of these texts, in place of a model's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(responses[:20], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


def monitoring(figures: Figures, ids: list[torch.Tensor], truths: list[str], tokenizer: Any, step: str) -> None:
    """Answers of D_U: how long the driver is held up, beside the seconds until all verdicts are there."""
    from tempo_verl.data.monitor import Monitor, verdicts
    from tempo_verl.data.streams import Answer

    keys = [f"unlabeled-0-{row}_0_0" for row in range(len(ids))]
    with figures.time(step, "before"):
        decoded = tokenizer.batch_decode([row.tolist() for row in ids], skip_special_tokens=True)
        before = [float(score(text, truth).correct) for text, truth in zip(decoded, truths, strict=True)]
    del decoded
    monitor = Monitor([Answer(truth, "math") for truth in truths])
    with figures.time(step):
        with figures.time(f"{step}: the driver waits"):
            checks = monitor.begin(keys, lambda: partial(_decode, tokenizer, ids))
        now = verdicts(checks, keys).tolist()
    assert before == now


def _decode(tokenizer: Any, ids: list[torch.Tensor], row: int) -> str:
    return tokenizer.decode(ids[row].tolist(), skip_special_tokens=True)


def grouping(figures: Figures, rows: int, rng: random.Random, endless: int) -> None:
    """Which answers say the same: of three to each prompt; in ``endless`` prompts one cannot be compared."""
    from tempo_verl.rewards import groups, one_spelling

    truths, _ = read_truths(rng)
    few = [rng.sample(truths, 3) for _ in range(rows // N)]
    for prompt in range(endless):
        few[prompt] = [BOMBS[0], r"f(x) = \heartsuit", r"g(x) = \spadesuit"]
    answers = [rng.choice(of) for of in few for _ in range(N)]
    prompts = [str(prompt) for prompt in range(len(few)) for _ in range(N)]
    step = f"answers that say the same, {endless} prompts without end" if endless else "answers that say the same"
    if not endless:
        with figures.time(step, "before"):
            [groups(answers[start : start + N], timeout=2.0) for start in range(0, len(answers), N)]
    with figures.time(step):
        one_spelling(answers, prompts, ["math"] * len(answers), timeout=2.0)


# ---------------------------------------------------------------------- the queue


@contextmanager
def a_queue() -> Iterator[None]:
    import ray
    import transfer_queue as tq
    from omegaconf import OmegaConf

    from tempo_verl.launch import resolve_config

    config = resolve_config(["hardware=cpu"])
    config.transfer_queue.enable = True
    variables = {"TQ_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    os.environ |= variables
    ray.init(address="local", num_cpus=6, include_dashboard=False, runtime_env={"env_vars": variables})
    try:
        tq.init(OmegaConf.create(OmegaConf.to_container(config.transfer_queue)))
        yield
    finally:
        tq.close()
        ray.shutdown()


def fill(lengths: np.ndarray, replayed: int) -> Any:
    """A round's rows with what the trainer reads of them, and rows of earlier rounds, by their tags."""
    from tensordict import NonTensorStack, TensorDict

    from tempo_verl.trainer.batch import as_jagged, of_keys, put

    def tag(length: int) -> dict[str, Any]:
        return {"status": "success", "prompt_len": PROMPT, "response_len": length, "seq_len": PROMPT + length,
                "global_steps": 5, "min_global_steps": 5, "max_global_steps": 5}  # fmt: skip

    rows = [(f"unlabeled-{row // N}-{row // N}_{row % N}_0", tag(int(length))) for row, length in enumerate(lengths)]
    for start in range(0, len(rows), 256):
        part, long = rows[start : start + 256], lengths[start : start + 256]
        info = {"pred": "7", "style": "math", "format": 1.0, "verifier_error": ""}
        extra = [{"reward_extra_info": dict(info)} for _ in part]
        fields = {
            "responses": as_jagged([torch.randint(600, (int(length),)) for length in long]),
            "response_mask": as_jagged([torch.ones(int(length), dtype=torch.long) for length in long]),
            "extra_fields": NonTensorStack(*extra),
        }
        put("train", [key for key, _ in part], [of for _, of in part], TensorDict(fields, batch_size=len(part)))
    for start in range(0, replayed, 1024):
        keys = [f"labeled-{row}-{row}_0_0" for row in range(start, min(start + 1024, replayed))]
        field = TensorDict({"x": torch.ones(len(keys), 1)}, batch_size=len(keys))
        put("replay", keys, [tag(8000) for _ in keys], field)
    return of_keys("train", rows)


def queue(figures: Figures, samples: Any) -> None:
    """What a look at the queue costs, and how long a writer waits meanwhile; what it costs to read fields."""
    import transfer_queue as tq

    from tempo_verl.trainer.batch import Samples, listed

    with figures.time("one look for new rollouts", "before"):
        tq.kv_list()
    with figures.time("one look for new rollouts"):
        listed("train")
    for way, look, interval in (("before", tq.kv_list, 0.05), ("now", partial(listed, "train"), 0.5)):
        done = threading.Event()
        thread = threading.Thread(target=_poll, args=(look, interval, done))
        thread.start()
        for _ in range(50):
            with figures.time("a rollout's write while the trainer waits", way):
                tq.kv_put(key="probe", partition_id="other", tag={"status": "running"})
            time.sleep(0.02)
        done.set()
        thread.join()
    half = np.arange(len(samples) // 2)
    for way in ("before", "now"):
        fresh = Samples(samples.meta)
        with figures.time("verdicts of a stream, and of its batch", way):
            fresh.reward_info  # noqa: B018  (a property that reads)
            batch = Samples(samples.meta) if way == "before" else fresh.of(samples.meta)
            batch.reward_info  # noqa: B018
    fresh = Samples(samples.meta)
    with figures.time("response masks, read and padded"):
        fresh.response_mask  # noqa: B018
    with figures.time("responses, read"):
        fresh.read("responses")
    with figures.time("half of them, by rows()", "now"):
        fresh.rows(half).response_mask  # noqa: B018


def _poll(look: Callable[[], Any], interval: float, done: threading.Event) -> None:
    while not done.wait(interval):
        look()


# ---------------------------------------------------------------------- all


def main(
    rows: int = 2048,
    longest: int = 16_384,
    replayed: int = 20_480,
    repetitions: int = 3,
    seed: int = 0,
    out: Path = Path("driver.json"),
) -> None:
    """Measure, print a table and write everything to OUT."""
    logging.disable(logging.WARNING)  # each endless answer is told
    torch.set_num_threads(1)
    figures, lengths, rng = Figures(), lengths_of(rows, longest, np.random.default_rng(seed)), random.Random(seed)
    for _ in range(repetitions):
        tensors(figures, lengths)
        balancing(figures, lengths)

    responses, truths = texts(lengths, rng)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = a_tokenizer(responses, Path(folder))
    ids = [torch.tensor(row) for row in tokenizer(responses)["input_ids"]]
    tokens = sum(map(len, ids))
    del responses
    with ThreadPoolExecutor(most()) as threads:  # every child is there
        list(threads.map(lambda _: score("so it is $x$", "y"), range(8 * most())))
    for repetition in range(repetitions):
        monitoring(figures, ids, truths, tokenizer, f"monitoring {rows} answers")
        grouping(figures, rows, random.Random(seed + repetition), 0)
        grouping(figures, rows, random.Random(seed + repetition), 4)

    with a_queue():
        samples = fill(lengths, replayed)
        for _ in range(repetitions):
            queue(figures, samples)

    packages = ("verl", "torch", "TransferQueue", "ray", "tokenizers")
    about = machine() | {name: importlib.metadata.version(name) for name in packages} | {"load": os.getloadavg()}
    result = {
        "seed": seed, "rows": rows, "tokens": int(lengths.sum()), "longest": longest, "decoded tokens": tokens,
        "replayed": replayed, "repetitions": repetitions, "machine": about, "figures": figures.found,
    }  # fmt: skip
    out.write_text(json.dumps(result, indent=2) + "\n")

    table = Table("", "", "median s", "from - to", "on a core", "peak GB")
    for step, ways in figures.found.items():
        for way, found in ways.items():
            seconds, busy, peaks = zip(*found, strict=True)
            spread = f"{min(seconds):.3g} - {max(seconds):.3g}"
            middle = (f"{statistics.median(of):.3g}" for of in (seconds, busy))
            table.add_row(step, way, next(middle), spread, next(middle), f"{max(peaks):.2f}")
    console = Console(width=120)
    console.print(table)
    console.print(f"{about}\nwritten: {out}")


if __name__ == "__main__":
    typer.run(main)
