# SPDX-License-Identifier: Apache-2.0
"""What a miniature shows: the paper's claims, and what a method with labels in the policy's loss is to reach.

Each is a difference within every seed, with its interval over the seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

# methods and variants that are held against these goals, and what they are to beat
WITH_LABELS = ("tempo_pp", "true_reward", "both")
RIVALS = ("frozen_critic", "ppo", "official")


@dataclass(frozen=True)
class Claim:
    """A difference that a claim says is above ``least``, seed by seed, and in the mean ``mean`` or more."""

    text: str
    differences: np.ndarray
    least: float = 0.0
    mean: float = -np.inf

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the mean over seeds (Student's t)."""
        mean = float(self.differences.mean())
        half = float(stats.t.ppf(0.975, len(self.differences) - 1) * stats.sem(self.differences))
        return mean - half, mean + half

    @property
    def verdict(self) -> str:
        """What the interval says of the claim."""
        low, high = self.interval
        if high <= self.least or (low > self.least and self.differences.mean() < self.mean):
            return "does not hold"
        return "holds" if low > self.least else "undecided"


def claims(metrics: pd.DataFrame) -> list[Claim]:
    """The paper's claims, and :func:`goals`; those that two seeds or more have something to say of."""
    last = metrics["round"].max()

    def at(method: str, column: str, number: int = last) -> pd.Series:
        return _at(metrics, method, column, number)

    def change(method: str, column: str) -> pd.Series:
        return at(method, column) - at(method, column, 0)

    present, found = set(metrics["method"]), []

    def claim(text: str, needed: Sequence[str], difference, least: float = 0.0) -> None:
        if present >= set(needed):
            differences = difference().dropna().to_numpy(dtype=float)
            if len(differences) > 1:
                found.append(Claim(text, differences, least))

    claim("TEMPO gains over its start", ["tempo"], lambda: change("tempo", "accuracy"))
    for other in ("frozen_critic", "ttrl", "empo", "ppo", "grpo", "official", "random_reward"):
        claim(
            f"TEMPO ends above `{other}`",
            ["tempo", other],
            lambda other=other: at("tempo", "accuracy") - at(other, "accuracy"),
        )
    claim("`oracle` ends above TEMPO", ["tempo", "oracle"], lambda: at("oracle", "accuracy") - at("tempo", "accuracy"))
    for other in ("ttrl", "empo"):
        claim(f"`{other}` loses pass@8", [other], lambda other=other: -change(other, "pass@8"))
        claim(f"`{other}` loses distinct answers", [other], lambda other=other: -change(other, "distinct"))
    claim("TEMPO keeps pass@8 (change above -5 points)", ["tempo"], lambda: change("tempo", "pass@8"), -0.05)
    claim(
        "recalibration: AUROC on D_U ends above the frozen critic's",
        ["tempo", "frozen_critic"],
        lambda: at("tempo", "auroc_unlabeled") - at("frozen_critic", "auroc_unlabeled"),
    )
    claim(
        "recalibration: fewer wrong steps are marked y than with the frozen critic",
        ["tempo", "frozen_critic"],
        lambda: at("frozen_critic", "wrong_marked_y") - at("tempo", "wrong_marked_y"),
    )
    first = metrics.loc[metrics["round"] > 0, "round"].min()
    for column, where in (("auroc_labeled", "D_L"), ("auroc_unlabeled", "D_U")):
        claim(
            f"TEMPO holds AUROC on {where} (last against first rounds, above -0.05)",
            ["tempo"],
            lambda column=column: at("tempo", column) - at("tempo", column, first),
            -0.05,
        )
    claim(
        "TEMPO does not decay (last round against its best, above -5 points)",
        ["tempo"],
        lambda: at("tempo", "accuracy") - metrics[metrics["method"] == "tempo"].groupby("seed")["accuracy"].max(),
        -0.05,
    )
    return found + [goal for method in WITH_LABELS if method in present for goal in goals(metrics, method)]


def goals(metrics: pd.DataFrame, method: str) -> list[Claim]:
    """What a method that has labels in the policy's loss is to reach beside those that are there."""
    last, present = metrics["round"].max(), set(metrics["method"])
    found = []

    def differ(column: str, other: str, factor: float = 1.0) -> np.ndarray:
        differences = _at(metrics, method, column, last) - factor * _at(metrics, other, column, last)
        return differences.dropna().to_numpy(dtype=float)

    for other in (name for name in RIVALS if name in present):
        found.append(Claim(f"`{method}` ends 5 points above `{other}`", differ("accuracy", other), 0.0, 0.05))
    if "ppo" in present:
        text = f"`{method}` ends less than 2 points below `ppo` on held-out questions"
        found.append(Claim(text, differ("heldout", "ppo"), -0.02))
    if "tempo" in present:
        found.append(Claim(f"`{method}` ends above TEMPO", differ("accuracy", "tempo")))
        text = f"`{method}` marks y at most half as many wrong steps as TEMPO"
        found.append(Claim(text, -differ("wrong_marked_y", "tempo", 0.5)))
    auroc = _at(metrics, method, "auroc_unlabeled", last).dropna().to_numpy(dtype=float)
    found.append(Claim(f"`{method}` has an AUROC on D_U above .85 at the end", auroc - 0.85))
    return [goal for goal in found if len(goal.differences) > 1]


def _at(metrics: pd.DataFrame, method: str, column: str, number: int) -> pd.Series:
    """By seed, what a method had in a round."""
    rows = metrics[(metrics["method"] == method) & (metrics["round"] == number)]
    return rows.set_index("seed")[column]


def agreement(one: pd.DataFrame, other: pd.DataFrame) -> str:
    """How alike two tables order the methods and seeds that both have, by accuracy on D_U at the last round.

    Kendall's tau is 1 where the order of the methods is the same, 0 where one says nothing of the other.
    """
    last = [
        part[part["round"] == part["round"].max()].set_index(["method", "seed"])["accuracy"] for part in (one, other)
    ]
    both = pd.concat(last, axis=1, join="inner", keys=["one", "other"])
    means = both.groupby("method").mean()
    apart = 100 * (means["one"] - means["other"])
    tau = stats.kendalltau(means["one"], means["other"]).statistic
    seeds = ", ".join(map(str, both.index.unique("seed")))
    return (
        f"{len(means)} methods and the seeds {seeds} are in both; Kendall's tau of the methods' means "
        f"{tau:.2f}; difference {apart.mean():+.1f} points in the mean, {apart.abs().max():.1f} at most "
        f"(`{apart.abs().idxmax()}`)"
    )


def claims_table(found: Sequence[Claim]) -> str:
    """The claims as a Markdown table."""
    lines = ["| claim | difference, 95 % interval over seeds | |", "|---|---|---|"]
    for claim in found:
        low, high = claim.interval
        difference = f"{claim.differences.mean():+.3f} ({low:+.3f} to {high:+.3f})"
        lines.append(f"| {claim.text} | {difference} | {claim.verdict} |")
    return "\n".join(lines)
