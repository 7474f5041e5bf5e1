# SPDX-License-Identifier: Apache-2.0
"""A run that is killed and goes on ends as one that was not: weights, optimisers, metrics, predictions, bit for bit.

``benchmarks/reliability.py`` does the same with more methods, victims and moments.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from reliability import PATIENCE, VICTIMS, Ended, Made, Watched, at_random, differences, evidence, make, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]  # up to eight starts of a training in one test
ROUNDS = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("resume"))


def assert_told(ended: Ended, cause: str) -> None:
    assert ended.seconds < PATIENCE
    assert [what for what in ended.left if not what.startswith("shared memory")] == []  # other tests have some, too
    assert cause in ended.output.replace("\n", " ")
    assert "Traceback" not in ended.output


@pytest.mark.parametrize(
    ("ranks", "victim", "cause"),
    [
        (1, "TransferQueue's storage", "TransferQueue's storage died"),
        (2, "a training worker", "a training worker died"),
    ],
)
def test_a_run_that_starts_again_by_itself_ends_as_if_nothing_had_happened(
    made: Made, tmp_path: Path, ranks: int, victim: str, cause: str
) -> None:
    """With replay, gate and focus."""
    overrides = made.overrides("tempo", ROUNDS, ranks)
    whole = train(tmp_path / "whole", overrides)
    assert whole.status == 0, whole.output
    killed = train(tmp_path / "killed", ["--max-restarts", "1", *overrides], at_random(victim, 0.3, 2))
    assert killed.killed == victim
    assert killed.status == 0, killed.output
    assert_told(killed, f"{cause} (process")
    assert "Restart 1 of 1" in killed.output
    assert differences(evidence(tmp_path / "whole"), evidence(tmp_path / "killed")) == []
    assert len(evidence(tmp_path / "whole")) > 300


def test_a_run_that_draws_ahead_goes_on_exactly(made: Made, tmp_path: Path) -> None:
    """With replay and focus. It dies in a round behind the checkpoint, with prompts of the next round under way."""
    overrides = [
        *made.overrides("tempo", ROUNDS),
        *("trainer.save_freq=2", "trainer.test_freq=4", "tempo.calibration.gate.min_auroc=null"),
        "tempo.ahead.streams=[labeled,unlabeled]",
    ]
    whole = train(tmp_path / "whole", overrides)
    assert whole.status == 0, whole.output
    begun: list[float] = []

    def kill(run: Path, watched: Watched) -> str | None:
        """The trainer, a moment after the checkpoint of round 2."""
        if not (run / "checkpoints" / "global_step_2" / "manifest.json").is_file():
            return None
        begun.append(time.monotonic())
        if begun[-1] - begun[0] < 1.0:
            return None
        watched.find(VICTIMS["the trainer"])[0].kill()
        return "the trainer"

    killed = train(tmp_path / "killed", overrides, kill)
    assert (killed.killed, killed.status, killed.lost < 2) == ("the trainer", 2, True), killed.output
    again = train(tmp_path / "killed", overrides)
    assert again.status == 0, again.output
    assert differences(evidence(tmp_path / "whole"), evidence(tmp_path / "killed")) == []
    lag = [line["data"]["tempo/labeled/staleness"] for line in logged(tmp_path / "whole")]
    assert lag == [0.0, 1.0, 0.0, 1.0]


def logged(run: Path) -> list[dict]:
    """What was logged of each round, validations alone left out."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "tempo/labeled/accuracy" in line["data"]]


def test_whoever_dies_the_run_ends_with_one_line_and_leaves_nothing_behind(made: Made, tmp_path: Path) -> None:
    """One after the other, as soon as they are there; then the run is trained to its end."""
    overrides = [*made.overrides("ppo", 1), "actor_rollout_ref.rollout.agent.agent_loop_manager_class=null"]
    for victim, cause in {
        "an agent-loop worker": "an agent-loop worker died (process",
        "the trainer": "the trainer's process was ended by Killed (by hand, or because memory ran out)",
        "the rollout server": "the rollout server died (process",
        "the reward worker": "the reward worker died (process",
        "TransferQueue's controller": "TransferQueue's controller died (process",
        "the raylet": "training failed: ",
    }.items():
        killed = train(tmp_path / "run", overrides, at_random(victim, 0.0, 0))
        assert (killed.killed, killed.status) == (victim, 2), killed.output
        assert_told(killed, cause)
    assert train(tmp_path / "run", overrides).status == 0
