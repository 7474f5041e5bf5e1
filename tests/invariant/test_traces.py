# SPDX-License-Identifier: Apache-2.0
"""Two rounds of every method are what they were when their traces were recorded.

On the machine that recorded them to the bit; on another one within TOLERANCE, as sums of floats and with them a sampled
token now and then may differ there. A trace changes on purpose only: record it anew with TEMPO_RECORD_TRACES=1, and say
why in CHANGELOG.md.
"""

from __future__ import annotations

import json
import os
import warnings

import pytest
import traces

from tempo_verl.methods import known

ROUNDS = (1, 2)
# Of a number's own size, or absolute below 1. One sampled token that differs changes one of 16 responses, hence a mean
# by up to 1/16; what is learnt from it moves weights by a part of the learning rate, far less.
TOLERANCE = 0.1


def test_every_method_has_a_trace() -> None:
    assert set(traces.METHODS) == set(known()) == {file.stem for file in traces.FOLDER.glob("*.json")}


@pytest.mark.parametrize("method", traces.METHODS)
def test_a_method_trains_as_recorded(traced, method: str) -> None:
    found = traced(method)
    assert not [name for number in ROUNDS for name, value in found.metrics[number].items() if value != value]  # nan
    roles = ["actor", "critic"] if (1, "critic", "end") in found.saved else ["actor"]
    rounds = [
        traces.of_round(found.metrics[number], found.tokens(number), {r: found.model(number, r, "end") for r in roles})
        for number in ROUNDS
    ]
    file = traces.FOLDER / f"{method}.json"
    if os.environ.get("TEMPO_RECORD_TRACES"):
        file.write_text(json.dumps({"machine": traces.machine(), "rounds": rounds}))
    recorded = json.loads(file.read_text())
    rounds, recorded["rounds"] = traces.unpadded(rounds), traces.unpadded(recorded["rounds"])
    here = traces.machine()
    if recorded["machine"] == here:
        differ = list(traces.differences(recorded["rounds"], rounds, None))
    else:
        warnings.warn(f"recorded on {recorded['machine']}, this is {here}: equal within {TOLERANCE}", stacklevel=1)
        differ = [line for part in traces.summaries(recorded, rounds) for line in traces.differences(*part, TOLERANCE)]
    assert not differ, f"{len(differ)} differences of method={method}:\n" + "\n".join(differ[:40])


def test_a_difference_is_told_with_its_place() -> None:
    one = {
        "metrics": {
            "a": 1.0,
            "b": 2.0,
            "training/rollout_probs_diff_max": 4.8e-7,
            "training/rollout_probs_diff_std": 0.0,
        },
        "arrays": {"x": [[1.0, 2.0], [3.0]]},
        "weights": {"sha256": "1", "norm": 1.0},
    }
    other = {
        "metrics": {
            "a": 1.05,
            "c": 2.0,
            "training/rollout_probs_diff_max": 6.0e-7,
            "training/rollout_probs_diff_std": 0.2,
        },
        "arrays": {"x": [[1.0, 2.0], [3.5]]},
        "weights": {"sha256": "2", "norm": 1.0},
    }
    assert list(traces.differences(one, other, None)) == [
        "arrays/x[1][0]: 3.5, not 3.0",
        "metrics/a: 1.05, not 1.0",
        "metrics/b: gone",
        "metrics/c: new",
        "metrics/training/rollout_probs_diff_std: 0.2, not 0.0",
        "weights/sha256: '2', not '1'",
    ]
    assert list(traces.differences(one, other, 0.1)) == [
        "arrays/x[1][0]: 3.5, not 3.0",
        "metrics/b: gone",
        "metrics/c: new",
        "metrics/training/rollout_probs_diff_std: 0.2, not 0.0",
    ]


def test_a_number_that_became_nan_is_a_difference_and_one_that_stayed_nan_is_none() -> None:
    nan = float("nan")
    assert list(traces.differences({"a": 1.0, "b": nan}, {"a": nan, "b": nan}, 0.1)) == ["a: nan, not 1.0"]
    assert list(traces.differences({"a": 1.0, "b": nan}, {"a": nan, "b": nan}, None)) == ["a: nan, not 1.0"]


def test_what_lies_behind_a_response_is_no_difference_and_what_lies_within_is_one() -> None:
    def a_round(advantages: list[float], values: list[float]) -> list[dict]:
        arrays = {"unlabeled_mask": [[1, 0, 1, 0]], "unlabeled_advantages": [advantages], "unlabeled_values": [values]}
        return traces.unpadded([{"metrics": {}, "weights": {}, "arrays": {**arrays, "labeled_value": [0.5]}}])

    one = a_round([1.0, 0.5, 2.0, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5])
    other = a_round([1.0, 0.5, 2.0, 0.0], [0.1, 0.2, 0.3, 0.4, 0.0])
    assert list(traces.differences(one, other, None)) == []
    other = a_round([1.0, 0.0, 2.0, 0.5], [0.1, 0.2, 0.3, 0.0, 0.5])
    assert list(traces.differences(one, other, None)) == [
        "[0]/arrays/unlabeled_advantages[0][1]: 0.0, not 0.5",
        "[0]/arrays/unlabeled_values[0][3]: 0.0, not 0.4",
    ]


def test_how_far_rows_are_padded_is_no_difference_on_another_machine() -> None:
    rounds = [
        {"metrics": {}, "weights": {}, "arrays": {"mask": [[1] * 12 + [0] * (width - 12), [1] * width]}}
        for width in (15, 16)
    ]
    (pair,) = traces.summaries({"rounds": rounds[:1]}, rounds[1:])
    assert pair[0]["arrays"]["mask"] == {"rows": 2, "mean": 27 / 48}
    assert list(traces.differences(*pair, 0.1)) == []
