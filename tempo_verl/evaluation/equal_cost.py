# SPDX-License-Identifier: Apache-2.0
"""Is training worth it against sampling more? Votes of the starting policy beside those of the trained one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tempo_verl.algo.evaluation import question_measures, tally, vote_weights
from tempo_verl.algo.statistics import differences, estimates
from tempo_verl.errors import UserError
from tempo_verl.evaluation.samples import Sample, spelled, write_whole, written_samples
from tempo_verl.evaluation.summary import by_question, values_of

PREDICTIONS = "predictions.jsonl"  # as tempo-verl train calls it
FEWEST_VOTES = 8
MEASURES = ("avg", "pass@", "maj@", "weighted_maj@")
# of all samples, before and after: name here -> as question_measures calls it
OF_ALL = {"average": "avg", "majority": "maj@{n}", "weighted": "weighted_maj@{n}"}
WORDS = {
    "average": "one sample, on average",
    "majority": "majority vote",
    "weighted": "vote weighted by the critic",
}


def comparison_file(predictions: Path) -> Path:
    """Where a run that ends with ``predictions`` says whether training was worth it."""
    return predictions.with_name(f"{predictions.stem}_compared.json")


def before_file(predictions: Path) -> Path:
    """Where the answers of its starting policy are."""
    return predictions.with_name(f"{predictions.stem}_before{predictions.suffix}")


def predictions_of_run(folder: Path) -> tuple[Path, Path] | None:
    """The predictions of a finished run of ``tempo-verl train`` or ``quickstart``, and its comparison; None: no run.

    Raises:
        UserError: it has no comparison.
    """
    for predictions in (folder / PREDICTIONS, folder / "tempo" / PREDICTIONS):
        if predictions.is_file():
            if not (compared := comparison_file(predictions)).is_file():
                raise UserError(
                    f"{folder}: the run did not ask the policy that it started with (tempo.predictions.before); its "
                    f"answers are in {predictions}"
                )
            return predictions, compared
    return None


def votes_at(n: int) -> list[int]:
    """The k of a curve: 8, 16, 32, ... below n, and n."""
    return [k for power in range(n.bit_length()) if FEWEST_VOTES <= (k := 2**power) < n] + [n]


def compare(before: Sequence[Sample], after: Sequence[Sample], asked: tuple[int, int]) -> dict[str, Any]:
    """What votes of the starting policy and of the trained one make of the same questions.

    Args:
        before, after: samples of the same questions, by ``index``; those with a verdict have a ground truth.
        asked: samples a question that were asked for, before and after; those that failed gave no answer.

    Returns:
        ``questions`` in both and ``judged``, those of them with a ground truth; ``before`` and ``after``, each with
        ``samples`` a question and ``measures`` (name -> estimate): ``avg``, ``pass@k``, ``maj@k`` and
        ``weighted_maj@k`` over the judged ones for every k of :func:`votes_at`, the votes of k samples among all; and
        the winner's ``share`` of the votes, and ``weighted_share``. ``difference``: after minus before with all
        samples of each, paired by question: ``average``, ``majority``, ``weighted``. ``changed``: on how many questions
        ``majority`` and ``weighted`` elect another answer. What needs verdicts or a critic is absent without.
    """
    alike = spelled([*before, *after])  # what says the same is one answer on both sides
    sides = [
        {group[0].index: group for group in by_question(part)} for part in (alike[: len(before)], alike[len(before) :])
    ]
    shared = sorted(sides[0].keys() & sides[1].keys())
    rows = [[_measured(side[index], n) for index in shared] for side, n in zip(sides, asked, strict=True)]
    elected = [[_elected(side[index]) for index in shared] for side in sides]
    pairs = [tuple(_of_all(row, n) for row, n in zip(pair, asked, strict=True)) for pair in zip(*rows, strict=True)]
    early, late = (
        {"samples": n, "measures": {name: asdict(of) for name, of in estimates(of_side).items()}}
        for of_side, n in zip(rows, asked, strict=True)
    )
    votes = {name for of in (*elected[0], *elected[1]) for name in of}
    return {
        "questions": len(shared),
        "judged": sum("avg" in row for row in rows[0]),
        "before": early,
        "after": late,
        "difference": {name: asdict(of) for name, of in differences(pairs).items()},
        "changed": {
            vote: sum(first.get(vote) != last.get(vote) for first, last in zip(*elected, strict=True))
            for vote in ("majority", "weighted")
            if vote in votes
        },
    }


def _measured(samples: Sequence[Sample], n: int) -> dict[str, float]:
    """The measures of one question, of whose n samples some may have failed."""
    failed = n - len(samples)
    answers = [sample.answer for sample in samples] + [None] * failed
    known = all(sample.correct is not None for sample in samples)
    correct = [bool(sample.correct) for sample in samples] + [False] * failed if known else None
    values = values_of(samples)
    weights = None if values is None else vote_weights(values + [0.0] * failed)
    found = question_measures(answers, correct, weights, votes_at(n))
    measures = {name: value for name, value in found.items() if name.startswith(MEASURES)}
    measures["share"] = max((votes.count for votes in tally(answers).values()), default=0) / n
    if weights is not None:
        most_weight = max((votes.weight for votes in tally(answers, weights).values()), default=0.0)
        measures["weighted_share"] = most_weight / sum(weights) if sum(weights) > 0 else measures["share"]
    return measures


def _of_all(measures: dict[str, float], n: int) -> dict[str, float]:
    names = {name: called.format(n=n) for name, called in OF_ALL.items()}
    return {name: measures[called] for name, called in names.items() if called in measures}


def _elected(samples: Sequence[Sample]) -> dict[str, str | None]:
    answers, values = [sample.answer for sample in samples], values_of(samples)
    votes = {"majority": tally(answers)}
    if values is not None:
        votes["weighted"] = tally(answers, vote_weights(values))
    return {name: next(map(str, of), None) for name, of in votes.items()}


def compare_folders(before: Path, after: Path) -> dict[str, Any]:
    """As :func:`compare`, of two folders of samples. Their verdicts are not looked at.

    Raises:
        UserError: a folder holds no whole samples, or the questions are not the same.
    """
    sides = []
    for folder in (before, after):
        written = written_samples(folder)
        if written is None:
            raise UserError(f"{folder}: no samples in it; name a folder such as RUN/predictions_before.samples")
        sides.append((written[0]["n"], [replace(sample, correct=None) for sample in written[1]]))
    (n_before, early), (n_after, late) = sides
    first, second = ({sample.index: sample.hash for sample in samples} for samples in (early, late))
    differ = sum(first[index] != second[index] for index in first.keys() & second.keys())
    if differ or not first.keys() & second.keys():
        raise UserError(f"{before}: samples of other questions than those in {after}; name those of the same file")
    return compare(early, late, (n_before, n_after))


def write_comparison(path: Path, compared: dict[str, Any]) -> None:
    """Write it whole."""
    write_whole(path, json.dumps(compared, indent=2) + "\n")


def read_comparison(path: Path) -> dict[str, Any]:
    """What :func:`write_comparison` wrote.

    Raises:
        UserError: it cannot be read, or is no comparison.
    """
    try:
        compared = json.loads(path.read_text(encoding="utf-8"))
        told(compared)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no comparison of a run's answers ({type(error).__name__}: {error})") from error
    return compared


def told(compared: dict[str, Any]) -> list[str]:
    """The comparison in plain words, a line each."""
    before, after = compared["before"], compared["after"]
    n_before, n_after, equal = before["samples"], after["samples"], compared.get("equal")
    cost = "" if equal is None else f" ({n_before / equal:.0%} of the {equal:,} that the whole run drew)"
    cost = " (as many as the whole run drew: equal cost)" if n_before == equal else cost
    lines = [
        f"{compared['questions']} questions; before, {n_before:,} samples of each{cost}; after, {n_after:,} of each"
    ]
    for name, change in compared["difference"].items():
        called = OF_ALL[name]
        early = before["measures"][called.format(n=n_before)]["value"]
        late = after["measures"][called.format(n=n_after)]["value"]
        lines.append(f"{WORDS[name]}: {early:.1%} right before, {late:.1%} after, {_points(change)}")
    if not compared["judged"]:
        lines.append("which answers are right is not known here")
    for name, count in compared["changed"].items():
        share = {"majority": "share", "weighted": "weighted_share"}[name]
        early, late = (side["measures"][share]["value"] for side in (before, after))
        lines.append(
            f"{WORDS[name]}: another answer to {count} of {compared['questions']} questions; the winner's share is "
            f"{early:.1%} before, {late:.1%} after"
        )
    return lines


def _points(change: dict[str, Any]) -> str:
    value = f"{100 * change['value']:+.1f} points"
    if change["low"] is None:
        return value
    return f"{value} [{100 * change['low']:+.1f}, {100 * change['high']:+.1f}]"
