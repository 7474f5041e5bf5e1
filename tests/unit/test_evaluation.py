# SPDX-License-Identifier: Apache-2.0
"""pass@k and answer diversity by hand."""

import numpy as np
import pytest

from tempo_verl.algo.evaluation import distinct_answers, pass_at_k


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
