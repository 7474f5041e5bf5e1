# SPDX-License-Identifier: Apache-2.0
"""Running sums modulo 10 with self-check marks: test-time training in minutes on a CPU.

Prompt ``3+7+5=``, response ``70y55y`` and the end token. Every operand after the first is one step of three
characters: the operand, the new running sum modulo 10, and a mark ``y``/``n`` by which the writer judges its own step.
The answer is the last running sum. n operands make 2n characters of prompt and 3(n - 1) + 1 tokens of response.

A step applies one fact (a, b) -> (a + b) % 10, a the running sum and b the operand. Pretraining teaches some facts
wrongly (:meth:`RunningSums.write_response`); which ones, and where they occur, is what makes the task a test:

=======  ===  =======================================================================================================
easy      60  right but for rare slips
H_L       20  mostly one fixed wrong value, so the majority is wrong; frequent in the labelled prompts
H_U       20  as H_L, but frequent in the unlabelled prompts; rare (variant ``B``) or absent (``W0``) in the labelled
=======  ===  =======================================================================================================

The marks tell the truth far more often than the sums are right: checking is easier than solving, by construction.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # a verifier's child process imports this module: what `verify` does not need is imported where it is
    from transformers import PreTrainedTokenizerFast

Kind = Literal["easy", "H_L", "H_U"]
Variant = Literal["B", "W0"]
Split = Literal["labeled", "unlabeled", "heldout"]

END, PAD = "<eos>", "<pad>"
VOCABULARY = (*"0123456789+=yn", END, PAD)
MAX_OPERANDS = 6
MAX_PROMPT_LENGTH = 2 * MAX_OPERANDS  # tokens
# Tokens, the end token included. 1 modulo 3, so a response cut off at this length is malformed, never "right".
MAX_RESPONSE_LENGTH = 3 * (MAX_OPERANDS - 1) + 1

DATA_SOURCE = "running_sums"
VERIFIER = "tempo_verl.tasks.running_sums:verify"
ABILITY = "arithmetic"

# Of the ten operands that may follow each running sum: how many make a fact of this kind (times ten sums: 60/20/20).
OPERANDS_PER_SUM: dict[Kind, int] = {"easy": 6, "H_L": 2, "H_U": 2}
# Probability that a step of a prompt applies a fact of this kind, and how many operands a prompt has.
LABELED_MIX: dict[Variant, dict[Kind, float]] = {
    "B": {"easy": 0.60, "H_L": 0.30, "H_U": 0.10},
    "W0": {"easy": 0.65, "H_L": 0.35, "H_U": 0.00},
}
# Dropping the prompts without an H_U fact leaves about a third of the unlabelled steps H_U.
UNLABELED_MIX: dict[Kind, float] = {"easy": 0.70, "H_L": 0.10, "H_U": 0.20}
LABELED_OPERANDS = (3, 5)
UNLABELED_OPERANDS = (4, 6)
MAX_PROMPTS = 10_000  # of a set: about a tenth of those that there are, so that drawing without duplicates ends

_STEPS = re.compile(r"(?:[0-9][0-9][yn])+")


@dataclass(frozen=True)
class RunningSums:
    """One instance of the task; equal fields give equal facts, prompts and pretraining samples, on any machine.

    The facts and the unlabelled prompts depend on the seed alone, so the variants differ in the labelled and held-out
    prompts only.
    """

    seed: int = 1
    variant: Variant = "B"
    n_labeled: int = 512
    n_unlabeled: int = 96
    n_heldout: int = 96
    hard_fact_error: float = 0.7  # P(a hard fact takes its fixed wrong value)
    slip: float = 0.06  # P(any other step takes a random wrong value)
    wrong_marked_y: float = 0.10  # P(mark y | wrong step)
    right_marked_n: float = 0.03  # P(mark n | right step)

    def __post_init__(self) -> None:
        if self.variant not in LABELED_MIX:
            raise ValueError(f"variant={self.variant!r}: expected one of {', '.join(LABELED_MIX)}")
        for name in ("n_labeled", "n_unlabeled", "n_heldout"):
            if not 1 <= getattr(self, name) <= MAX_PROMPTS:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number from 1 to {MAX_PROMPTS}")

    @cached_property
    def operands(self) -> dict[tuple[int, Kind], list[int]]:
        """(running sum a, kind) -> the operands b whose fact (a, b) is of that kind."""
        rng = self._rng("facts")
        by_kind = {}
        for a in range(10):
            order = rng.sample(range(10), 10)
            for kind, count in OPERANDS_PER_SUM.items():
                by_kind[a, kind], order = sorted(order[:count]), order[count:]
        return by_kind

    @cached_property
    def wrong_values(self) -> dict[tuple[int, int], int]:
        """Hard fact (a, b) -> the fixed wrong value that pretraining prefers."""
        rng = self._rng("wrong values")
        hard = sorted((a, b) for (a, kind), bs in self.operands.items() if kind != "easy" for b in bs)
        return {(a, b): _wrong_value(a + b, rng) for a, b in hard}

    def kinds(self, prompt: str) -> list[Kind]:
        """The kind of the fact that each step of the prompt applies when every running sum is right."""
        kind_of = {(a, b): kind for (a, kind), bs in self.operands.items() for b in bs}
        first, *rest = _operands(prompt)
        kinds, total = [], first
        for b in rest:
            kinds.append(kind_of[total, b])
            total = (total + b) % 10
        return kinds

    def make_sets(self) -> dict[Split, list[tuple[str, str]]]:
        """The three sets of (prompt, answer), pairwise disjoint and free of duplicates.

        Every unlabelled prompt applies at least one H_U fact.
        """
        labeled_mix = LABELED_MIX[self.variant]
        unlabeled = self._draw("unlabeled", self.n_unlabeled, UNLABELED_MIX, UNLABELED_OPERANDS, exclude=())
        heldout = self._draw("heldout", self.n_heldout, labeled_mix, LABELED_OPERANDS, exclude=unlabeled)
        labeled = self._draw("labeled", self.n_labeled, labeled_mix, LABELED_OPERANDS, exclude=[*unlabeled, *heldout])
        prompts: dict[Split, list[str]] = {"labeled": labeled, "unlabeled": unlabeled, "heldout": heldout}
        return {split: [(prompt, solve(prompt)) for prompt in rows] for split, rows in prompts.items()}

    def pretraining_samples(self, count: int, seed: int = 0) -> list[tuple[str, str]]:
        """(prompt, corrupted response) pairs on uniform prompts; none is an unlabelled or a held-out prompt."""
        sets = self.make_sets()
        unseen = {prompt for split in ("unlabeled", "heldout") for prompt, _ in sets[split]}
        rng = self._rng(f"pretraining {seed}")
        samples: list[tuple[str, str]] = []
        while len(samples) < count:
            length = rng.randint(LABELED_OPERANDS[0], MAX_OPERANDS)
            prompt = "+".join(str(rng.randrange(10)) for _ in range(length)) + "="
            if prompt not in unseen:
                samples.append((prompt, self.write_response(prompt, rng)))
        return samples

    def write_response(self, prompt: str, rng: random.Random) -> str:
        """A response, without end token, by the corrupted writer whom pretraining imitates.

        An error is carried on: the next step starts from the sum as written, and its mark judges that step alone.
        """
        total, *rest = _operands(prompt)
        steps = []
        for b in rest:
            right = (total + b) % 10
            if (total, b) in self.wrong_values and rng.random() < self.hard_fact_error:
                written = self.wrong_values[total, b]
            elif rng.random() < self.slip:
                written = _wrong_value(right, rng)
            else:
                written = right
            if written == right:
                mark = "n" if rng.random() < self.right_marked_n else "y"
            else:
                mark = "y" if rng.random() < self.wrong_marked_y else "n"
            steps.append(f"{b}{written}{mark}")
            total = written
        return "".join(steps)

    def _draw(
        self, name: str, count: int, mix: dict[Kind, float], lengths: tuple[int, int], exclude: Collection[str]
    ) -> list[str]:
        rng = self._rng(name)
        taken = set(exclude)
        prompts: list[str] = []
        while len(prompts) < count:
            prompt = self._draw_prompt(rng, mix, rng.randint(*lengths))
            if prompt in taken or (name == "unlabeled" and "H_U" not in self.kinds(prompt)):
                continue
            taken.add(prompt)
            prompts.append(prompt)
        return prompts

    def _draw_prompt(self, rng: random.Random, mix: dict[Kind, float], length: int) -> str:
        operands = [rng.randrange(10)]
        for kind in rng.choices(list(mix), weights=list(mix.values()), k=length - 1):
            operands.append(rng.choice(self.operands[sum(operands) % 10, kind]))
        return "+".join(map(str, operands)) + "="

    def _rng(self, stream: str) -> random.Random:
        return random.Random(f"{DATA_SOURCE} {self.seed} {stream}")  # a string seeds alike in every process


def solve(prompt: str) -> str:
    """The right answer, one digit: ``3+7+5=`` -> ``5``."""
    return str(sum(_operands(prompt)) % 10)


def extract(response: str) -> str | None:
    """The answer digit of a response without special tokens, or None if it is not a whole number of steps."""
    return response[-2] if _STEPS.fullmatch(response) else None


def judged_steps(prompt: str, response: str) -> list[tuple[bool, bool]]:
    """(the step is right, the writer marks it ``y``) for the steps of a response, up to one that is malformed.

    As in pretraining, a step is right if it adds its operand to the sum as written before it.
    """
    total, *rest = _operands(prompt)
    steps = []
    for b, step in zip(rest, (response[i : i + 3] for i in range(0, len(response), 3)), strict=False):
        if not _STEPS.fullmatch(step) or step[0] != str(b):
            break
        written = int(step[1])
        steps.append((written == (total + b) % 10, step[2] == "y"))
        total = written
    return steps


def verify(response: str, ground_truth: str | None) -> tuple[bool, str | None]:
    """Judge a response by its final sum alone.

    Args:
        response: decoded text without special tokens.
        ground_truth: the answer digit; None if only the answer is wanted.

    Returns:
        (correct, answer); a malformed response, such as one cut off, is wrong and has no answer.
    """
    answer = extract(response)
    return answer is not None and answer == ground_truth, answer


def write_parquet(path: str | Path, rows: list[tuple[str, str]], split: str, data_source: str | None = None) -> None:
    """Write (prompt, answer) rows as a verl dataset.

    Args:
        path: parquet file to (over)write; its folder is created.
        rows: as in :meth:`RunningSums.make_sets`.
        split: stored in ``extra_info.split``.
        data_source: the name verl reports metrics under; default ``running_sums/<split>``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(
        [
            {
                "data_source": data_source or f"{DATA_SOURCE}/{split}",
                "prompt": [{"role": "user", "content": prompt}],
                "ability": ABILITY,
                "reward_model": {"style": VERIFIER, "ground_truth": answer},
                "extra_info": {"index": index, "split": split},
            }
            for index, (prompt, answer) in enumerate(rows)
        ]
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character; ids are positions in ``VOCABULARY``. Any other character becomes the pad token.

    verl's chat handling for Qwen encodes a newline at start-up and expects one token, hence no error for unknown ones.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(VOCABULARY)}, unk_token=PAD))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        unk_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


def _operands(prompt: str) -> list[int]:
    return [int(operand) for operand in prompt.removesuffix("=").split("+")]


def _wrong_value(right: int, rng: random.Random) -> int:
    return (right + rng.randint(1, 9)) % 10
