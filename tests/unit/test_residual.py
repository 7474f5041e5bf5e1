# SPDX-License-Identifier: Apache-2.0
"""Credit from residuals, and what labelled rollouts say of final values: examples worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tempo_verl.algo.estimate import calibration_slope, fitted_probability
from tempo_verl.algo.jagged import of_rows, pad
from tempo_verl.algo.residual import lowest_value, residual_advantage

# two unlabelled responses and two labelled ones; 9 is padding
VALUES = torch.tensor([[0.5, 0.25, 0.75], [0.5, 0.0, 9.0], [0.5, 0.75, 1.0], [0.5, 0.25, 9.0]])
MASK = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 0]])
LABELED = np.array([False, False, True, True])
REWARD = torch.tensor([0.75, 0.0, -1.0, 0.75])  # V_T, V_T; c - V_T = 0 - 1 and 1 - .25


def test_a_labelled_row_has_its_residual_everywhere_and_an_unlabelled_one_its_value_less_the_baseline() -> None:
    credit = residual_advantage(VALUES, REWARD, MASK, LABELED, weight=2.0, whitening="off")
    assert credit.tolist() == [[0.25, 0.5], [-0.5, 0.0], [-2.0, -2.0], [1.5, 0.0]]


def test_apart_centres_and_measures_the_unlabelled_tokens_alone() -> None:
    credit = residual_advantage(VALUES, REWARD, MASK, LABELED)
    own = torch.tensor([0.25, 0.5, -0.5])
    size = own.std()  # the unbiased one
    assert credit[0].tolist() == pytest.approx(((own[:2] - own.mean()) / size).tolist())
    assert credit[2].tolist() == pytest.approx([-1 / size.item()] * 2)  # not centred
    assert credit[3].tolist() == pytest.approx([0.75 / size.item(), 0.0])


def test_jointly_the_labelled_rows_are_centred_too() -> None:
    credit = residual_advantage(VALUES, REWARD, MASK, LABELED, whitening="joint")
    every = torch.tensor([0.25, 0.5, -0.5, -1.0, -1.0, 0.75])
    assert credit[MASK.bool()].tolist() == pytest.approx(((every - every.mean()) / every.std()).tolist(), abs=1e-6)


def test_a_true_reward_has_a_baseline() -> None:
    verdicts = torch.tensor([0.75, 0.0, 0.0, 1.0])
    credit = residual_advantage(VALUES, verdicts, MASK, LABELED, whitening="off", labeled_baseline=True)
    assert credit[2:].tolist() == [[-0.5, -0.75], [0.5, 0.0]]


def test_jagged_rows_give_the_same() -> None:
    values, mask = (
        of_rows([VALUES[0], VALUES[1, :2], VALUES[2], VALUES[3, :2]]),
        of_rows([torch.ones(2, dtype=torch.bool), torch.ones(1, dtype=torch.bool)] * 2),
    )
    for whitening in ("apart", "joint", "off"):
        padded = residual_advantage(VALUES, REWARD, MASK, LABELED, whitening=whitening)
        assert torch.equal(pad(residual_advantage(values, REWARD, mask, LABELED, whitening=whitening)), padded)
    assert torch.equal(lowest_value(values, mask), lowest_value(VALUES, MASK))


def test_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match="whitening must be one of apart, joint, off, got 'both'"):
        residual_advantage(VALUES, REWARD, MASK, LABELED, whitening="both")
    with pytest.raises(ValueError, match=r"labeled must have shape \(4,\)"):
        residual_advantage(VALUES, REWARD, MASK, LABELED[:, None])
    with pytest.raises(ValueError, match=r"\(B, T\+1\)"):
        residual_advantage(VALUES[:, :2], REWARD, MASK, LABELED)


def test_the_lowest_value_is_that_after_one_of_the_policys_own_tokens() -> None:
    values = torch.tensor([[0.0, 0.5, 0.1, 0.75], [0.0, 0.5, 0.6, 0.7], [0.3, 0.3, 0.3, 0.3]])
    mask = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 0, 0]])  # a tool's token, padding, a row without tokens
    assert lowest_value(values, mask).tolist() == [0.5, 0.5, 0.0]


# ---------------------------------------------------------------------- fits on labelled rollouts


def test_a_critic_that_is_too_sure_is_drawn_to_what_is_right() -> None:
    """Of the responses with V = .9, half are right; of those with V = .1, one in ten."""
    score = np.repeat([0.9, 0.1], 40)
    correct = np.concatenate([np.arange(40) % 2, np.arange(40) % 10 == 0]).astype(float)
    high, low = fitted_probability(score[:, None], correct, np.array([[0.9], [0.1]]))
    assert high == pytest.approx(0.5, abs=0.03)  # the fit is regularised
    assert low == pytest.approx(0.1, abs=0.03)
    # slope of c on V: (.5 - .1) / (.9 - .1)
    assert calibration_slope(score, correct) == pytest.approx(0.5)


def test_a_feature_that_misleads_is_left_out() -> None:
    rng = np.random.default_rng(0)
    score = rng.random(200)
    correct = (rng.random(200) < score).astype(float)
    features = np.column_stack([score, 1 - correct])  # votes for what is wrong
    asked = np.array([[0.7, 0.0], [0.7, 1.0]])
    with_votes, without = (fitted_probability(known, correct, of) for known, of in (
        (features, asked), (features[:, :1], asked[:, :1])))  # fmt: skip
    assert with_votes == pytest.approx(without)


@pytest.mark.parametrize("correct", [[1.0] * 20, [0.0] * 20, [1.0] * 4 + [0.0] * 16])
def test_too_few_of_a_kind_say_nothing(correct: list[float]) -> None:
    score = np.linspace(0.1, 0.9, 20)
    assert fitted_probability(score[:, None], np.array(correct), score[:, None]) is None
    assert calibration_slope(score, np.array(correct)) is None


def test_values_that_mean_the_opposite_say_nothing() -> None:
    score = np.linspace(0.1, 0.9, 20)
    assert fitted_probability(score[:, None], (score < 0.5).astype(float), score[:, None]) is None
    assert calibration_slope(score, (score < 0.5).astype(float)) == 0.0
    assert calibration_slope(np.full(20, 0.5), (score < 0.5).astype(float)) is None
