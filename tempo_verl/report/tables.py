# SPDX-License-Identifier: Apache-2.0
"""The tables of a report, as text: the same ones on the page, in ``table.md`` and on the console."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy.typing as npt
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table as RichTable
from scipy.stats import binomtest

from tempo_verl.evaluation.equal_cost import WORDS, votes_at
from tempo_verl.markdown import cell
from tempo_verl.report.measures import SELECTED_BY, set_label
from tempo_verl.report.results import Measured, Results, Scores, Trust
from tempo_verl.report.style import BINS
from tempo_verl.report.words import (
    CHANGE,
    NONE,
    PLAIN,
    POINTS,
    SHARE,
    Unit,
    alarm_lines,
    average_of,
    oracle_note,
    rounds_of,
    short,
    text,
    time,
    trust_sentence,
    verdict_sentence,
)

TRUST = "How far to trust the probabilities (oracle monitoring)"
WORTH = "Is training worth it against sampling more?"
COLUMNS = {
    "avg": "one sample",
    "maj": "majority",
    "weighted_maj": "weighted vote",
    "pass": "any right",
    "share": "winner's votes",
    "weighted_share": "its weight",
}
ONCE = ("share", "weighted_share")  # measured on all samples alone
OF_ALL = {"avg": "average", "maj": "majority", "weighted_maj": "weighted"}
TIMING_ROWS = 12
TIMING_LABELS = {
    "gen": "generation",
    "e_step": "E-step",
    "m_step": "M-step",
    "step": "whole round",
    "testing": "validation",
    "save_checkpoint": "saving checkpoints",
}
SPREAD_NOTE = "± is one sample standard deviation over the runs of a group."
INTERVAL_NOTE = (
    "Brackets are bootstrap 95 % intervals over questions (1000 resamples, fixed seed); the change is paired by "
    "question. They do not cover the difference another training seed would make."
)
TERMS = {
    "avg": "share of right answers over n samples, which is also pass@1",
    "pass": "chance that at least one of k samples is right (unbiased estimate)",
    "maj": "share of questions whose most frequent answer is right; its “before” is what voting gives without training",
    "distinct answers": "how many different answers the n samples of a question give, on average",
    "no answer found": "share of samples from which no answer could be read",
}


@dataclass(frozen=True)
class Table:
    """A table as text: ``names`` columns of words on the left, then numbers. ``terms`` explains words in it.

    ``by_set``: rows with the same first cell belong together, below it as their heading.
    """

    title: str
    heads: list[str]
    rows: list[list[str]]
    note: str = ""
    names: int = 1
    by_set: bool = False
    terms: dict[str, str] = field(default_factory=dict)


def main_tables(results: Results) -> list[Table]:
    """What was measured, the table to print first."""
    tables = [] if results.single else [_summary(results)]
    return _shown(results, [*tables, _before_and_after(results), _equal_cost(results), _paired(results)])


def further_tables(results: Results) -> list[Table]:
    """How the critic was, where the time went, and what was compared."""
    tables = [_trust(results), _trust_by_bin(results), _calibration(results), _phases(results), _times(results)]
    return _shown(results, tables if results.single else [*tables, _differences(results), _runs(results)])


def _shown(results: Results, tables: Iterable[Table]) -> list[Table]:
    """Those with rows, without a column for the group where there is one, or for the best round of a single run."""
    told = {"group"} if len(results.groups) == 1 else set()
    told |= {"at its best round"} if results.single else set()
    shown = []
    for table in filter(lambda table: table.rows, tables):
        kept = [number for number, head in enumerate(table.heads) if head not in told]
        heads, *rows = ([row[number] for number in kept] for row in (table.heads, *table.rows))
        shown.append(replace(table, heads=heads, rows=rows, names=sum(number < table.names for number in kept)))
    return shown


def _summary(results: Results) -> Table:
    columns = [(name, average) for name, measures in results.measures.items() if (average := average_of(measures))]
    _, apart = _common_rounds(results)
    rows = []
    for group in results.groups:
        changes = [_start_to_last(group.scores.get(name, {}).get(measure), apart) for name, measure in columns]
        auroc = " → ".join(short(group.calibration.get(which, {}).get("auroc"), PLAIN) for which in ("first", "last"))
        raised = sum(bool(member.alarms.raised) for member in group.members)
        alarms = f"{raised} of {len(group.members)} runs" if any(m.alarms.watched for m in group.members) else NONE
        rows.append([group.name, str(len(group.members)), alarms, *changes, auroc if group.calibration else NONE])
    heads = ["group", "runs", "alarms", *(f"{measure}, {set_label(name)}" for name, measure in columns), "AUROC on D_L"]
    note = "From the first to the last validation, or calibrating rounds."
    return Table("Summary", heads, rows, f"{note} {SPREAD_NOTE}" if _has(rows, "±") else note)


def _has(rows: list[list[str]], mark: str) -> bool:
    return any(mark in cell for row in rows for cell in row)


def _start_to_last(scores: Scores | None, apart: bool) -> str:
    if scores is None:
        return NONE
    if scores.last is None:
        return text(scores.start and replace(scores.start, low=None, high=None), SHARE)
    said = f"{short(scores.start, SHARE)} → {short(scores.last, SHARE)} %"
    return f"{said} (round {scores.rounds[1]})" if apart else said


def _common_rounds(results: Results) -> tuple[list[int | None], bool]:
    """The first and the last round of all groups, None where they are not the same, and whether the last is not."""
    every = [scores for group in results.groups for of in group.scores.values() for scores in of.values()]
    found = [{scores.rounds[which] for scores in every} - {None} for which in (0, 1)]
    return [rounds.pop() if len(rounds) == 1 else None for rounds in found], len(found[1]) > 1


def _before_and_after(results: Results) -> Table:
    """Every measure of every set; a group whose rounds are not those of the heads says which it means."""
    common, _ = _common_rounds(results)
    words = zip(("before", "after"), common, strict=True)
    heads = [word if at is None else f"{word} (round {at})" for word, at in words]
    rows = []
    for name, measures in results.measures.items():
        for measure in measures:
            counts = measure == "distinct answers"
            unit, difference = (PLAIN, CHANGE) if counts else (SHARE, POINTS)
            for group in results.groups:
                if scores := group.scores.get(name, {}).get(measure):
                    ends = [
                        text(value, unit) + (f" (round {at})" if value and same is None else "")
                        for value, at, same in zip((scores.start, scores.last), scores.rounds, common, strict=True)
                    ]
                    change = text(scores.change, difference)
                    rows.append([set_label(name), measure, group.name, *ends, change, text(scores.best, unit)])
    heads = ["set", "measure", "group", *heads, "change", "at its best round"]
    note = [INTERVAL_NOTE] * _has(rows, "[") + [SPREAD_NOTE] * _has(rows, "±")
    if not results.single:
        note.append(
            f"The best round is that with a run's highest accuracy on {set_label(SELECTED_BY)!r}, on which it "
            "therefore looks better than it is; the answers of D_U have no say in it."
        )
    kinds = {measure.partition("@")[0] for measures in results.measures.values() for measure in measures}
    shown = {"avg": "avg@n", "pass": "pass@k", "maj": "maj@n"}
    terms = {shown.get(kind, kind): meaning for kind, meaning in TERMS.items() if kind in kinds}
    return Table("Before and after", heads, rows, " ".join(note), names=3, by_set=True, terms=terms)


def _equal_cost(results: Results) -> Table:
    """A row for each number of voting samples, before training and after it, and the difference of all."""
    found = [(group.name, group.equal_cost) for group in results.groups if group.equal_cost is not None]
    kinds = [
        kind for kind in COLUMNS if any(kind in (name, name.partition("@")[0]) for _, of in found for name in of.before)
    ]
    rows = []
    for name, of in found:
        n_before, n_after = of.samples
        for when, n, measured in (("before", n_before, of.before), ("after", n_after, of.after)):
            for k in votes_at(n):
                cells = [measured.get(kind if kind in (*ONCE, "avg") else f"{kind}@{k}") for kind in kinds]
                shown = [None if kind in ONCE and k < n else one for kind, one in zip(kinds, cells, strict=True)]
                rows.append([name, when, f"{k:,}", *map(_percent, shown)])
        if of.difference:
            changes = [text(of.difference.get(OF_ALL.get(kind, "")), POINTS) for kind in kinds]
            rows.append([name, "difference", f"{n_after:,} against {n_before:,}", *changes])
    heads = ["group", "answers", "samples", *map(COLUMNS.__getitem__, kinds)]
    return Table(WORTH, heads, rows, " ".join(_equal_cost_notes(results)), names=2)


def _percent(measured: Measured | None) -> str:
    return NONE if measured is None else f"{short(measured, SHARE)} %"


def _equal_cost_notes(results: Results) -> Iterator[str]:
    yield (
        "Answers to D_U by the policy, and critic, that the run started with, and by the trained one; samples a "
        "question. The weights of a vote are the critic's values. Of fewer samples than there are, the vote is the "
        "mean over choices among them."
    )
    for group in results.groups:
        if (of := group.equal_cost) is None:
            continue
        n, the = of.samples[0], "The" if len(results.groups) == 1 else f"{group.name}: the"
        drew = f"{the} whole run drew {of.equal:,} samples for each question of D_U, in its rounds and its answers"
        yield drew + (
            ", and as many were drawn before it: equal cost."
            if n == of.equal
            else f"; before it {n:,} were drawn, {n / of.equal:.0%} of that."
        )
        for vote, share in of.changed.items():
            yield f"{WORDS[vote].capitalize()}: another answer to {_percent(share)} of {of.questions} questions."
    yield "Only samples are counted, not the updates of the models, which training costs beside them."
    if any(group.equal_cost and group.equal_cost.difference for group in results.groups):
        yield "The difference is paired by question."


def _paired(results: Results) -> Table:
    rows = [
        [
            one.group,
            f"{one.measure}, {set_label(one.set)}",
            ", ".join(map(str, one.rounds)),
            text(one.difference, POINTS),
            str(one.difference.runs),
        ]
        for one in results.paired
    ]
    first = results.groups[0].name
    note = (
        f"What {first} has is subtracted from what the run with the same seeds has, in the last round in which both "
        "were validated. ± is one standard deviation over pairs, brackets are an interval over questions."
    )
    heads = ["group", "measure", "round", "difference", "pairs"]
    return Table(f"Against {first}, paired by seeds", heads, rows, note, names=2)


def _calibration(results: Results) -> Table:
    labels = {"auroc": "AUROC", "gap": "gap V − c", "brier": "Brier", "ece": "ECE"}
    unit = Unit(digits=3)
    rows = [
        [group.name, f"{which} {rounds_of(group.rounds[which])}", *(text(found.get(key), unit) for key in labels)]
        for group in results.groups
        for which, found in group.calibration.items()
    ]
    note = (
        "Measured in each round on its fresh labelled rollouts, before the round's E-step; then the mean over these "
        "rounds, and over the runs of a group."
    )
    heads = ["group", "rounds", *labels.values()]
    return Table("Calibration of the critic on D_L", heads, rows, note, names=2)


def _trust(results: Results) -> Table:
    """Mean probability against the share that is right, and scores of both."""
    labels = {"value_mean": "mean probability", "accuracy": "right"}
    scores = {"brier": "Brier", "ece": "ECE", "auroc": "AUROC"}
    unit = Unit(digits=3)
    rows = [
        [
            group.name,
            str(of.questions),
            *(_percent(of.measures.get(key)) for key in labels),
            *(text(of.measures.get(key), unit) for key in scores),
        ]
        for group in results.groups
        if (of := group.trust) is not None
    ]
    fitted = [group.trust.calibrated for group in results.groups if group.trust is not None]
    note = "Known only because D_U has answers to watch the run by; they have no part in the probabilities. "
    if all(fitted):
        note += "These are calibrated on labelled questions, and cannot know how far D_U is from those."
    elif not any(fitted):
        note += "These are not calibrated on labelled questions: critic's values, or shares of the votes."
    else:
        note += "Those of some runs are not calibrated on labelled questions."
    heads = ["group", "questions", *labels.values(), *scores.values()]
    return Table(TRUST, heads, rows, note)


def _trust_by_bin(results: Results) -> Table:
    """The points of the reliability diagram, of one group."""
    of = results.groups[0].trust if len(results.groups) == 1 else None
    rows = []
    for center, mean, right, count in zip(*_points(of), strict=True) if of else ():
        low, high = binomtest(round(right * count), int(count)).proportion_ci(method="wilson")
        share = f"{100 * right:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
        rows.append(
            [f"{center - 0.5 / BINS:.1f} to {center + 0.5 / BINS:.1f}", str(count), f"{100 * mean:.0f} %", share]
        )
    heads = ["probability", "questions", "mean probability", "right"]
    return Table("The same by probability", heads, rows, "Brackets are Wilson's 95 % intervals of the share.")


def _points(of: Trust) -> tuple[npt.NDArray, ...]:
    return of.curve.centers, of.curve.mean_score, of.curve.accuracy, of.curve.count


def _phases(results: Results) -> Table:
    rows = [[phase.replace("_", " "), g.name, time(took)] for g in results.groups for phase, took in g.phases.items()]
    note = "Parts of a run that was interrupted and resumed add up."
    return Table("Where the time went", ["phase", "group", "time"], rows, note, names=2)


def _times(results: Results) -> Table:
    parts = list(dict.fromkeys(part for group in results.groups for part in group.seconds))[:TIMING_ROWS]
    rows = [
        [TIMING_LABELS.get(part, part.replace("_", " ")), group.name, time(times.median), time(times.total)]
        for part in parts
        for group in results.groups
        if (times := group.seconds.get(part))
    ]
    note = "Parts can contain one another, so they do not add up."
    return Table("Inside the rounds", ["part", "group", "median of a round", "all rounds"], rows, note, names=2)


def _differences(results: Results) -> Table:
    rows = [
        [", ".join(difference.keys), *(NONE if value is None else value for value in difference.values)]
        for difference in results.differences
    ]
    note = (
        "Settings of the resolved configuration that are not the same in all groups; those that differ in the same way "
        "share a row. Seeds, names, logging and Ray are left out; of paths only the file name counts."
    )
    heads = ["setting", *(group.name for group in results.groups)]
    return Table("What differs", heads, rows, note, names=len(heads))


def _runs(results: Results) -> Table:
    rows = [
        [
            group.name,
            member.name,
            NONE if member.best_round is None else str(member.best_round),
            ", ".join(f"{key}={value}" for key, value in member.seeds.items()) or NONE,
        ]
        for group in results.groups
        for member in group.members
    ]
    return Table("Runs", ["group", "run", "best round", "seeds that vary"], rows, names=4)


# ------------------------------------------------------------------------------------------------------------ output


def markdown(results: Results) -> str:
    """All tables as a Markdown document."""
    lines = [f"# {cell(results.title)}", "", *([f"**{results.stamp}**", ""] if results.stamp else [])]
    for sentence in filter(None, (verdict_sentence(results), oracle_note(results))):
        lines += [cell(sentence), ""]
    for table in (*main_tables(results), *further_tables(results)):
        lines += [f"## {table.title}", "", f"| {' | '.join(map(cell, table.heads))} |"]
        lines += ["|---" * table.names + "|---:" * (len(table.heads) - table.names) + "|"]
        lines += [f"| {' | '.join(map(cell, row))} |" for row in table.rows]
        lines += ["", *([table.note, ""] if table.note else [])]
    lines += ["## Alarms", "", *(f"- {cell(line)}" for line, _ in alarm_lines(results)), ""]
    return "\n".join(lines + [f"- {cell(note)}" for note in (*results.notes, *results.missing)]).rstrip() + "\n"


def print_table(results: Results, console: Console) -> None:
    """Print the first table, the verdict, alarms and notes to a rich console."""
    for table in main_tables(results)[:1]:
        wide, narrow = (_rich(results.title, table, lines) for lines in (lambda cell: [cell], _lines))
        width = Measurement.get(console, console.options.update(max_width=1000), wide).maximum
        console.print(wide if width <= console.width else narrow)
    lines = [verdict_sentence(results), *(line for line, _ in alarm_lines(results)), *results.notes]
    for line in filter(None, lines):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if sentence := trust_sentence(results):
        console.print(sentence, highlight=False, soft_wrap=True)
    if results.worth:
        console.print(WORTH, style="bold", highlight=False)
        for line in results.worth:
            console.print(f"- {line}", highlight=False, markup=False, soft_wrap=True)
    if results.stamp:
        console.print(results.stamp, style="bold", highlight=False, markup=False, soft_wrap=True)


def _lines(cell: str) -> list[str]:
    """Where a cell may be broken in a narrow window: before a bracket, not in it."""
    return re.split(r" (?=[(\[→])", cell)


def _rich(title: str, table: Table, lines: Callable[[str], list[str]]) -> RichTable:
    rich = RichTable(title=escape(title), title_justify="left", title_style="bold")
    for number, head in enumerate(table.heads):
        numbers = number >= table.names
        # where there is not enough room for all, words are broken rather than numbers
        no_wrap = numbers and table.by_set
        rich.add_column(escape("\n".join(lines(head))), justify="right" if numbers else "left", no_wrap=no_wrap)
    above = ""
    for row in table.rows:
        if table.by_set and above not in ("", row[0]):
            rich.add_section()
        first = "" if table.by_set and above == row[0] else row[0]
        rich.add_row(*(escape("\n".join(lines(cell))) for cell in (first, *row[1:])))
        above = row[0]
    return rich
