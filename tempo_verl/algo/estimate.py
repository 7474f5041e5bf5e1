# SPDX-License-Identifier: Apache-2.0
"""What this round's labelled rollouts say of the critic's final values: fits of c(x, y) on them, and their slope."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

FEWEST_OF_A_KIND = 5  # right and wrong responses: fewer say nothing of a slope
NEAREST = 1e-3  # to 0 and to 1: a value beyond has the logit of this


def fitted_probability(features: FloatArray, correct: FloatArray, of: FloatArray) -> FloatArray | None:
    """P(right) by a logistic regression (Platt 1999) of labelled rollouts.

    Args:
        features: (N, F) of labelled responses; the first is the critic's final value, in [0, 1].
        correct: (N,) c(x, y) in {0, 1}.
        of: (M, F) the same of other responses.

    Returns:
        (M,) in [0, 1]. A feature after the first that would lower P(right) as it rises is left out: few labelled
        responses can make it seem so. None where the fit means nothing: fewer than 5 right or wrong ones, or a
        probability that falls as the value rises.
    """
    from sklearn.linear_model import LogisticRegression

    if min((correct == 1).sum(), (correct == 0).sum()) < FEWEST_OF_A_KIND:
        return None
    known, asked = _logit_first(features), _logit_first(of)
    used = list(range(known.shape[1]))
    while used:
        model = LogisticRegression().fit(known[:, used], correct)
        falls = [feature for feature, slope in zip(used, model.coef_[0], strict=True) if slope <= 0]
        if not falls:
            return model.predict_proba(asked[:, used])[:, 1] if 0 in used else None
        used = [feature for feature in used if feature not in falls]
    return None


def calibration_slope(score: FloatArray, correct: FloatArray) -> float | None:
    """The slope of a least-squares line of c(x, y) on the score, cut to [0, 1]: 1 where the critic's differences are
    real, 0 where they mean nothing (the power tuning of PPI++, Angelopoulos et al., arXiv 2311.01453).

    Args:
        score: (N,) final values of labelled responses, in [0, 1].
        correct: (N,) in {0, 1}.

    Returns:
        The slope; None where it means nothing: fewer than 5 right or wrong ones, or one score for all.
    """
    if min((correct == 1).sum(), (correct == 0).sum()) < FEWEST_OF_A_KIND or np.ptp(score) == 0:
        return None
    slope = np.cov(score, correct)[0, 1] / np.var(score, ddof=1)
    return float(np.clip(slope, 0.0, 1.0))


def _logit_first(features: FloatArray) -> FloatArray:
    value = np.clip(features[:, :1], NEAREST, 1 - NEAREST)
    return np.hstack([np.log(value / (1 - value)), features[:, 1:]])
