# SPDX-License-Identifier: Apache-2.0
"""Two rounds with LoRA on policy and critic: rollouts, reference, values and exports are those of the trained models.

In a cluster of its own, as workers are built with their adapters. See tests/engine/test_lora.py for each part alone.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from harness import Evidence, equal, train
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tempo_verl.config.preflight import check
from tempo_verl.evaluation.critic import Critic

pytestmark = pytest.mark.slow

# float32 forward passes of the same weights in another batch; an update moves log-probabilities by more than .1
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def found(tmp_path_factory, compose) -> Evidence:
    config = compose(
        [
            "actor_rollout_ref.model.lora_rank=4",
            "critic.model.lora_rank=4",
            "actor_rollout_ref.actor.optim.lr=1e-2",
            "tempo.calibration.lr=1e-2",
            "actor_rollout_ref.actor.use_kl_loss=true",
            "tempo.value_range=null",
        ]
    )
    return train(config, tmp_path_factory.mktemp("lora"), moments=["start", "end"], rows=True)


@torch.inference_mode()
def furthest_from_rollout(path: Path, rows: dict) -> float:
    """Largest difference between a model's log-probabilities of the responses and those of the rollout."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    off = 0.0
    for ids, length, drawn in zip(rows["input_ids"], rows["lengths"], rows["rollout_log_probs"], strict=True):
        every = model(input_ids=ids[None]).logits[0].log_softmax(dim=-1)[:-1].gather(1, ids[1:, None])[:, 0]
        off = max(off, (every[-length:] - drawn[:length]).abs().max().item())
    return off


@pytest.mark.parametrize("role", ["actor", "critic"])
def test_every_round_trains_the_exported_model(found: Evidence, role: str) -> None:
    for number in (1, 2):
        assert found.changed(number, role)
    assert equal(found.weights_of(1, role, "end"), found.weights_of(2, role, "start"))


def test_the_export_of_a_new_adapter_is_the_base(found: Evidence, tiny_policy: Path) -> None:
    assert equal(found.weights_of(1, "actor", "start"), load_file(tiny_policy / "model.safetensors"))


@pytest.mark.parametrize("number", [1, 2])
def test_responses_are_drawn_from_the_exported_policy(found: Evidence, number: int) -> None:
    assert furthest_from_rollout(found.model(number, "actor", "start"), found.rows[number]) < TOLERANCE
    assert furthest_from_rollout(found.model(number, "actor", "end"), found.rows[number]) > 100 * TOLERANCE


def test_the_reference_is_the_policy_without_its_adapter(found: Evidence) -> None:
    assert found.metrics[1]["actor/kl_loss"] == pytest.approx(0, abs=1e-6)
    assert found.metrics[2]["actor/kl_loss"] > 1e-3


def test_rewards_are_the_exported_critics_values(found: Evidence) -> None:
    rows = found.rows[2]
    pairs = [
        (ids[:-length].tolist(), ids[-length:].tolist())
        for ids, length in zip(rows["input_ids"], rows["lengths"], strict=True)
    ]
    values = Critic(str(found.model(2, "critic", "end"))).final_values(*zip(*pairs, strict=True))
    assert values == pytest.approx(found.dump(2)["unlabeled_reward"].tolist(), abs=TOLERANCE)
    stale = Critic(str(found.model(2, "critic", "start"))).final_values(*zip(*pairs, strict=True))
    assert values != pytest.approx(stale, abs=100 * TOLERANCE)


def test_a_later_run_starts_from_them(found: Evidence, compose) -> None:
    parts = {"actor": "actor_rollout_ref", "critic": "critic"}
    taken = [f"{part}.model.path='${{tempo_start_path:{role},{found.folder},last}}'" for role, part in parts.items()]
    config = compose([f"tempo.start_from='{found.folder}'", *taken])
    check(config)
    for role, part in parts.items():
        assert equal(load_file(Path(config[part].model.path) / "model.safetensors"), found.weights_of(2, role, "end"))
