# SPDX-License-Identifier: Apache-2.0
"""Three rounds on two ranks with the other options.

Packed rows as on accelerators, a warm-up round, an E-step every second round, labelled rows in the actor loss (14 rows,
of which verl makes 16 by two synthetic ones), GSPO, KL and entropy in the loss, the official reward.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from harness import Evidence, train

pytestmark = pytest.mark.slow  # a minute; tests/engine has two ranks in seconds

# float32 forward passes of the same weights in different batches and on sharded parameters
VALUE_TOLERANCE, ADVANTAGE_TOLERANCE = 1e-5, 1e-4


@pytest.fixture(scope="module")
def found(tmp_path_factory, compose) -> Evidence:
    config = compose(
        [
            "trainer.n_gpus_per_node=2",
            "actor_rollout_ref.model.use_remove_padding=true",
            "critic.model.use_remove_padding=true",
            "tempo.rounds=3",
            "tempo.labeled.batch_size=6",
            "tempo.labeled.n=1",
            "tempo.calibration.interval=2",
            "tempo.calibration.warmup_rounds=1",
            "tempo.calibration.lr=1e-3",
            "tempo.actor_on_labeled=true",
            "tempo.final_value=before_last_token",
            "tempo.value_range=null",
            "actor_rollout_ref.actor.optim.lr=1e-3",
            "actor_rollout_ref.actor.policy_loss.loss_mode=gspo",
            "actor_rollout_ref.actor.use_kl_loss=true",
            "actor_rollout_ref.actor.entropy_coeff=0.001",
        ]
    )
    return train(config, tmp_path_factory.mktemp("ranks"), moments=["start", "between", "end"], rows=True)


def test_warm_up_trains_only_the_critic(found: Evidence) -> None:
    assert not found.changed(1, "actor")
    assert found.changed(1, "critic")
    assert 1 not in found.rows
    assert not any(name.startswith(("tempo/unlabeled/reward", "tempo/oracle")) for name in found.metrics[1])


def test_no_e_step_between_two_intervals(found: Evidence) -> None:
    assert not found.changed(2, "critic")
    assert found.changed(2, "actor")
    assert not any(name.startswith("tempo/labeled/") for name in found.metrics[2])
    assert len(found.rows[2]["real"]) == 8  # unlabelled rows only


def test_critic_changes_only_in_the_e_step_and_actor_only_in_the_m_step(found: Evidence) -> None:
    assert found.changed(3, "critic", "start", "between")
    assert not found.changed(3, "critic", "between", "end")
    assert not found.changed(3, "actor", "start", "between")
    assert found.changed(3, "actor", "between", "end")


def test_values_are_those_of_the_updated_critic(found: Evidence) -> None:
    rows, used = found.rows[3], found.tokens(3)["unlabeled_values"]
    unlabeled = rows["real"] & [row["ground_truth"] is None for row in rows["reward_model"]]
    near, far = (np.abs(used - found.values(3, moment)[unlabeled]).max() for moment in ("between", "start"))
    assert near < VALUE_TOLERANCE
    assert far > 100 * VALUE_TOLERANCE


def test_labelled_rows_join_the_actor_loss_and_synthetic_ones_count_nowhere(found: Evidence) -> None:
    rows, dump = found.rows[3], found.dump(3)
    assert rows["real"].sum() == 14
    assert len(rows["real"]) == 16
    truths = [row["ground_truth"] for row, real in zip(rows["reward_model"], rows["real"], strict=True) if real]
    assert sum(truth is not None for truth in truths) == 6
    assert len(dump["unlabeled_reward"]) == 8  # metrics and dumps hold the unlabelled rows
    assert len(dump["labeled_correct"]) == 6

    # Whitened over the valid tokens of the 14 real rows; the synthetic rows have none.
    valid = torch.cat([a[: m.sum()] for a, m in zip(rows["advantages"], rows["mask"], strict=True)]).double()
    assert rows["mask"][~rows["real"]].sum() == 0
    assert valid.mean().abs() < ADVANTAGE_TOLERANCE
    assert (valid.var(unbiased=True) - 1).abs() < ADVANTAGE_TOLERANCE


def test_official_reward_is_the_value_before_the_last_token(found: Evidence) -> None:
    dump = found.tokens(3)
    last = dump["unlabeled_mask"].sum(axis=1)
    assert np.array_equal(dump["unlabeled_reward"], dump["unlabeled_values"][np.arange(len(last)), last - 1])


def test_kl_and_entropy_are_in_the_loss(found: Evidence) -> None:
    for number in (2, 3):
        assert {"actor/kl_loss", "actor/entropy_loss"} <= found.metrics[number].keys()


def test_nothing_stays_in_the_queue(found: Evidence) -> None:
    assert found.left_in_queue == set()


def test_every_rank_saved_its_part(found: Evidence) -> None:
    folder: Path = found.saved[3, "critic", "end"]
    assert {file.name for file in folder.glob("model_world_size_2_rank_*.pt")} == {
        "model_world_size_2_rank_0.pt",
        "model_world_size_2_rank_1.pt",
    }
