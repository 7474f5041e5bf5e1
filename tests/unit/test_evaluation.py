# SPDX-License-Identifier: Apache-2.0
"""pass@k, votes and diversity by hand, and the same in the metrics of a training run."""

from math import comb

import numpy as np
import pytest

from tempo_verl.algo.evaluation import (
    DRAWN_CHOICES,
    EVERY_CHOICE,
    Votes,
    answer_entropy,
    best_of_n,
    distinct_answers,
    distinct_n,
    maj_at_k,
    majority_vote,
    pass_at_k,
    question_measures,
    tally,
    weighted_vote,
)
from tempo_verl.algo.statistics import Estimate, bootstrap, differences, estimates, paired_difference, question_keys
from tempo_verl.trainer.metrics import validation_metrics


def test_pass_at_k_by_hand() -> None:
    # 5 samples, 2 right, draw 2: both wrong in C(3,2) / C(5,2) = 3 / 10
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)
    # pass@1 is the accuracy
    assert pass_at_k(8, 3, 1) == pytest.approx(3 / 8)
    # 4 samples, 3 right, draw 2: only 1 wrong, so a draw of 2 cannot miss
    assert pass_at_k(4, 3, 2) == 1.0
    assert pass_at_k(4, 0, 4) == 0.0
    assert pass_at_k(4, 1, 4) == 1.0
    assert pass_at_k(4, 2, 0) == 0.0
    assert isinstance(pass_at_k(5, 2, 2), float)


def test_pass_at_k_of_an_array() -> None:
    got = pass_at_k(5, np.array([[0, 1], [2, 5]]), 2)
    # 1 right: both wrong in C(4,2) / 10 = 0.6
    np.testing.assert_allclose(got, [[0.0, 0.4], [0.7, 1.0]])
    np.testing.assert_allclose(pass_at_k(5, [2, 5], 2), [0.7, 1.0])
    np.testing.assert_allclose(pass_at_k(5, np.array([2, 5], dtype=np.uint8), 2), [0.7, 1.0])


def test_pass_at_k_does_not_overflow() -> None:
    # C(100000, 1000) has thousands of digits; 1 - prod (1 - 10/(100000 - j)) over j < 1000, about 1 - 0.99^10
    assert pass_at_k(100_000, 10, 1000) == pytest.approx(1 - 0.99**10, abs=1e-4)


@pytest.mark.parametrize(
    ("n", "c", "k", "message"),
    [
        (4, 2, 5, "k <= n"),
        (4, 5, 2, "c <= n"),
        (4, -1, 2, ">= 0"),
        (4, 2, -1, ">= 0"),
        (-4, 0, 0, ">= 0"),
        (4, [1, -3], 2, "c=-3"),
        (4, 0.5, 2, "whole"),
    ],
)
def test_impossible_numbers_are_refused_in_one_line(n: int, c: int, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        pass_at_k(n, c, k)
    assert "\n" not in str(error.value)


def test_distinct_answers() -> None:
    assert distinct_answers(["7", "7", "3", None, "3", None]) == 2
    assert distinct_answers([None, None]) == 0
    assert distinct_answers([]) == 0
    assert distinct_answers([0, "", ("a", 1)]) == 3  # falsy answers are answers


# ---------------------------------------------------------------------- votes


def test_a_tally_by_hand() -> None:
    votes = tally(["7", "3", None, "7", "5"], [0.25, 0.5, 1.0, 0.5, 0.75])
    assert votes == {"7": Votes(2, 0.75), "5": Votes(1, 0.75), "3": Votes(1, 0.5)}
    assert list(votes) == ["7", "5", "3"]  # equal weight: the commoner first
    assert weighted_vote(["b", "a"], [0.5, 0.5]) == "a"  # equal in both: the smaller text
    assert weighted_vote(["a", "b", "b"], [1.0, 0.25, 0.5]) == "a"
    assert majority_vote(["a", "b", "b"]) == "b"
    assert weighted_vote([None, None], [1.0, 1.0]) is None
    assert weighted_vote([None, "a"], [1.0, 0.0]) == "a"  # no answer never wins


@pytest.mark.parametrize("weights", [[1.0], [1.0, -0.5], [1.0, float("nan")], [float("inf"), 1.0]])
def test_impossible_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="a vote needs"):
        weighted_vote(["a", "b"], weights)


def test_maj_at_k_by_hand() -> None:
    answers, correct = ["1", "1", "2", None], [True, True, False, False]
    assert maj_at_k(answers, correct, 1) == 0.5
    # pairs: 11 12 1- 12 1- 2-; a tie of 1 and 2 goes to the smaller text, 1
    assert maj_at_k(answers, correct, 2) == pytest.approx(5 / 6)
    assert maj_at_k(answers, correct, 4) == 1.0
    assert maj_at_k(["2", "2", "1"], [True, True, False], 2) == pytest.approx(1 / 3)
    # with weights, "2" beats both "1" together
    assert maj_at_k(answers, correct, 4, [0.25, 0.25, 1.0, 1.0]) == 0.0
    assert maj_at_k([None, None], [False, False], 1) == 0.0
    for k in (0, 5):
        with pytest.raises(ValueError, match="1 <= k <= n"):
            maj_at_k(answers, correct, k)


def test_maj_at_k_of_too_many_choices_is_drawn_and_repeatable() -> None:
    # P(most of 9 of 40 samples are right), 24 right: hypergeometric
    answers, correct = ["r"] * 24 + ["w"] * 16, [True] * 24 + [False] * 16
    assert comb(40, 9) > EVERY_CHOICE
    exact = sum(comb(24, right) * comb(16, 9 - right) for right in range(5, 10)) / comb(40, 9)
    drawn = maj_at_k(answers, correct, 9)
    assert drawn == maj_at_k(answers, correct, 9)
    assert drawn == pytest.approx(exact, abs=4 * (exact * (1 - exact) / DRAWN_CHOICES) ** 0.5)


def test_best_of_n() -> None:
    assert best_of_n([True, False], [0.2, -0.1]) == 1.0
    assert best_of_n([True, False], [-0.2, -0.1]) == 0.0
    assert best_of_n([True, False, False], [0.5, 0.5, 0.1]) == 0.5


# ---------------------------------------------------------------------- diversity


def test_answer_entropy() -> None:
    assert answer_entropy(["1", "1", None]) == 0.0
    assert answer_entropy(["1", "2", "3", None]) == pytest.approx(np.log(3))
    assert answer_entropy(["1", "1", "1", "2"]) == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert answer_entropy([None]) is None


def test_distinct_n() -> None:
    assert distinct_n(["a b a b", "a b"]) == 2 / 4  # ab ba ab | ab
    assert distinct_n(["a b a b", "a b"], n=1) == 2 / 6
    assert distinct_n(["word", ""]) is None


# ---------------------------------------------------------------------- together


def test_the_measures_of_a_question() -> None:
    answers, correct = ["1", "2", "2", None], [True, False, False, False]
    measures = question_measures(answers, correct, [1.5, 0.25, 0.5, -1.0], ks=(1, 4))
    assert measures == {
        "avg": 0.25,
        "pass@1": 0.25,
        "pass@4": 1.0,
        "maj@1": 0.25,
        "maj@4": 0.0,
        "weighted_maj@1": 0.25,
        "weighted_maj@4": 1.0,  # 1.5 counts as 1, against 0.75
        "best_of_n": 1.0,
        "distinct_answers": 2.0,
        "no_answer": 0.25,
        "answer_entropy": pytest.approx(answer_entropy(["1", "2", "2"])),
    }
    assert question_measures([None], ks=(1,)) == {"distinct_answers": 0.0, "no_answer": 1.0}


def test_validation_metrics_have_the_same_measures() -> None:
    sources, prompts = ["s"] * 6, ["p"] * 3 + ["q"] * 3
    answers = ["1", "1", "2", "5", None, "6"]
    found = {"acc": [1, 1, 0, 1, 0, 0], "pred": [answer or "" for answer in answers]}
    metrics = validation_metrics(sources, prompts, found, {("s", "p"): 3, ("s", "r"): 3})
    # q: 5, none, 6; r: three samples that failed
    core = "val-core/s/acc"
    assert metrics == {
        f"{core}/mean@3": pytest.approx(3 / 9),
        f"{core}/pass@1": pytest.approx(3 / 9),
        f"{core}/pass@2": pytest.approx((1 + 2 / 3 + 0) / 3),
        f"{core}/pass@3": pytest.approx(2 / 3),
        f"{core}/maj@1": pytest.approx(3 / 9),
        f"{core}/maj@2": pytest.approx((1 + 2 / 3 + 0) / 3),  # a tie of 5 and 6 goes to 5, as one of 1 and 2 to 1
        f"{core}/maj@3": pytest.approx(2 / 3),
        "val-aux/s/distinct_answers": pytest.approx((2 + 2 + 0) / 3),
    }


def test_a_paired_difference() -> None:
    found = paired_difference([0.0, 0.5, 1.0], [0.5, 1.0, 1.5])
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    before = np.random.default_rng(0).random(400)
    noise = np.random.default_rng(1).normal(0.1, 0.05, 400)
    paired, apart = paired_difference(before, before + noise), bootstrap(before + noise)
    assert paired.low < 0.1 < paired.high
    assert paired.high - paired.low == pytest.approx(2 * 1.96 * 0.05 / 20, rel=0.2)
    assert apart.high - apart.low > 4 * (paired.high - paired.low)  # what pairing is for
    with pytest.raises(ValueError):
        paired_difference([0.0], [0.0, 1.0])


def test_an_interval_does_not_depend_on_the_order_of_the_questions() -> None:
    values = np.random.default_rng(0).random(60)
    shuffled = np.random.default_rng(1).permutation(values)
    assert bootstrap(values) == bootstrap(shuffled) == bootstrap(sorted(values))
    assert bootstrap(values).questions == 60


def test_means_and_differences_of_all_measures() -> None:
    before, after = [{"a": 0.0, "b": 1.0}, {"a": 1.0}], [{"a": 0.5, "b": 0.0}, {"a": 1.5, "b": 9.0}]
    found = estimates(before)
    assert (found["a"].value, found["a"].questions) == (0.5, 2)
    assert found["b"] == Estimate(1.0)  # one question: nothing to resample
    changed = differences(zip(before, after, strict=True))
    assert (changed["a"].value, changed["a"].low, changed["a"].questions) == (0.5, 0.5, 2)
    assert changed["b"] == Estimate(-1.0)


def test_questions_with_the_same_text_are_told_apart() -> None:
    assert question_keys(["x", "y", "x", "x"]) == [("x", 0), ("y", 0), ("x", 1), ("x", 2)]


def test_measures_without_answers() -> None:
    assert question_measures(None, [True, False], ks=(2,)) == {"avg": 0.5, "pass@2": 1.0}
