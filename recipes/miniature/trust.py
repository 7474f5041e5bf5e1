# SPDX-License-Identifier: Apache-2.0
"""Do probabilities that are calibrated on labelled questions hold on D_U? From what rehearsed policies answered.

    python recipes/miniature/trust.py runs/rehearsal

Fits are on questions of D_L that were trained on, and on held-out ones like them. ``as shipped``: vote share and
critic's value of the winner. The others add what could show a shift without labels: the winner's share of the plain
vote, whether plain and weighted vote agree, and the share of right answers that makes the features of D_U most likely
(EM, Saerens et al. 2002).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from rehearse import N
from results import run_script
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tempo_verl.algo.calibration import calibration_metrics
from tempo_verl.algo.evaluation import majority_vote, tally, vote_weights
from tempo_verl.errors import UserError

FEATURES = {
    "as shipped": ("share", "value"),
    "with plain share": ("share", "value", "plain"),
    "with agreement": ("share", "value", "agree"),
    "plain vote alone": ("plain",),
}
EM = "as shipped, EM"
MOST_STEPS, CLOSE = 1000, 1e-6


def elections(samples: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A row for each question with an answer: features of its winner, and whether that is right."""
    rows = []
    for start in range(0, len(samples), N):
        group = samples[start : start + N]
        answers, weights = [one["answer"] for one in group], vote_weights([one["value"] for one in group])
        votes = tally(answers, weights)
        if not votes:
            continue
        winner = next(iter(votes))
        won = votes[winner]
        rows.append(
            {
                "share": won.weight / sum(weights) if sum(weights) > 0 else won.count / N,
                "value": won.weight / won.count,
                "plain": won.count / N,
                "agree": float(winner == majority_vote(answers)),
                "right": any(one["correct"] for one in group if one["answer"] == winner),
            }
        )
    return pd.DataFrame(rows)


def fitted(known: pd.DataFrame, names: Sequence[str]) -> Callable[[pd.DataFrame], np.ndarray] | None:
    """P(right) by logistic regression, without features that would lower it, as ``tempo-verl answer`` fits it.

    Returns:
        None where all answers are right, or all wrong, or no feature is left.
    """
    used = list(names) if known["right"].nunique() > 1 else []
    while used:
        model = make_pipeline(StandardScaler(), LogisticRegression()).fit(known[used], known["right"])
        rise = [name for name, slope in zip(used, model[-1].coef_[0], strict=True) if slope >= 0]
        if rise == used:
            return lambda asked: model.predict_proba(asked[used])[:, 1]
        used = rise
    return None


def shifted(probability: np.ndarray, known: float) -> np.ndarray:
    """Probabilities under the share of right answers that makes them most likely.

    Args:
        probability: (N,) fitted where the share of right answers is ``known``.
    """
    prior, moved = known, probability
    for _ in range(MOST_STEPS):
        right, wrong = probability * prior / known, (1 - probability) * (1 - prior) / (1 - known)
        moved = right / (right + wrong)
        if abs(moved.mean() - prior) < CLOSE:
            break
        prior = float(moved.mean())
    return moved


def judged(path: Path) -> list[dict[str, Any]]:
    """Every way to fit, of one policy, on D_U."""
    sets = {name: elections(samples) for name, samples in json.loads(path.read_text()).items()}
    rows = []
    asked = sets["unlabeled"]
    for fitted_on in ("labeled", "heldout"):
        known = sets[fitted_on]
        probabilities = {name: of(asked) for name, names in FEATURES.items() if (of := fitted(known, names))}
        if "as shipped" in probabilities:
            probabilities[EM] = shifted(probabilities["as shipped"], known["right"].mean())
        for name, probability in probabilities.items():
            found = calibration_metrics(probability, asked["right"].astype(float))
            about = {"seed": path.parent.name, "method": path.name.split(".")[0], "fitted on": fitted_on, "way": name}
            rows.append(about | {"probability": found["value_mean"], "right": found["accuracy"], **{
                measure: found[measure] for measure in ("gap", "brier", "ece")}})  # fmt: skip
    return rows


def main(folder: Annotated[Path, typer.Argument(help="Folder of a rehearsal.")]) -> None:
    """Print means over the rehearsed policies, and write each one's numbers to trust.csv."""
    files = sorted(folder.glob("seed_*/*.samples.json"))
    if not files:
        raise UserError(f"{folder}: no seed_*/*.samples.json; name a folder that rehearse.py has finished")
    every = pd.DataFrame([row for path in files for row in judged(path)])
    if every.empty:
        print(f"{len(files)} policies\nnone of them with both right and wrong answers to labelled questions")
        return
    every.round(4).to_csv(folder / "trust.csv", index=False)
    every["distance"] = every["gap"].abs()
    numbers = ["probability", "right", "gap", "distance", "brier", "ece"]
    means = every.groupby(["fitted on", "way"], sort=False)[numbers].mean()
    print(f"{len(files)} policies\n{means.round(3).to_string()}")


if __name__ == "__main__":
    run_script(main)
