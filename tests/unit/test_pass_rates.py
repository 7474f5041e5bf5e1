# SPDX-License-Identifier: Apache-2.0
"""TraPO's choice of questions, on trajectories worked by hand."""

from __future__ import annotations

import json

import pytest

from tempo_verl.algo.pass_rates import PassRates, clear_majority


def rates(**trajectories: list[float]) -> PassRates:
    """Questions 0, 1, ... visited in the rounds in which D_L's pass rate was .1, .2, .4."""
    found = PassRates()
    for question, own in enumerate(trajectories.values()):
        for rate, on_labeled in zip(own, (0.1, 0.2, 0.4), strict=False):
            found.visit(question, rate, on_labeled)
    return found


def test_a_trajectory_that_rises_as_that_of_labelled_questions_is_similar() -> None:
    known = rates(alike=[0.2, 0.4, 0.8], against=[0.8, 0.6, 0.2], flat=[0.5, 0.5, 0.5], once=[0.5])
    assert [known.similarity(question) for question in range(5)] == pytest.approx([1.0, -1.0, 0.0, 0.0, 0.0])


def test_chosen_are_the_best_and_all_above_the_threshold() -> None:
    known = rates(alike=[0.2, 0.4, 0.8], nearly=[0.2, 0.5, 0.6], against=[0.8, 0.6, 0.2], once=[0.5])
    every = [0, 1, 2, 3]
    assert known.reliable(every, warmup=3, top=0.1, threshold=0.4) == {0, 1}
    assert known.reliable(every, warmup=3, top=0.1, threshold=0.99) == {0}
    assert known.reliable([2, 3], warmup=3, top=0.1, threshold=0.4) == {2}  # at least one
    assert known.reliable(every, warmup=4, top=1.0, threshold=-1.0) == set()
    assert known.reliable(every, warmup=1, top=1.0, threshold=1.0) == {0, 1, 2, 3}


def test_a_checkpoint_holds_it() -> None:
    known, again = rates(one=[0.2, 0.4], other=[0.5]), PassRates()
    again.load_state_dict(json.loads(json.dumps(known.state_dict())))
    assert again == known


def test_no_answer_never_wins_and_a_tie_has_no_winner() -> None:
    answers = ["7", "7", "8", None, None, None, "1", "2", None, "5", "5"]
    prompts = ["a"] * 6 + ["b"] * 3 + ["c"] * 2
    assert clear_majority(answers, prompts).tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert clear_majority([None, None], ["a", "a"]).tolist() == [0, 0]
