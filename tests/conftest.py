# SPDX-License-Identifier: Apache-2.0
"""A tiny task, policy and critic on disk, and the shipped configuration composed for them."""

from __future__ import annotations

import os

# Read when these libraries are imported: nothing is looked up on the network, no result depends on a thread count.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import yaml

if TYPE_CHECKING:
    from omegaconf import DictConfig

Compose = Callable[[Sequence[str]], "DictConfig"]

# Hydra reads all of verl's YAML for each of some hundred compositions: by libyaml in three quarters of the time.
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``labeled``, ``unlabeled`` and ``heldout.parquet``: 32, 16 and 16 running sums."""
    from tempo_verl.tasks.running_sums import write_parquet

    folder = tmp_path_factory.mktemp("task")
    for split, rows in _running_sums().make_sets().items():
        write_parquet(folder / f"{split}.parquet", rows, split)
    return folder


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hugging Face directory of a 126k-parameter causal language model after three steps of pretraining."""
    from tempo_verl.tasks.pretrain import pretrain

    return pretrain(tmp_path_factory.mktemp("policy"), _running_sums(), steps=3, batch_size=16).path


@pytest.fixture(scope="session")
def tiny_critic(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Path:
    """Hugging Face directory of a critic with a (random) value head, and of the policy's tokenizer."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForTokenClassification

    folder = tmp_path_factory.mktemp("critic")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        Qwen3ForTokenClassification(Qwen3Config.from_pretrained(tiny_policy, num_labels=1)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_policy).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def long_models(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path, tiny_critic: Path) -> tuple[Path, Path]:
    """Policy and critic for checks of configurations that are meant for real models: they know 32,768 positions."""
    folder = tmp_path_factory.mktemp("long_models")
    for role, model in (("actor", tiny_policy), ("critic", tiny_critic)):
        config = json.loads((shutil.copytree(model, folder / role) / "config.json").read_text())
        (folder / role / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32_768}))
    return folder / "actor", folder / "critic"


@pytest.fixture(scope="session")
def compose(tiny_task: Path, tiny_policy: Path, tiny_critic: Path) -> Compose:
    """``compose(overrides)``: the shipped configuration for a valid tiny run on the CPU, with these overrides."""
    from tempo_verl.launch import resolve_config

    valid = [
        "hardware=cpu",
        f"tempo.labeled.files='{tiny_task / 'labeled.parquet'}'",
        f"tempo.unlabeled.files='{tiny_task / 'unlabeled.parquet'}'",
        f"data.val_files=['{tiny_task / 'unlabeled.parquet'}','{tiny_task / 'heldout.parquet'}']",
        "tempo.rounds=2",
        "tempo.labeled.batch_size=8",
        "tempo.unlabeled.batch_size=4",
        "actor_rollout_ref.rollout.n=2",
        "data.max_prompt_length=16",
        "data.max_response_length=24",
        f"actor_rollout_ref.model.path='{tiny_policy}'",
        f"critic.model.path='{tiny_critic}'",
    ]
    return lambda overrides=(): resolve_config([*valid, *overrides])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread: for models too small to share out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _running_sums():
    from tempo_verl.tasks.running_sums import RunningSums

    return RunningSums(seed=1, n_labeled=32, n_unlabeled=16, n_heldout=16)
