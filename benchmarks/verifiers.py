# SPDX-License-Identifier: Apache-2.0
"""Verdicts and votes a second on MATH-style answers, beside Math-Verify called directly.

Both judge the same responses in the same run: ``score`` as the reward manager calls it (threads, two child processes),
and ``verify(parse(truth), parse(response))`` in one process with Math-Verify's own time limits. Both group the same
votes: ``groups``, and Math-Verify on every pair.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from sections import Section, show, spread

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


def measured(
    judge: Callable[[list[Sample]], list[bool]], samples: list[Sample], times: int
) -> tuple[list[bool], list[float]]:
    """Verdicts, and how many a second, each time."""
    rates = []
    for _ in range(times):
        started = time.perf_counter()
        verdicts = judge(samples)
        rates.append(len(samples) / (time.perf_counter() - started))
    return verdicts, rates


def grouped(votes: list[list[str]]) -> tuple[list[float], list[int]]:
    """``groups`` as TTRL calls it, one prompt after the other: seconds of each, and what it asks Math-Verify."""
    seconds, calls = [], []
    for answers in votes:
        asked = 0

        def equal(first: str, second: str) -> bool | None:
            nonlocal asked
            asked += 1
            return mathematics.equivalent(first, second, SECONDS)

        started = time.perf_counter()
        grouping.group(answers, "math", equal)
        seconds.append(time.perf_counter() - started)
        calls.append(asked)
    return seconds, calls


def paired(votes: list[list[str]]) -> tuple[list[float], list[int]]:
    """Each answer parsed once, then every pair compared by Math-Verify, in one process; as :func:`grouped`."""
    from math_verify import parse, verify

    seconds = []
    for answers in votes:
        started = time.perf_counter()
        parsed = [parse(f"${answer}$") for answer in answers]
        for row, one in enumerate(parsed):
            for earlier in parsed[:row]:
                verify(earlier, one)
        seconds.append(time.perf_counter() - started)
    return seconds, [len(answers) * (len(answers) - 1) // 2 for answers in votes]


def differences(samples: list[Sample], ours: list[bool], theirs: list[bool]) -> str:
    """How many verdicts are not the same, and which of the two were not as they were meant."""
    kinds = Counter(
        f"{sample.kind}: only {'ours' if one else 'theirs'} right"
        for sample, one, other in zip(samples, ours, theirs, strict=True)
        if one != other
    )
    wrong = {
        name: sum(
            sample.right is not None and sample.right != got for sample, got in zip(samples, verdicts, strict=True)
        )
        for name, verdicts in (("score", ours), ("Math-Verify", theirs))
    }
    return (
        f"Verdicts that differ: {sum(kinds.values())} of {len(samples)} ({dict(kinds)}). Not as they were meant: "
        f"{', '.join(f'{count} of {name}' for name, count in wrong.items())}."
    )


def measure(fast: bool = False, seed: int = 0) -> Iterator[Section]:
    """Verdicts, and votes; both beside Math-Verify alone."""
    responses, prompts, repetitions = (400, 5, 1) if fast else (10_000, 100, 3)
    os.environ[PROCESSES] = "2"
    logging.disable(logging.WARNING)  # each bomb is told
    rng = random.Random(seed)
    truths, source = read_truths(rng)
    samples = write_samples(responses, truths, rng)
    judge(samples[:200])  # starts the child processes

    ours, of_score = measured(judge, samples, repetitions)
    our_bombs, of_bombs = measured(judge, bombs(), 1)
    theirs, directly = measured(judge_directly, samples, 1)
    their_bombs, bombs_directly = measured(judge_directly, bombs(), 1)
    told = differences(samples + bombs(), ours + our_bombs, theirs + their_bombs)
    section = Section("Verdicts", ("way", "responses", "a second"))
    for name, count, rates in (
        ("score, two processes", responses, of_score),
        ("Math-Verify, one process", responses, directly),
        ("score, comparisons that do not end", len(BOMBS), of_bombs),
        ("Math-Verify, comparisons that do not end", len(BOMBS), bombs_directly),
    ):
        section.rows.append((name, f"{count:,}", spread(rates)))
    section.text = f"Answers of {source}, seed {seed}. {told}"
    yield section

    votes, hard = write_votes(prompts, 64, truths, rng), write_hard_votes(max(1, prompts // 20), 64, rng)
    section = Section("64 votes a prompt", ("way", "prompts", "milliseconds a prompt", "comparisons, most"))
    for name, (seconds, calls) in {
        "groups": grouped(votes),
        "groups, 64 formulas that our reader cannot read": grouped(hard),
        "Math-Verify on every pair": paired(votes[: max(1, prompts // 20)]),
    }.items():
        milliseconds = [1000 * each for each in seconds]
        section.rows.append((name, str(len(seconds)), spread(milliseconds), str(max(calls))))
    yield section


def main(fast: Annotated[bool, typer.Option("--fast")] = False, seed: int = 0) -> None:
    """Measure, and print the tables."""
    show(measure(fast, seed))


if __name__ == "__main__":
    typer.run(main)
