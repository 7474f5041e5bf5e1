# SPDX-License-Identifier: Apache-2.0
"""Alarms, the gate of the M-step, and when a run ends."""

from __future__ import annotations

import logging

import pytest
from fields import method_of

from tempo_verl.errors import UserError
from tempo_verl.trainer.watch import ALARMS, Watch

AUROC, GAP, LENGTH = "tempo/labeled/auroc", "tempo/labeled/gap", "tempo/unlabeled/response_length"


def watch(gate: dict | None = None, **alarms) -> Watch:
    settings = method_of().settings
    return Watch(
        settings.alarms.model_copy(update={"window": 1} | alarms),
        settings.calibration.gate.model_copy(update=gate or {}),
        settings.guard,
    )


def seen(watching: Watch, metric: str, values: list[float]) -> list[dict[str, float]]:
    return [watching.observe(number, {metric: value}) for number, value in enumerate(values, start=1)]


def test_no_alarm_looks_at_answers_of_unlabeled_questions() -> None:
    method_of(alarms__stop=list(ALARMS))  # each may end a run
    assert not any("oracle" in metric for metric, _ in ALARMS.values())


def test_the_auroc_has_a_floor_and_the_gap_a_ceiling() -> None:
    assert [found["tempo/alarm/auroc"] for found in seen(watch(), AUROC, [0.7, 0.59, 0.61])] == [0, 1, 0]
    assert [found["tempo/alarm/gap"] for found in seen(watch(), GAP, [0.2, 0.31, -0.9])] == [0, 1, 0]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("entropy", [2.0, 1.0, 0.5], [0, 0, 1]),
        ("diversity", [4.0, 2.1, 1.9], [0, 0, 1]),
        ("length", [10.0, 19.0, 21.0], [0, 0, 1]),
    ],
)
def test_collapse_is_judged_by_the_first_rounds(name: str, values: list[float], expected: list[float]) -> None:
    found = seen(watch(), ALARMS[name][0], values)
    assert [round_.get(f"tempo/alarm/{name}") for round_ in found] == expected


def test_an_alarm_is_on_the_mean_of_a_window() -> None:
    found = seen(watch(window=2), AUROC, [0.5, 0.8, 0.5, 0.5])
    assert [round_["tempo/alarm/auroc"] for round_ in found] == [1, 0, 0, 1]
    # relative alarms wait until the first window is full
    assert [r.get("tempo/alarm/length") for r in seen(watch(window=2), LENGTH, [10, 12, 50])] == [None, 0, 1]


def test_what_is_not_logged_or_turned_off_raises_no_alarm() -> None:
    assert watch().observe(1, {}) == {}
    assert seen(watch(min_auroc=None), AUROC, [0.1]) == [{}]


def test_an_alarm_is_told_when_it_goes_on(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        seen(watch(), AUROC, [0.5, 0.5, 0.7, 0.4])
    assert [record.getMessage()[:8] for record in caplog.records] == ["round 1:", "round 4:"]
    assert "hardly tells right from wrong (tempo/labeled/auroc 0.5, limit 0.6)" in caplog.records[0].getMessage()


def test_only_a_chosen_alarm_ends_the_run() -> None:
    patient, strict = watch(), watch(stop=["auroc"])
    seen(patient, AUROC, [0.5])
    seen(strict, AUROC, [0.5])
    assert patient.stop is None
    assert strict.stop.startswith("alarm auroc: the critic hardly tells right from wrong")


def test_the_gate_closes_and_opens_with_the_auroc() -> None:
    watching = watch({"min_auroc": 0.7, "window": 2})
    assert watching.gate_open  # nothing is known yet
    found = seen(watching, AUROC, [0.8, 0.7, 0.6, 0.9, 0.9])
    assert [round_["tempo/gate_open"] for round_ in found] == [1, 1, 0, 1, 1]
    # a round without labelled rollouts leaves the gate as it is
    assert watching.observe(6, {})["tempo/gate_open"] == 1


def test_without_a_limit_there_is_no_gate() -> None:
    watching = watch()
    assert "tempo/gate_open" not in seen(watching, AUROC, [0.1])[0]
    assert watching.gate_open


def test_a_gate_that_stays_closed_ends_the_run() -> None:
    watching = watch({"min_auroc": 0.7, "window": 1, "max_closed": 2})
    seen(watching, AUROC, [0.5, 0.5, 0.9, 0.5, 0.5])
    assert watching.stop is None
    seen(watching, AUROC, [0.5])
    assert (
        watching.stop == "the critic's AUROC stayed under tempo.calibration.gate.min_auroc=0.7 for 3 rounds of E-steps"
    )


def test_a_resumed_watch_goes_on_as_an_uninterrupted_one() -> None:
    values = [0.8, 0.65, 0.6, 0.75, 0.9, 0.5, 0.5]

    def fresh() -> Watch:
        return watch({"min_auroc": 0.7, "window": 3, "max_closed": 2}, window=2)

    whole = fresh()
    expected = seen(whole, AUROC, values)
    first = fresh()
    seen(first, AUROC, values[:3])
    second = fresh()
    second.load_state_dict(first.state_dict())
    assert seen(second, AUROC, values[3:]) == expected[3:]
    assert second.stop == whole.stop


# ---------------------------------------------------------------------- skipped updates


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
@pytest.mark.parametrize("role", ["actor", "critic"])
def test_skipped_updates_are_counted_and_too_many_in_a_row_end_the_run(role: str, norm: float) -> None:
    watching, metric = watch(), f"{role}/grad_norm"
    found = seen(watching, metric, [1.0, norm, norm, 1.0, norm, norm])
    assert [round_["tempo/skipped_updates"] for round_ in found] == [0, 1, 1, 0, 1, 1]
    resumed = watch()
    resumed.load_state_dict(watching.state_dict())
    for each in (watching, resumed):
        with pytest.raises(UserError, match=rf"the gradient of the {role} was not finite in 3 rounds in a row"):
            each.observe(7, {metric: norm})


# ---------------------------------------------------------------------- resuming


def test_a_run_that_was_to_end_ends_there_after_an_interruption_too() -> None:
    watching = watch(stop=["auroc"])
    seen(watching, AUROC, [0.7, 0.5])
    assert (watching.ends, "alarm auroc" in str(watching.stop)) == (3, True)
    resumed = watch(stop=["auroc"])
    resumed.load_state_dict(watching.state_dict())
    resumed.go_on(2)
    assert (resumed.ends, resumed.stop) == (3, watching.stop)
    resumed.go_on(3)  # it has ended, and is asked to go on
    assert (resumed.ends, resumed.stop) == (None, None)
