# SPDX-License-Identifier: Apache-2.0
"""Corrupted supervised pretraining of a tiny language model on running sums: the start of the CPU quickstart.

It stands in for a real base model: it knows the format, errs on the hard facts in a fixed way (see
:mod:`tempo_verl.tasks.running_sums`) and judges its own steps better than it makes them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM
from transformers.optimization import get_cosine_schedule_with_warmup

from tempo_verl.tasks.running_sums import END, PAD, VOCABULARY, RunningSums, build_tokenizer

IGNORE = -100  # label of a position without loss
WARMUP_STEPS = 20
BETAS = (0.9, 0.95)
MAX_GRAD_NORM = 1.0
WIDTH, LAYERS = 64, 3
HEAD = 16


class Pretrained(NamedTuple):
    """What :func:`pretrain` did: the directory, the loss of the last step (nats per response token), the seconds."""

    path: Path
    loss: float
    seconds: float


def build_model(seed: int = 0, width: int = WIDTH, layers: int = LAYERS) -> Qwen3ForCausalLM:
    """A new float32 Qwen3, by default of 126k parameters, with the tokenizer's vocabulary.

    The global random state stays as it is.

    Args:
        seed: of the weights.
        width: of the hidden states, a multiple of 16.
        layers: how many.

    Raises:
        ValueError: another width.
    """
    if width < HEAD or width % HEAD:
        raise ValueError(f"width={width}: expected a multiple of {HEAD}")
    end, pad = VOCABULARY.index(END), VOCABULARY.index(PAD)
    config = Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD,
        num_key_value_heads=width // HEAD,
        head_dim=HEAD,
        initializer_range=0.05,  # 0.02 is meant for wide models and learns the marks late at this width
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
        dtype=torch.float32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad)
    return model


def encode(samples: list[tuple[str, str]], tokenizer: PreTrainedTokenizerBase) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokenize (prompt, response) pairs, the end token appended and padding on the right.

    Returns:
        input ids and labels, both [len(samples), longest] int64; labels are IGNORE on prompts and padding.
    """
    texts = [prompt + response + END for prompt, response in samples]
    inputs = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")["input_ids"]
    prompt_lengths = torch.tensor([[len(prompt)] for prompt, _ in samples])  # one token per character
    in_prompt = torch.arange(inputs.shape[1]) < prompt_lengths
    return inputs, inputs.masked_fill(in_prompt | (inputs == tokenizer.pad_token_id), IGNORE)


def pretrain(
    out_dir: str | Path,
    task: RunningSums,
    steps: int = 1200,
    batch_size: int = 32,
    lr: float = 5e-3,
    seed: int = 0,
    width: int = WIDTH,
    layers: int = LAYERS,
    progress: Callable[[int, int, float], None] | None = None,
) -> Pretrained:
    """Train a new model on corrupted solutions and save it with its tokenizer as a Hugging Face directory.

    AdamW, linear warm-up, then cosine decay to zero; every sample is seen once. One CPU thread, so that equal arguments
    give equal weights.

    Args:
        out_dir: directory to write; created if missing.
        task: whose facts, unlabelled and held-out prompts apply.
        steps: optimizer steps.
        batch_size: samples per step.
        lr: peak learning rate.
        seed: of the initial weights and of the samples.
        width, layers: as in :func:`build_model`.
        progress: called after every step with (step, steps, loss), step from 1.
    """
    started = time.perf_counter()
    tokenizer, model = build_tokenizer(), build_model(seed, width, layers)
    # Batches of (nearly) one length each, in random order: a quarter less padding to compute.
    samples = sorted(task.pretraining_samples(steps * batch_size, seed), key=lambda sample: len(sample[0]))
    batches = [encode(samples[i : i + batch_size], tokenizer) for i in range(0, len(samples), batch_size)]
    random.Random(seed).shuffle(batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=BETAS)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(WARMUP_STEPS, steps // 10), steps)

    model.train()
    loss = float("nan")
    with _one_thread():
        for step, (inputs, labels) in enumerate(batches, start=1):
            # No attention mask: the padding is on the right, where a causal model's real positions never look.
            output = model(input_ids=inputs, labels=labels, use_cache=False)
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            loss = output.loss.item()
            if progress is not None:
                progress(step, steps, loss)

    out_dir = Path(out_dir)
    model.eval().save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)
    return Pretrained(out_dir, loss, time.perf_counter() - started)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
