# SPDX-License-Identifier: Apache-2.0
"""What the trainer's own process does in a large round: seconds and peak memory of each step.

Rows of a skewed length, half as long on average as the longest. Beside some steps stands the way it was done before, in
the same run; beside those on tokens the same functions on padded tensors. No model and no accelerator is needed.
"""

from __future__ import annotations

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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from sections import Section, show, spread
from tokens import ALL, MOVE, PROMPT, Figures, N, lengths_of, official, on_tokens_of_a_round
from verifiers import BOMBS, SHARES, STEPS, read_truths

from tempo_verl.rewards import score
from tempo_verl.rewards.process import most

MEGATOKEN = 10**6
# (rows, longest): all of them, and the one that is shown step by step
SIZES = ((128, 1024), (128, 32_768), (2048, 1024), (2048, 16_384), (8192, 1024), (8192, 4096))
SHOWN, FAST = (2048, 16_384), ((128, 1024),)
REPLAYED = 20_480


@dataclass(frozen=True)
class OnTokens:
    """What was measured at one size; ``peak``: bytes, over those of all token-level tensors."""

    figures: Figures
    tokens: int
    peak: float


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
    """A local Ray with a TransferQueue as a run of ours has it."""
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
    with figures.time("response masks, read"):
        fresh.response_mask  # noqa: B018
    with figures.time("responses, read"):
        fresh.read("responses")
    with figures.time("half of them, by rows()", "now"):
        fresh.rows(half).response_mask  # noqa: B018


def _poll(look: Callable[[], Any], interval: float, done: threading.Event) -> None:
    while not done.wait(interval):
        look()


# ---------------------------------------------------------------------- all


def measure(fast: bool = False, seed: int = 0) -> Iterator[Section]:
    """Steps on tokens at several sizes, all else that the driver does at one."""
    logging.disable(logging.WARNING)  # each endless answer is told
    torch.set_num_threads(1)
    sizes, shown, repetitions = (FAST, FAST[0], 1) if fast else (SIZES, SHOWN, 3)
    found: dict[tuple[int, int], OnTokens] = {}
    figures, rng = Figures(), random.Random(seed)
    with a_queue():
        for size in sizes:
            lengths, of = lengths_of(*size, np.random.default_rng(seed)), Figures()
            peak = max(on_tokens_of_a_round(of, lengths, move=True) for _ in range(repetitions))
            found[size] = OnTokens(of, int(lengths.sum()), peak)
        lengths = lengths_of(*shown, np.random.default_rng(seed))
        samples = fill(lengths, REPLAYED)
        for _ in range(repetitions):
            queue(figures, samples)
    all_but_tokens(figures, lengths, rng, repetitions, seed)
    yield sweep(found)
    yield table_of(found[shown].figures, f"The driver, step by step: {shown[0]} responses of up to {shown[1]:,} tokens")
    yield table_of(figures, f"The driver, all else: {shown[0]} responses, {REPLAYED:,} replayed rows in the queue")


def all_but_tokens(figures: Figures, lengths: np.ndarray, rng: random.Random, repetitions: int, seed: int) -> None:
    """Balancing, verifiers and groups."""
    for _ in range(repetitions):
        balancing(figures, lengths)
        official(figures, lengths)
    responses, truths = texts(lengths, rng)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = a_tokenizer(responses, Path(folder))
    ids = [torch.tensor(row) for row in tokenizer(responses)["input_ids"]]
    del responses
    with ThreadPoolExecutor(most()) as threads:  # every child is there
        list(threads.map(lambda _: score("so it is $x$", "y"), range(8 * most())))
    for repetition in range(repetitions):
        monitoring(figures, ids, truths, tokenizer, f"monitoring {len(lengths)} answers")
        grouping(figures, len(lengths), random.Random(seed + repetition), 0)
        grouping(figures, len(lengths), random.Random(seed + repetition), 4)


def table_of(figures: Figures, title: str) -> Section:
    section = Section(title, ("step", "way", "seconds", "on a core", "peak GB"))
    for step, ways in figures.found.items():
        for way, found in ways.items():
            seconds, busy, peaks = zip(*found, strict=True)
            peak = f"{max(peaks):.2f}"
            section.rows.append((step, way, spread(seconds), f"{statistics.median(busy):.3g}", peak))
    return section


def sweep(sizes: dict[tuple[int, int], OnTokens]) -> Section:
    """Whether all steps on tokens are linear in them, and what part they are of moving the same tensors."""
    header = ("rows", "longest", "million tokens", "seconds", "ms a million", "padded, s", "moving, s", "share")
    section = Section("The driver: all steps on tokens", (*header, "peak over the tensors' own size"))
    for (rows, longest), size in sizes.items():
        of_all, moved = size.figures.found[ALL], size.figures.found[MOVE]["now"]
        seconds = {way: [each[0] for each in times] for way, times in of_all.items()}
        move, many = [each[0] for each in moved], size.tokens / MEGATOKEN
        middle = statistics.median(seconds["now"])
        section.rows.append((
            str(rows), f"{longest:,}", f"{many:.2f}", spread(seconds["now"]), f"{1000 * middle / many:.0f}",
            spread(seconds["padded"]) if "padded" in seconds else "not tried", spread(move),
            f"{middle / statistics.median(move):.1%}", f"{size.peak:.2f}",
        ))  # fmt: skip
    section.text = (
        "Critic's output to what is trained on and told: masks, values, advantages, fields, metrics, file. *Moving*: "
        "one put and one get of the same tensors by TransferQueue. *Padded*: the same by tensors of rows x longest."
    )
    return section


def main(fast: Annotated[bool, typer.Option("--fast")] = False, seed: int = 0) -> None:
    """Measure, and print the tables."""
    show(measure(fast, seed))


if __name__ == "__main__":
    typer.run(main)
