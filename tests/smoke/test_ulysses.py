# SPDX-License-Identifier: Apache-2.0
"""Two rounds of TEMPO in which two processes share each sequence (Ulysses), packed, in the path of flash attention."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from harness import Evidence, train

pytestmark = pytest.mark.slow
VALUE_TOLERANCE = 1e-5  # float32 forward passes of the same weights, packed and shared out


@pytest.fixture(scope="module")
def found(tmp_path_factory, compose) -> Evidence:
    import flash_stand_in  # the checks, in this process, ask whether the attention is registered

    config = compose(
        [
            "trainer.n_gpus_per_node=2",
            *(f"{model}.use_remove_padding=true" for model in ("actor_rollout_ref.model", "critic.model")),
            *(
                f"{model}.override_config.attn_implementation={flash_stand_in.NAME}"
                for model in ("actor_rollout_ref.model", "critic.model")
            ),
            "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=2",
            "critic.fsdp.ulysses_sequence_parallel_size=2",
            "tempo.value_range=null",
            "tempo.calibration.lr=1e-3",
            "actor_rollout_ref.actor.optim.lr=1e-3",
            # odd numbers of rows in an update: two data-parallel ranks could not have shared them
            "tempo.labeled.n=1",
            "tempo.calibration.mini_batch_size=1",
            "actor_rollout_ref.rollout.n=3",
            "actor_rollout_ref.actor.ppo_mini_batch_size=1",
        ]
    )
    paths = [Path(flash_stand_in.__file__).parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERL_USE_EXTERNAL_MODULES", flash_stand_in.__name__)
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
        return train(config, tmp_path_factory.mktemp("ulysses"), moments=["start", "between", "end"], rows=True)


@pytest.mark.parametrize("number", [1, 2])
def test_both_models_learn(found: Evidence, number: int) -> None:
    assert found.changed(number, "critic", "start", "between")
    assert found.changed(number, "actor", "between", "end")
    assert np.isfinite(list(found.metrics[number].values())).all()


@pytest.mark.parametrize("number", [1, 2])
def test_values_are_those_of_the_updated_critic(found: Evidence, number: int) -> None:
    used = found.tokens(number)["unlabeled_values"]
    near, far = (np.abs(used - found.values(number, moment)).max() for moment in ("between", "start"))
    assert near < VALUE_TOLERANCE
    assert far > 100 * VALUE_TOLERANCE


@pytest.mark.parametrize("number", [1, 2])
def test_the_policy_is_that_of_the_rollout(found: Evidence, number: int) -> None:
    # the inference engine has whole sequences and other attention
    assert found.metrics[number]["training/rollout_probs_diff_max"] < 1e-5
