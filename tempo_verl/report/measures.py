# SPDX-License-Identifier: Apache-2.0
"""Validation of a run by set and round: from saved samples, or where there are none from the log; shares in [0, 1]."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from tempo_verl.algo.statistics import Estimate, QuestionKey, estimates, paired_difference
from tempo_verl.report.data import PASS_AT, Measures, RunData

SELECTED_BY = "heldout"  # the set whose accuracy chooses a run's best round: its answers may be looked at
SET_LABELS = {"unlabeled": "Unlabelled D_U", "heldout": "Held out"}
KINDS = ("avg", "pass", "maj", "distinct answers", "no answer found")
_LOGGED = re.compile(
    r"val-core/(?P<core>.+)/acc/(?P<measure>(?:mean|pass|maj)@\d+)|val-aux/(?P<aux>.+)/distinct_answers"
)

Scores = dict[str, dict[int, dict[str, Estimate]]]  # set -> round -> measure; the average of samples has an interval
Questions = dict[str, dict[int, dict[QuestionKey, Measures]]]  # set -> round -> those whose samples were saved


@dataclass(frozen=True)
class Validated:
    """What is known of each set in one phase of a run."""

    scores: Scores
    questions: Questions


def validated(run: RunData, phase: str = "tempo") -> Validated:
    """Rounds whose samples are gone are taken from the log, if the set is called as there."""
    sampled = run.validation.get(phase, {})
    short = _short_names({name for sets in sampled.values() for name in sets})
    questions: Questions = defaultdict(dict)
    scores: Scores = defaultdict(dict)
    for step, sets in sampled.items():
        for name, asked in sets.items():
            questions[short[name]][step] = asked
            means = estimates(asked.values(), interval=is_average)
            scores[short[name]][step] = dict(sorted(means.items(), key=lambda item: measure_order(item[0])))
    for name, steps in logged(run, phase).items():
        if name in questions or not questions:
            logged_only = {step: at for step, at in steps.items() if step not in scores[name]}
            scores[name] |= {step: {of: Estimate(v) for of, v in at.items()} for step, at in logged_only.items()}
    return Validated({name: dict(sorted(steps.items())) for name, steps in scores.items()}, dict(questions))


def sources(run: RunData) -> set[str]:
    """The data sources that its log says it was validated on."""
    names = {name for row in run.metrics.get("tempo", {}).values() for name in row}
    return {match["core"] for name in names if (match := _LOGGED.fullmatch(name)) and match["core"]}


def logged(run: RunData, phase: str = "tempo") -> dict[str, dict[int, dict[str, float]]]:
    """Set -> round -> measure -> value, from the metrics ``val-core/<data source>/acc/...``.

    ``mean@n`` is called ``avg@n``; of pass@k and maj@k, only as many are kept as one can read.
    """
    by_source: dict[str, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for step, row in run.metrics.get(phase, {}).items():
        for name, value in row.items():
            if match := _LOGGED.fullmatch(name):
                measure = (match["measure"] or "distinct answers").replace("mean@", "avg@")
                by_source[match["core"] or match["aux"]][step][measure] = value
    short = _short_names(by_source)
    return {short[source]: _shown(dict(sorted(steps.items()))) for source, steps in by_source.items()}


def _short_names(sources: Iterable[str]) -> dict[str, str]:
    """``<task>/heldout`` and ``<task>/unlabeled`` go by their last part, where no other source has the same."""
    last_parts = {source: source.rpartition("/")[2] for source in sources}
    count = Counter(last_parts.values())
    return {source: part if part in SET_LABELS and count[part] == 1 else source for source, part in last_parts.items()}


def _shown(steps: dict[int, dict[str, float]]) -> dict[int, dict[str, float]]:
    """avg@n, pass@4, pass@8, pass@n, maj@n and distinct answers: pass@1 and maj@1 are avg@n once more."""
    by_kind: dict[str, set[int]] = defaultdict(set)
    for measure in {measure for at in steps.values() for measure in at}:
        kind, _, k = measure.partition("@")
        by_kind[kind].add(int(k or 0))

    def wanted(measure: str) -> bool:
        kind, _, k = measure.partition("@")
        return (int(k or 0) == max(by_kind[kind]) and measure != "pass@1") or (kind == "pass" and int(k) in PASS_AT)

    return {step: {measure: value for measure, value in at.items() if wanted(measure)} for step, at in steps.items()}


def is_average(measure: str) -> bool:
    return measure.startswith("avg@")


def measure_order(measure: str) -> tuple[int, int]:
    """Sort key: the order in which to show measures."""
    kind, _, k = measure.partition("@")
    return KINDS.index(kind), int(k or 0)


def set_order(name: str) -> tuple[int, str]:
    """D_U, then the held-out set, then others by name."""
    known = list(SET_LABELS)
    return (known.index(name) if name in known else len(known)), name


def set_label(name: str) -> str:
    return SET_LABELS.get(name, name)


def change(early: tuple[Validated, int], late: tuple[Validated, int], name: str, measure: str) -> Estimate | None:
    """Late minus early, each of a run and in a round, of one measure on one set.

    Of an average it is paired by question, with its interval, over the questions in both; None if there are none.
    Else, or where no samples were saved, it is the difference of the means, without an interval.
    """
    before, after = (
        {key: of[measure] for key, of in run.questions.get(name, {}).get(step, {}).items() if measure in of}
        for run, step in (early, late)
    )
    if not is_average(measure) or not before or not after:
        first, last = (run.scores[name][step][measure].value for run, step in (early, late))
        return Estimate(last - first, questions=0)
    shared = [key for key in before if key in after]
    return paired_difference([before[key] for key in shared], [after[key] for key in shared]) if shared else None


def best_round(of: Scores) -> int | None:
    """The validation round with the highest accuracy on ``SELECTED_BY``; the earliest of equals."""
    steps = of.get(SELECTED_BY, {})
    found = [(value.value, -step) for step, at in steps.items() for name, value in at.items() if is_average(name)]
    return -max(found)[1] if found else None
