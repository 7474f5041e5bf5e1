# SPDX-License-Identifier: Apache-2.0
"""The figures of a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tempo_verl.report.measures import is_average, set_label
from tempo_verl.report.panels import Line, Panel, draw_panels, drawn, styles
from tempo_verl.report.results import GroupResult, Results
from tempo_verl.report.style import BINS, DOTTED, ORACLE, TEXT, WIDTH, legend, png
from tempo_verl.report.words import rounds_of


@dataclass(frozen=True)
class Drawing:
    """One figure, and how to read it."""

    name: str
    title: str
    reading: str
    png: bytes


def _oracle(text: str, name: str = "unlabeled") -> str:
    return f"{text} ({ORACLE})" if name == "unlabeled" else text


def accuracy(results: Results) -> list[Panel]:
    """Accuracy of training rollouts and of validation; stage 0, where there is one, in its own panel on the left."""
    panels = []
    for prefix, title, step, width in (("stage0/", "stage 0", "stage 0 step", 1), ("", "after stage 0", "round", 2)):
        lines = [
            Line(f"{prefix}tempo/labeled/accuracy", "training rollouts on D_L", "labeled"),
            Line(f"{prefix}tempo/oracle/accuracy", _oracle("training rollouts on D_U"), "unlabeled", "--"),
        ]
        for number, (name, measures) in enumerate(results.measures.items()):
            for measure in filter(is_average, measures):
                colour = name if name in ("unlabeled", "heldout") else 3 + number
                label = _oracle(set_label(name), name)
                shown = None if prefix else f"{measure}, {label}"
                marker = ":o" if name == "unlabeled" else ":s"
                lines.append(Line(f"{prefix}{name}/{measure}", f"validation: {label}", colour, marker, shown))
        panels.append(Panel(title, lines, "accuracy", "share", width=width, step=step))
    if not any(drawn(results, line) for line in panels[0].lines):
        return [replace(panels[1], title="")]
    return panels


def coverage(results: Results) -> list[Panel]:
    """pass@k and the majority vote of validation, a panel for each question set."""
    panels = []
    for name, measures in results.measures.items():
        label = _oracle(set_label(name), name)
        most = [measure for measure in measures if measure.startswith("pass@")][-1:]  # all that is compared of pass@k
        lines = []
        for number, of in enumerate(measures):
            looks = {
                "avg": ("pass@1", number, "-o"),
                "pass": (of, number, "-o"),
                "maj": ("majority vote", "text", "--s"),
            }
            if look := looks.get(kind := of.partition("@")[0]):
                title = f"{of}, {label}" if of in most or kind == "maj" else None
                lines.append(Line(f"{name}/{of}", *look, title))
        if len(lines) > 1:
            panels.append(Panel(label, lines, scale="share"))
    return panels


def calibration(results: Results) -> list[Panel]:
    """AUROC, Brier score, ECE and gap of the critic over the rounds."""
    labeled, rewarded = "labelled rollouts (D_L)", _oracle("rollouts on D_U")
    auroc = [
        Line("tempo/labeled/auroc", labeled, "labeled", title="AUROC on D_L (higher is better)"),
        Line("tempo/oracle/auroc", rewarded, "unlabeled", "--", _oracle("AUROC of the reward on D_U")),
    ]
    panels = [Panel("AUROC (higher is better)", auroc, level=(0.5, "chance"))]
    for key, title, scale in (
        ("brier", "Brier score (lower is better)", "zero"),
        ("ece", "ECE (lower is better)", "zero"),
        ("gap", "optimism gap V − c (0 is best)", "free"),
    ):
        level = (0.0, "") if key == "gap" else None
        panels.append(Panel(title, [Line(f"tempo/labeled/{key}", labeled, "labeled", title=title)], "", scale, level))
    return panels


def reward(results: Results) -> list[Panel]:
    """What the policy was rewarded for on D_U, and how often it was right."""
    rewarded, right = "mean reward on D_U", _oracle("accuracy on D_U")
    lines = [
        Line("tempo/unlabeled/reward_mean", rewarded, "labeled", title=rewarded),
        Line("tempo/oracle/accuracy", right, "unlabeled", "--", right),
    ]
    return [Panel("", lines, scale="zero")] if drawn(results, lines[0]) else []


def diversity(results: Results) -> list[Panel]:
    """Different answers per question, entropy and response length of the rollouts on D_U over the rounds."""
    return [
        Panel(title, [Line(f"tempo/unlabeled/{key}", "rollouts on D_U", "unlabeled", title=title)], unit, "zero")
        for key, title, unit in (
            ("distinct_answers", "distinct answers", "answers per question"),
            ("entropy", "policy entropy", "nats per token"),
            ("response_length", "response length", "tokens"),
        )
    ]


def reliability_diagram(results: Results) -> Figure | None:
    """Observed accuracy against the critic's value in the first, middle and last rounds; of one group, counts below."""
    names = [name for name in ("first", "middle", "last") if any(name in group.reliability for group in results.groups)]
    if not names:
        return None
    several = len(results.groups) > 1
    figure = Figure(figsize=(WIDTH, 3.4 if several else 4.5), layout=ConstrainedLayoutEngine(wspace=0.06))
    # a lone pool does not fill the whole width
    ratios = [1] if several else [3.2, 1]
    axes = figure.subplots(
        len(ratios), max(2, len(names)), sharex=True, sharey="row", squeeze=False, height_ratios=ratios
    )
    for column, name in zip(axes.T, names, strict=False):
        top, bottom = column[0], column[-1]
        top.plot([0, 1], [0, 1], color=TEXT, linewidth=0.8, linestyle=DOTTED)
        for group, colour, style in styles(results):
            if curve := group.reliability.get(name):
                size = 10 + (60 if several else 130) * curve.count / curve.count.max()
                top.plot(curve.mean_score, curve.accuracy, style, color=colour, linewidth=1.2, label=group.name)
                top.scatter(curve.mean_score, curve.accuracy, size, color=colour, linewidths=0)
                if not several:
                    bottom.bar(curve.centers, curve.count, width=0.9 / BINS, color=colour, alpha=0.75)
        top.set_title(f"{name} rounds" if several else _reliability_title(results.groups[0], name), fontsize=9)
        top.set_xlim(-0.02, 1.02)
        top.set_ylim(-0.03, 1.03)
        bottom.set_xlabel("critic's value")
    for empty in axes[:, len(names) :].flat:
        empty.set_axis_off()
    axes[0][0].set_ylabel("share that is right")
    if several:
        legend(figure, axes.flat)
    else:
        axes[1][0].set_ylabel("rollouts")
    return figure


def trust_diagram(results: Results) -> Figure | None:
    """Share of right answers to D_U against their probability; of one group, counts below."""
    if all(group.trust is None for group in results.groups):
        return None
    several = len(results.groups) > 1
    figure = Figure(figsize=(WIDTH, 3.4 if several else 4.2), layout="constrained")
    ratios = [1] if several else [3.2, 1]
    axes = figure.subplots(len(ratios), 2, sharex=True, squeeze=False, height_ratios=ratios)
    top, bottom = axes[0][0], axes[-1][0]
    top.plot([0, 1], [0, 1], color=TEXT, linewidth=0.8, linestyle=DOTTED)
    for group, colour, style in styles(results):
        if (of := group.trust) is None:
            continue
        curve = of.curve
        top.plot(curve.mean_score, curve.accuracy, style, color=colour, linewidth=1.2, label=group.name)
        top.scatter(
            curve.mean_score, curve.accuracy, 10 + 80 * curve.count / curve.count.max(), color=colour, linewidths=0
        )
        if not several:
            bottom.bar(curve.centers, curve.count, width=0.9 / BINS, color=colour, alpha=0.75)
            bottom.set_ylabel("answers")
    top.set_xlim(-0.02, 1.02)
    top.set_ylim(-0.03, 1.03)
    top.set_ylabel(f"share that is right\n({ORACLE})")
    bottom.set_xlabel("probability of an answer to D_U")
    for empty in axes[:, 1]:
        empty.set_axis_off()
    if several:
        legend(figure, axes.flat)
    return figure


def _reliability_title(group: GroupResult, name: str) -> str:
    """Such as ``first rounds (1 to 3)``, ``AUROC 0.81``, ``Brier 0.17, ECE 0.05``, with those that are defined."""
    found = group.calibration.get(name, {})
    lines = [f"{name} rounds {rounds_of(group.rounds[name])}"]
    for labels in ({"auroc": "AUROC"}, {"brier": "Brier", "ece": "ECE"}):
        lines.append(", ".join(f"{label} {found[key].value:.2f}" for key, label in labels.items() if key in found))
    return "\n".join(filter(None, lines))


# name -> function, title, how to read it
FIGURES: dict[str, tuple[Callable[[Results], Figure | None], str, str]] = {
    "accuracy": (
        lambda results: draw_panels(results, accuracy(results)),
        "Accuracy",
        "Training helps where validation rises on D_U and does not fall on held-out questions.",
    ),
    "coverage": (
        lambda results: draw_panels(results, coverage(results)),
        "pass@k and the majority vote",
        "Where pass@1 (the average) rises and pass@k with many samples falls, the policy gives up answers it could "
        "find before.",
    ),
    "calibration": (
        lambda results: draw_panels(results, calibration(results)),
        "Calibration of the critic",
        "On fresh rollouts, before the round's E-step. AUROC near 0.5 means that the critic cannot tell right from "
        "wrong, so a reward made of it carries no information. A gap above 0 means that it is too optimistic.",
    ),
    "reward": (
        lambda results: draw_panels(results, reward(results)),
        "Reward on D_U",
        "Of the training rollouts. A reward that rises while the accuracy does not is being gamed.",
    ),
    "diversity": (
        lambda results: draw_panels(results, diversity(results)),
        "Diversity of the answers on D_U",
        "Distinct answers and entropy falling towards one and zero, or a length running away, are signs of collapse.",
    ),
    "reliability": (
        reliability_diagram,
        "Reliability of the critic on D_L",
        "Points on the diagonal mean that a value of 0.7 is right 70 % of the time. Values are those at the last "
        "token, before the round's E-step; the rollouts of these rounds are pooled, the numbers are means over the "
        "rounds. Dot size shows how many rollouts a point stands on.",
    ),
    "trust": (
        trust_diagram,
        "Reliability of the answers to D_U",
        "Points below the diagonal are answers that are right less often than their probability says. Known only "
        "because D_U has answers to watch the run by. Dot size shows how many answers a point stands on.",
    ),
}
WHERE_KNOWN = ("trust",)  # needs answers of D_U, which most users do not have
BAND = "Thick lines are means over the runs of a group, bands one standard deviation, thin lines single runs."
BARS = "Bars at the markers are 95 % intervals over questions."


def draw(results: Results) -> list[Drawing]:
    """Every figure there is data for; a note for each that there is not."""
    several_runs = any(len(group.members) > 1 for group in results.groups)
    drawings = []
    for name, (function, title, reading) in FIGURES.items():
        if picture := png(function, results, results.stamp):
            more = f" {BARS}" * (name == "accuracy" and results.single)
            more += f" {BAND}" * (several_runs and name not in ("reliability", "trust"))
            drawings.append(Drawing(name, title, reading + more, picture))
        elif name not in WHERE_KNOWN:
            results.missing.append(f"Figure left out: {title[0].lower()}{title[1:]} (nothing was logged for it).")
    return drawings
