# SPDX-License-Identifier: Apache-2.0
"""Counts what a run does, from within its processes: tokens and seconds of every pass, seconds of a rollout's parts.

Loaded into every process of a run by ``VERL_USE_EXTERNAL_MODULES=spy``. ``SPY_FILE`` gets a JSON line for each;
``SPY_POLL`` is how often verl's own trainer looks for new rollouts, in seconds (verl: 2.0).
"""

from __future__ import annotations

import functools
import json
import os
import time
from pathlib import Path

import wrapt

FILE, POLL = "SPY_FILE", "SPY_POLL"


def _count_passes(module) -> None:
    for name in ("train_batch", "infer_batch"):
        setattr(module.BaseEngine, name, _pass(getattr(module.BaseEngine, name), name == "train_batch"))


def _pass(function, backward: bool):
    def about(result, engine, data, *args, **kwargs):
        role = "critic" if "Value" in type(engine).__name__ else "policy"
        return f"{role} {'learns' if backward else 'reads'}", len(data), data["input_ids"].values().numel()

    return _timed(function, about)


def _count_generation(module) -> None:
    def about(result, model, tokenizer, requests, *_):
        tokens = [len(one.prompt_ids) for one in requests] + [len(one.token_ids) for one in result]
        return "generate", len(result), sum(tokens)

    module.generate = _timed(module.generate, about)


def _count_rollouts(module) -> None:
    manager = module.BatchRolloutManager
    manager._score = _timed(manager._score, lambda result, self, samples: ("score", len(samples), 0))
    store = manager._store
    manager._store = staticmethod(_timed(store, lambda result, samples, partition: ("store", len(samples), 0)))


def _timed(function, about):
    """``function``, which writes a line after each call: what ``about`` makes of its result and arguments."""

    @functools.wraps(function)
    def timed(*args, **kwargs):
        started = time.perf_counter()
        result = function(*args, **kwargs)
        seconds = time.perf_counter() - started
        what, rows, tokens = about(result, *args, **kwargs)
        line = {"what": what, "rows": rows, "tokens": tokens, "seconds": seconds}
        with Path(os.environ[FILE]).open("a") as file:
            file.write(json.dumps(line) + "\n")
        return result

    return timed


def _poll(module) -> None:
    original = module.ReplayBuffer.__init__

    @functools.wraps(original)
    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.poll_interval = float(os.environ[POLL])

    module.ReplayBuffer.__init__ = init


if FILE in os.environ:
    wrapt.register_post_import_hook(_count_passes, "verl.workers.engine.base")
    wrapt.register_post_import_hook(_count_generation, "tempo_verl.backends.sampling")
    wrapt.register_post_import_hook(_count_rollouts, "tempo_verl.backends.batch_rollout")
if POLL in os.environ:
    wrapt.register_post_import_hook(_poll, "verl.trainer.ppo.v1.replay_buffer")
