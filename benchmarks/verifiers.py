# SPDX-License-Identifier: Apache-2.0
"""Verdicts and votes a second on MATH-style answers, beside Math-Verify called directly. See README.md for figures.

Both judge the same responses in the same run: ``score`` as the reward manager calls it (threads, two child processes),
and ``verify(parse(truth), parse(response))`` in one process with Math-Verify's own time limits. Both group the same
votes: ``groups``, and Math-Verify on every pair.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import logging
import os
import platform
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from tempo_verl.rewards import SECONDS, grouping, mathematics, score
from tempo_verl.rewards.process import PROCESSES

MATH_500 = Path(__file__).parents[2] / "shared" / "data" / "math500.json"
SHARES = {"right": 0.45, "respelled": 0.15, "wrong": 0.20, "unmarked": 0.12, "none": 0.08}
BOMBS = ["9^{9^{9^{9}}}", "(10^9)!", r"\sum_{k=1}^{10^9} k^k", r"\log_{2}(3^{10^9})"]
STEPS = [
    r"Let $x$ be the number we want. We are given that $x^2 - {a}x + {b} = 0$, so by Vieta's formulas the roots add up "
    r"to ${a}$ and multiply to ${b}$.",
    r"Substituting into the second equation gives \[ \frac{{{a}}}{{{b}}} + \sqrt{{{a}}} = y, \] which we can simplify.",
    r"There are $\binom{{{a}}}{{2}}$ pairs, and each of them is counted ${b}$ times.",
    r"By the triangle inequality, ${a} < AB + BC$, and therefore $AB > {b}$.",
    r"We check the case $n = {a}$: then $f({a}) = {b}$, as required.",
]


@dataclass(frozen=True)
class Sample:
    """A response of a ``kind`` to a question with this ``truth``; ``right`` is what the writer meant, if it tells."""

    kind: str
    response: str
    truth: str
    right: bool | None


# ---------------------------------------------------------------------- responses


def read_truths(rng: random.Random) -> tuple[list[str], str]:
    """500 answers and where they are from: MATH-500 if it is on this machine, else generated ones."""
    if MATH_500.is_file():
        return [row["answer"] for row in json.loads(MATH_500.read_text())], "MATH-500"
    forms = [
        "{a}",
        "-{a}",
        "{a}.{b}",
        r"\frac{{{a}}}{{{b}}}",
        r"{a}\sqrt{{{b}}}",
        r"\left( {a}, {b} \right)",
        "[-{a},{b})",
    ]
    forms += ["{a}x + {b}", r"\frac{{\pi}}{{{b}}}", "{a} + {b}i", r"{a}\%", "x={a}", r"{a}^\circ"]
    return [rng.choice(forms).format(a=rng.randint(1, 999), b=rng.randint(2, 99)) for _ in range(500)], "generated"


def respelled(truth: str, rng: random.Random) -> str:
    """The same answer in another spelling."""
    ways = [f" {truth} ", f"{truth}.", f"${truth}$", truth.replace(r"\frac", r"\dfrac"), truth.replace(", ", ",")]
    ways += [truth.replace(r"\left", "").replace(r"\right", "")]
    if truth.isdecimal():
        ways += [f"{int(truth):,}", f"{truth}.0", f"x = {truth}", rf"\frac{{{2 * int(truth)}}}{{2}}"]
    return rng.choice([way for way in ways if way != truth])


def write_sample(kind: str, truths: list[str], rng: random.Random) -> Sample:
    truth = rng.choice(truths)
    other = rng.choice([one for one in truths if one != truth])
    steps = [rng.choice(STEPS).format(a=rng.randint(2, 99), b=rng.randint(2, 99)) for _ in range(rng.randint(4, 12))]
    text = "\n\n".join(steps) + "\n\n"
    if kind == "right":
        return Sample(kind, rf"{text}So the answer is $\boxed{{{truth}}}$.", truth, True)
    if kind == "respelled":
        return Sample(kind, rf"{text}\[\boxed{{{respelled(truth, rng)}}}\]", truth, True)
    if kind == "wrong":
        return Sample(kind, rf"{text}So the answer is $\boxed{{{other}}}$.", truth, False)
    if kind == "unmarked":
        right = rng.random() < 0.5
        return Sample(kind, f"{text}Therefore the answer is ${truth if right else other}$.", truth, right)
    if kind == "none":
        return Sample(kind, f"{text}I could not find it, and $x$ stays unknown", truth, None)
    raise ValueError(kind)


def write_samples(count: int, truths: list[str], rng: random.Random) -> list[Sample]:
    kinds = rng.choices(list(SHARES), list(SHARES.values()), k=count)
    return [write_sample(kind, truths, rng) for kind in kinds]


def bombs() -> list[Sample]:
    """Answers whose comparison does not end; timed apart, as each costs a whole time limit."""
    return [Sample("bomb", rf"So the answer is $\boxed{{{bomb}}}$.", "42", False) for bomb in BOMBS]


def write_votes(prompts: int, n: int, truths: list[str], rng: random.Random) -> list[list[str]]:
    """n answers to each prompt: half of them right, half among seven wrong ones, in any spelling."""

    def spelled(answer: str) -> str:
        return answer if rng.random() < 0.5 else respelled(answer, rng)

    votes = []
    for _ in range(prompts):
        right, *wrong = rng.sample(sorted(set(truths)), 8)
        votes.append([spelled(right if rng.random() < 0.5 else rng.choice(wrong)) for _ in range(n)])
    return votes


def write_hard_votes(prompts: int, n: int, rng: random.Random) -> list[list[str]]:
    """n answers that are all different and of a kind that only Math-Verify can compare."""
    return [[rf"f({a}) = g_{{{rng.randint(2, 99)}}}(x) + {a}h(x)" for a in range(n)] for _ in range(prompts)]


# ---------------------------------------------------------------------- measuring


def judge(samples: list[Sample]) -> list[bool]:
    async def run() -> list[bool]:
        return list(await asyncio.gather(*(asyncio.to_thread(one, sample) for sample in samples)))

    def one(sample: Sample) -> bool:
        return score(sample.response, sample.truth).correct

    return asyncio.run(run())


def judge_directly(samples: list[Sample]) -> list[bool]:
    from math_verify import parse, verify

    return [bool(verify(parse(f"${sample.truth}$"), parse(sample.response))) for sample in samples]


def measured(judge: Callable[[list[Sample]], list[bool]], samples: list[Sample], times: int) -> tuple[list[bool], Any]:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        verdicts = judge(samples)
        seconds.append(time.perf_counter() - started)
    rates = [len(samples) / taken for taken in seconds]
    return verdicts, {
        "responses": len(samples),
        "responses_per_second": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
        "seconds": seconds,
    }


def grouped(votes: list[list[str]]) -> dict[str, Any]:
    """``groups`` as TTRL calls it, one prompt after the other, with what it asks Math-Verify."""
    seconds, calls, found = [], [], []
    for answers in votes:
        asked = 0

        def equal(first: str, second: str) -> bool | None:
            nonlocal asked
            asked += 1
            return mathematics.equivalent(first, second, SECONDS)

        started = time.perf_counter()
        found.append(max(number for number in grouping.group(answers, "math", equal) if number is not None) + 1)
        seconds.append(time.perf_counter() - started)
        calls.append(asked)
    return _of_votes(seconds, calls, found)


def paired(votes: list[list[str]]) -> dict[str, Any]:
    """Each answer parsed once, then every pair compared by Math-Verify, in one process."""
    from math_verify import parse, verify

    seconds, found = [], []
    for answers in votes:
        started = time.perf_counter()
        parsed = [parse(f"${answer}$") for answer in answers]
        first: list[int] = []
        for row, one in enumerate(parsed):
            same = [at for at in range(row) if verify(parsed[at], one)]
            first.append(first[same[0]] if same else row)
        seconds.append(time.perf_counter() - started)
        found.append(len(set(first)))
    return _of_votes(seconds, [len(answers) * (len(answers) - 1) // 2 for answers in votes], found)


def _of_votes(seconds: list[float], calls: list[int], found: list[int]) -> dict[str, Any]:
    return {
        "prompts": len(seconds),
        "milliseconds": {
            "median": 1000 * statistics.median(seconds),
            "min": 1000 * min(seconds),
            "max": 1000 * max(seconds),
        },
        "comparisons": {"median": statistics.median(calls), "max": max(calls)},
        "groups": {"mean": statistics.mean(found), "max": max(found)},
    }


def differences(samples: list[Sample], ours: list[bool], theirs: list[bool]) -> dict[str, Any]:
    differing = [(sample, one) for sample, one, other in zip(samples, ours, theirs, strict=True) if one != other]
    return {
        "count": len(differing),
        "by_kind": dict(
            Counter(f"{sample.kind}: {'only ours' if one else 'only theirs'} right" for sample, one in differing)
        ),
        "examples": [
            {"truth": sample.truth, "end_of_response": sample.response[-80:], "ours": one, "meant": sample.right}
            for sample, one in {(sample.kind, sample.truth): (sample, one) for sample, one in differing}.values()
        ],
        "not_as_meant": {
            name: sum(
                sample.right is not None and sample.right != got for sample, got in zip(samples, verdicts, strict=True)
            )
            for name, verdicts in (("score", ours), ("math_verify", theirs))
        },
    }


def machine() -> dict[str, Any]:
    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    packages = ("tempo-verl", "math-verify", "latex2sympy2_extended", "sympy")
    return {
        "cpu": cpu[0] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def main(
    responses: int = 10_000,
    repetitions: int = 5,
    prompts: int = 100,
    n: int = 64,
    seed: int = 0,
    processes: int = 2,
    out: Path = Path("verifiers.json"),
) -> None:
    """Measure, print a table and write everything to OUT."""
    os.environ[PROCESSES] = str(processes)
    logging.disable(logging.WARNING)  # each bomb is told
    rng = random.Random(seed)
    truths, source = read_truths(rng)
    samples = write_samples(responses, truths, rng)
    judge(samples[:200])  # starts the child processes

    ours, score_figures = measured(judge, samples, repetitions)
    our_bombs, score_bombs = measured(judge, bombs(), 1)
    theirs, direct_figures = measured(judge_directly, samples, 1)
    their_bombs, direct_bombs = measured(judge_directly, bombs(), 1)

    votes, hard = write_votes(prompts, n, truths, rng), write_hard_votes(max(1, prompts // 20), n, rng)
    groups = {
        "groups": grouped(votes),
        "groups, hard": grouped(hard),
        "every pair": paired(votes[: max(1, prompts // 20)]),
    }

    result = {
        "seed": seed,
        "answers": source,
        "kinds": dict(Counter(sample.kind for sample in samples + bombs())),
        "processes": processes,
        "machine": machine(),
        "score": score_figures,
        "score, bombs": score_bombs,
        "math_verify": direct_figures,
        "math_verify, bombs": direct_bombs,
        "differences": differences(samples + bombs(), ours + our_bombs, theirs + their_bombs),
        "votes": groups,
    }
    out.write_text(json.dumps(result, indent=2) + "\n")

    table = Table("", "responses", "runs", "per second", "from - to", title=f"answers: {source}, seed {seed}")
    for name in ("score", "math_verify", "score, bombs", "math_verify, bombs"):
        figures = result[name]
        rate = figures["responses_per_second"]
        spread = f"{rate['min']:.3g} - {rate['max']:.3g}"
        table.add_row(name, str(figures["responses"]), str(len(figures["seconds"])), f"{rate['median']:.3g}", spread)
    console = Console()
    console.print(table)
    table = Table("", "prompts", "ms a prompt", "from - to", "comparisons, most", title=f"{n} votes a prompt")
    for name, figures in groups.items():
        taken, asked = figures["milliseconds"], figures["comparisons"]
        spread = f"{taken['min']:.3g} - {taken['max']:.3g}"
        table.add_row(name, str(figures["prompts"]), f"{taken['median']:.3g}", spread, str(asked["max"]))
    console.print(table)
    told = result["differences"]
    console.print(f"verdicts that differ: {told['count']} {told['by_kind']}; not as meant: {told['not_as_meant']}")
    console.print(f"{result['machine']}\nwritten: {out}")


if __name__ == "__main__":
    typer.run(main)
