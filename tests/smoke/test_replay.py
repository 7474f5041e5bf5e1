# SPDX-License-Identifier: Apache-2.0
"""Labelled replay in real rounds: the critic learns again from what it saw, with the same verdicts."""

from __future__ import annotations

from pathlib import Path

from harness import equal, train


def test_an_e_step_replays_rollouts_of_the_last_rounds(tmp_path: Path, compose) -> None:
    found = train(
        compose,
        tmp_path,
        [
            "tempo.rounds=4",
            "tempo.labeled.batch_size=4",
            "tempo.calibration.mini_batch_size=2",
            "tempo.calibration.replay.prompts=6",
            "tempo.calibration.replay.window=2",
        ],
    )
    n = len(found.fitted[1]) // 4  # responses a prompt
    fresh = {
        number: {key for key in rows if not any(key in found.fitted[earlier] for earlier in range(1, number))}
        for number, rows in found.fitted.items()
    }
    assert [len(fresh[number]) for number in (1, 2, 3, 4)] == [4 * n] * 4
    replayed = {number: set(rows) - fresh[number] for number, rows in found.fitted.items()}
    # as many as there are, in whole updates of two prompts: none, one round, six prompts' worth of two rounds
    assert [len(replayed[number]) for number in (1, 2, 3, 4)] == [0, 4 * n, 6 * n, 6 * n]
    assert replayed[4] <= fresh[2] | fresh[3]  # round 1 has left the window
    for number, keys in replayed.items():
        assert found.metrics[number]["tempo/labeled/replayed"] == len(keys)
        for key in keys:
            first_seen = next(earlier for earlier in range(1, number) if key in fresh[earlier])
            assert found.fitted[number][key] == found.fitted[first_seen][key]
    # the measured rows are the fresh ones alone, and nothing but the E-step touches the critic
    assert len(found.dump(4)["labeled_value"]) == 4 * n
    assert not equal(found.weights_of(4, "critic", "start"), found.weights_of(4, "critic", "between"))
    assert equal(found.weights_of(4, "critic", "between"), found.weights_of(4, "critic", "end"))
