# SPDX-License-Identifier: Apache-2.0
"""A tiny task, policy and critic on disk, and the shipped configuration composed for them."""

from __future__ import annotations

import os

# Read when these libraries are imported: nothing is looked up on the network, no result depends on a thread count or on
# what the processor can do beside x86-64, so that recorded traces are the same on other machines.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import yaml

if TYPE_CHECKING:
    from harness import Evidence, Tour
    from omegaconf import DictConfig

# What the processes of the tour are built with
TOUR = [
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "actor_rollout_ref.actor.optim.lr=3e-4",
    "tempo.calibration.lr=3e-4",
    "tempo.verifier.allow=['os:abort','verdicts:right','verdicts:wrong','verdicts:nan']",
]

Compose = Callable[[Sequence[str]], "DictConfig"]

# Hydra reads all of verl's YAML for each of some hundred compositions: by libyaml in three quarters of the time.
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Published question files, which are no part of this repository; the tests that read them are skipped without.
BENCHMARKS = Path(os.environ.get("TEMPO_BENCHMARK_FILES") or Path(__file__).parents[2] / "shared" / "data")

# These work in processes of their own.
COMMANDS = ("tests/smoke/test_chain.py", "tests/smoke/test_resume.py", "tests/integration/", "tests/engine/")
TRAININGS = ("tests/engine/", "tests/integration/", "tests/invariant/", "tests/smoke/")
_open: list[Tour] = []


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Trainings that share processes in one worker, the commands of a file in one; all else where there is room."""
    from xdist.scheduler import LoadScopeScheduling

    class TrainingsTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if not nodeid.startswith(TRAININGS):
                return nodeid
            return nodeid.partition("::")[0] if nodeid.startswith(COMMANDS) else "tour"

    return TrainingsTogether(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Trainings come first, those that share the tour at their head; whole published files are for `make test-all`."""
    for item in items:
        if "benchmarks" in item.fixturenames:
            item.add_marker("slow")
    items.sort(key=lambda item: (not item.nodeid.startswith(TRAININGS), "tour" not in item.fixturenames))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A process has one Ray cluster at a time: the tour ends before other trainings begin."""
    if _open and "tour" not in item.fixturenames:
        _open.pop().close()


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
def skilled_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``tiny_policy``, after 150 steps: it knows the format and is sometimes right."""
    from tempo_verl.tasks.pretrain import pretrain

    return pretrain(tmp_path_factory.mktemp("skilled_policy"), _running_sums(), steps=150).path


@pytest.fixture(scope="session")
def benchmarks() -> Path:
    """Folder of the published question files; ``TEMPO_BENCHMARK_FILES`` names another."""
    if not BENCHMARKS.is_dir():
        pytest.skip(f"no benchmark files in {BENCHMARKS}; TEMPO_BENCHMARK_FILES names their folder")
    return BENCHMARKS


@pytest.fixture(scope="session")
def tiny_critic(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Path:
    """Hugging Face directory of a critic with a (random) value head, and of the policy's tokenizer."""
    return _critic(tmp_path_factory.mktemp("critic"), tiny_policy)


@pytest.fixture(scope="session")
def able_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hugging Face directory of a policy that is right now and then: 150 steps of pretraining."""
    from tempo_verl.tasks.pretrain import pretrain

    return pretrain(tmp_path_factory.mktemp("able"), _running_sums(), steps=150, batch_size=16).path


@pytest.fixture(scope="session")
def tour(tmp_path_factory: pytest.TempPathFactory, compose: Compose, able_policy: Path) -> Iterator[Tour]:
    """Processes in which one training after the other starts from the able policy and a random critic.

    All have 4 responses a prompt and the learning rate of the recorded traces.
    """
    from harness import Tour

    folder = tmp_path_factory.mktemp("tour")
    critic = _critic(tmp_path_factory.mktemp("able_critic"), able_policy)
    models = [f"actor_rollout_ref.model.path='{able_policy}'", f"critic.model.path='{critic}'"]
    session = Tour(compose([*models, *TOUR]), folder)
    session.models = models
    _open.append(session)
    yield session
    if _open:
        _open.pop().close()


@pytest.fixture(scope="session")
def traced(tour: Tour, compose: Compose) -> Callable[[str], Evidence]:
    """``traced(method)``: the two rounds of the recorded traces, with weights and the rows of updates."""
    from traces import COMMON, METHODS

    @cache
    def leg(method: str) -> Evidence:
        overrides = [*tour.models, f"method={method}", *COMMON, *METHODS[method]]
        return tour.leg(compose(overrides), moments=["start", "end"], rows=True)

    return leg


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


def _critic(folder: Path, policy: Path) -> Path:
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForTokenClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        Qwen3ForTokenClassification(Qwen3Config.from_pretrained(policy, num_labels=1)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy).save_pretrained(folder)
    return folder


def _running_sums():
    from tempo_verl.tasks.running_sums import RunningSums

    return RunningSums(seed=1, n_labeled=32, n_unlabeled=16, n_heldout=16)
