# SPDX-License-Identifier: Apache-2.0
"""E-step loss and calibration measures on numbers worked by hand."""

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from torchmetrics.functional.classification import binary_calibration_error

from tempo_verl.algo.calibration import calibration_loss, calibration_metrics, position_mask, reliability

MASK = torch.tensor([[1, 1], [0, 0], [1, 0]])
VALUES = torch.tensor([[0.5, 0.0, 1.0], [9.0, 9.0, 9.0], [0.5, 0.25, 9.0]])
TARGET = torch.tensor([1.0, 1.0, 0.0])
# squared errors at valid positions: row 0: 0.25, 1, 0 (mean 1.25 / 3); row 2: 0.25, 0.0625 (mean 0.15625)


def test_position_mask_has_the_prompt_in_front() -> None:
    assert position_mask(MASK).tolist() == [[1, 1, 1], [0, 0, 0], [1, 1, 0]]
    # tool token in the middle, and a response that starts with one: V(x) still counts
    assert position_mask(torch.tensor([[1, 0, 1], [0, 1, 0]])).tolist() == [[1, 1, 0, 1], [1, 0, 1, 0]]
    assert position_mask(MASK.bool()).dtype == torch.bool
    assert position_mask(MASK.float()).dtype == torch.float32


def test_token_mean() -> None:
    # (0.25 + 1 + 0 + 0.25 + 0.0625) / 5 = 1.5625 / 5 = 0.3125
    assert float(calibration_loss(VALUES, TARGET, position_mask(MASK))) == pytest.approx(0.3125)


def test_seq_mean_token_mean() -> None:
    # (1.25 / 3 + 0.15625) / 2, the empty row is no row
    loss = calibration_loss(VALUES, TARGET, position_mask(MASK), "seq-mean-token-mean")
    assert float(loss) == pytest.approx((1.25 / 3 + 0.15625) / 2)


def test_global_denominators() -> None:
    mask = position_mask(MASK)
    assert float(calibration_loss(VALUES, TARGET, mask, num_positions=10)) == pytest.approx(0.15625)
    loss = calibration_loss(VALUES, TARGET, mask, "seq-mean-token-mean", num_sequences=torch.tensor(4))
    assert float(loss) == pytest.approx((1.25 / 3 + 0.15625) / 4)
    with pytest.raises(ValueError, match="num_positions"):
        calibration_loss(VALUES, TARGET, mask, num_positions=0)


def test_the_gradient_is_twice_the_error_over_the_number_of_positions() -> None:
    values = VALUES.clone()
    values[1], values[2, 2] = float("nan"), float("nan")  # padding may hold anything
    values.requires_grad_()
    calibration_loss(values, TARGET, position_mask(MASK)).backward()
    # 2 (V - c) / 5: row 0: -0.2, -0.4, 0; row 2: 0.2, 0.1
    torch.testing.assert_close(values.grad, torch.tensor([[-0.2, -0.4, 0.0], [0.0, 0.0, 0.0], [0.2, 0.1, 0.0]]))


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_nothing_valid_is_a_differentiable_zero(mode: str) -> None:
    values = torch.ones(2, 3, requires_grad=True)
    loss = calibration_loss(values, torch.zeros(2), torch.zeros(2, 3), mode)
    loss.backward()
    assert loss.item() == 0
    assert values.grad is not None and not values.grad.any()


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="loss_agg_mode"):
        calibration_loss(VALUES, TARGET, position_mask(MASK), "mean")
    with pytest.raises(ValueError, match="same shape"):
        calibration_loss(VALUES, TARGET, MASK)
    with pytest.raises(ValueError, match="target must have shape"):
        calibration_loss(VALUES, TARGET[:, None], position_mask(MASK))


SCORE, CORRECT = [0.9, 0.7, 0.6, 0.2], [1, 1, 0, 0]


def test_metrics_by_hand() -> None:
    got = calibration_metrics(np.array(SCORE), np.array(CORRECT))
    # V - c = -0.1, -0.3, 0.6, 0.2: mean 0.1; squares .01 + .09 + .36 + .04 = 0.5
    # each score sits alone in a bin of width 1/15: ECE = (0.1 + 0.3 + 0.6 + 0.2) / 4 = 0.3
    # both right scores exceed both wrong ones: AUROC 1
    # var(c - V) = 0.5 / 4 - 0.01 = 0.115, var(c) = 0.25: 1 - 0.46 = 0.54
    expected = {
        "accuracy": 0.5, "value_mean": 0.6, "gap": 0.1, "brier": 0.125, "ece": 0.3, "auroc": 1.0,
        "explained_variance": 0.54,
    }  # fmt: skip
    assert got == pytest.approx(expected)
    assert all(type(value) is float for value in got.values())


def test_metrics_take_tensors_and_bools() -> None:
    expected = calibration_metrics(SCORE, CORRECT)
    assert calibration_metrics(torch.tensor(SCORE, dtype=torch.float64), torch.tensor(CORRECT).bool()) == expected
    loose = calibration_metrics(torch.tensor(SCORE, dtype=torch.bfloat16, requires_grad=True), torch.tensor(CORRECT))
    assert loose == pytest.approx(expected, abs=1e-2)


def test_auroc_counts_ordered_pairs() -> None:
    # right 0.8, 0.4; wrong 0.6, 0.4: pairs won: 0.8 twice, 0.4 loses to 0.6 and ties with 0.4 -> 2.5 of 4
    assert calibration_metrics([0.8, 0.4, 0.6, 0.4], [1, 1, 0, 0])["auroc"] == pytest.approx(0.625)


def test_ece_pools_scores_of_one_bin_and_clips() -> None:
    # 0.41 and 0.45 share bin [6/15, 7/15): mean 0.43, accuracy 0.5, gap 0.07, weight 2/4
    # 1.5 clips to 1 and joins 0.95 in [14/15, 1]: mean 0.975, accuracy 1, gap 0.025, weight 2/4
    got = calibration_metrics([0.41, 0.45, 1.5, 0.95], [0, 1, 1, 1])
    assert got["ece"] == pytest.approx(0.5 * 0.07 + 0.5 * 0.025)
    # the Brier score sees the score as it is: (.41^2 + .55^2 + .5^2 + .05^2) / 4
    assert got["brier"] == pytest.approx((0.1681 + 0.3025 + 0.25 + 0.0025) / 4)


@pytest.mark.parametrize("correct", [[1, 1], [0, 0]])
def test_one_class_has_no_auroc_and_no_explained_variance(correct: list[int]) -> None:
    assert set(calibration_metrics([0.3, 0.4], correct)) == {"accuracy", "value_mean", "gap", "brier", "ece"}


def test_nothing_in_nothing_out() -> None:
    assert calibration_metrics([], []) == {}
    assert len(reliability(torch.tensor([]), torch.tensor([])).count) == 0


def test_bad_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        calibration_metrics([0.1, 0.2], [1])
    with pytest.raises(ValueError, match="1 non-finite"):
        calibration_metrics([0.1, float("nan")], [1, 0])
    with pytest.raises(ValueError, match="0 or 1"):
        calibration_metrics([0.1, 0.2], [1, -1])  # a +-1 reward is not correctness


def test_reliability_by_hand() -> None:
    # width 0.25: -0.3 -> 0 and 0.1 in the first bin, none in the second, 0.5 (lower edge) in the third, 1.0 in the last
    curve = reliability([-0.3, 0.1, 0.5, 1.0], [0, 1, 1, 0], bins=4)
    assert curve.centers.tolist() == [0.125, 0.625, 0.875]
    assert curve.mean_score.tolist() == pytest.approx([0.05, 0.5, 1.0])
    assert curve.accuracy.tolist() == [0.5, 1.0, 0.0]
    assert curve.count.tolist() == [2, 1, 1]
    with pytest.raises(ValueError, match="bins"):
        reliability([0.1], [1], bins=0)


def test_agreement_with_scikit_learn_and_torchmetrics() -> None:
    random = np.random.default_rng(0)
    score = random.random(500)
    correct = random.random(500) < score**2
    accuracy, mean_score = calibration_curve(correct, score, n_bins=10)
    curve = reliability(score, correct)
    np.testing.assert_allclose(curve.accuracy, accuracy)
    np.testing.assert_allclose(curve.mean_score, mean_score)
    expected = binary_calibration_error(torch.tensor(score), torch.tensor(correct).long(), n_bins=15, norm="l1")
    assert calibration_metrics(score, correct)["ece"] == pytest.approx(float(expected), abs=1e-6)
