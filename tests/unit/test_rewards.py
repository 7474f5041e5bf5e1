# SPDX-License-Identifier: Apache-2.0
"""Verifiers by style, and verl's reward manager for labelled and unlabelled rows."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.trainer.ppo.reward import load_reward_manager

from tempo_verl.errors import UserError
from tempo_verl.rewards import Score, extract, score, verifier
from tempo_verl.rewards.manager import TempoRewardManager

SUMS = "tempo_verl.tasks.running_sums:verify"


# ---------------------------------------------------------------------- verifiers


@pytest.mark.parametrize(
    ("response", "truth", "expected"),
    [
        ("Paris", "Paris", Score(True, "Paris")),
        ("  Paris\n", " Paris ", Score(True, "Paris")),
        ("paris", "Paris", Score(False, "paris")),
        ("Paris.", "Paris", Score(False, "Paris.")),
        ("", "Paris", Score(False, None)),
        (" \n", "", Score(False, None)),
    ],
)
def test_exact(response: str, truth: str, expected: Score) -> None:
    assert score(response, truth, "exact") == expected
    assert extract(response, "exact") == expected.answer


@pytest.mark.parametrize(
    ("response", "truth", "expected"),
    [
        (r"so it is $\boxed{\frac{3}{4}}$", "0.75", Score(True, r"\frac{3}{4}")),
        (r"\boxed{\frac{3}{4}}", r"\frac{3}{4}", Score(True, r"\frac{3}{4}")),  # a bare label is not cut to "4"
        (r"\boxed{4}", r"\frac{3}{4}", Score(False, "4")),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", Score(True, "x^2+2x+1")),
        (r"the answer is $\boxed{4}$", r"\boxed{4}", Score(True, "4")),
        (r"\boxed{3}", "4", Score(False, "3")),
        ("I do not know", "4", Score(False, None)),
        (r"\boxed{", "4", Score(False, None)),
        ("", "4", Score(False, None)),
    ],
)
def test_math(response: str, truth: str, expected: Score) -> None:
    assert score(response, truth, "math") == expected
    assert score(response, truth) == expected  # the default
    assert extract(response, "math") == expected.answer


def test_rule_is_another_name_of_math() -> None:
    assert verifier("rule") is verifier("math")


@pytest.mark.parametrize(
    ("response", "truth", "expected"),
    [
        ("70y55y", "5", Score(True, "5")),
        ("70y55n", "5", Score(True, "5")),
        ("70y56y", "5", Score(False, "6")),
        ("70y5", "5", Score(False, None)),
    ],
)
def test_a_users_own_verifier(response: str, truth: str, expected: Score) -> None:
    assert score(response, truth, SUMS) == expected
    assert extract(response, SUMS) == expected.answer


@pytest.mark.parametrize(
    "style",
    ["nonsense", "no_such_module:verify", "tempo_verl.rewards:nothing", "tempo_verl.rewards:", ":verify", ".a:b", ""],
)
def test_an_unknown_style_is_told_with_the_known_ones(style: str) -> None:
    with pytest.raises(UserError, match="neither one of math, rule, exact nor an importable module:function") as caught:
        score("1", "1", style)
    assert f"reward_model.style={style!r}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_error_inside_a_verifier_is_not_a_wrong_answer() -> None:
    with pytest.raises(AttributeError):
        score("1", 1, "exact")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- verl's reward manager


@pytest.fixture(scope="module")
def tokenizer(tiny_policy: Path):
    return AutoTokenizer.from_pretrained(tiny_policy)


def rollout(tokenizer, response: str, reward_model: dict[str, Any]) -> DataProto:
    """One sample as verl's agent loop hands it to a reward manager: padded left and right, here with visible text."""
    ids = tokenizer(response + "<eos>")["input_ids"]
    pad = tokenizer.convert_tokens_to_ids("9")
    prompts = torch.tensor([[pad, pad, *tokenizer("3+7+5=")["input_ids"]]])
    responses = torch.tensor([ids + [pad] * (16 - len(ids))])
    length = torch.tensor([[0, 0, *[1] * 6, *[1] * len(ids), *[0] * (16 - len(ids))]])
    data = DataProto.from_dict({"prompts": prompts, "responses": responses, "attention_mask": length})
    data.non_tensor_batch["reward_model"] = np.array([reward_model], dtype=object)
    return data


def run_single(tokenizer, data: DataProto) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        return await TempoRewardManager(None, tokenizer).run_single(data)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("response", "correct", "answer"), [("70y55y", 1.0, "5"), ("70y56y", 0.0, "6"), ("y", 0.0, None)]
)
def test_a_labeled_row_is_scored(tokenizer, response: str, correct: float, answer: str | None) -> None:
    result = run_single(tokenizer, rollout(tokenizer, response, {"style": SUMS, "ground_truth": "5"}))
    assert result == {"reward_score": correct, "reward_extra_info": {"acc": correct, "pred": answer}}


def test_a_truth_that_is_a_number_is_read_as_text(tokenizer) -> None:
    result = run_single(tokenizer, rollout(tokenizer, "70y55y", {"style": SUMS, "ground_truth": 5}))
    assert result["reward_score"] == 1.0


@pytest.mark.parametrize(("response", "answer"), [("70y55y", "5"), ("y", None)])
def test_of_an_unlabeled_row_only_the_answer_is_read_out(tokenizer, response: str, answer: str | None) -> None:
    result = run_single(tokenizer, rollout(tokenizer, response, {"style": SUMS, "ground_truth": None}))
    assert result == {"reward_score": 0.0, "reward_extra_info": {"pred": answer}}  # no "acc": nothing is known


def test_a_row_without_a_style_is_mathematics(tokenizer) -> None:
    result = run_single(tokenizer, rollout(tokenizer, "5", {"style": None, "ground_truth": "5"}))
    assert result["reward_extra_info"] == {"acc": 1.0, "pred": "5"}


def test_an_error_in_scoring_is_raised(tokenizer) -> None:
    with pytest.raises(UserError, match="no_such_module"):
        run_single(tokenizer, rollout(tokenizer, "5", {"style": "no_such_module:f", "ground_truth": "5"}))


def test_verl_finds_the_manager_by_the_shipped_configuration(compose, tokenizer) -> None:
    manager = load_reward_manager(compose(), tokenizer)
    assert isinstance(manager, RewardManagerBase)
    assert type(manager).__name__ == "TempoRewardManager"
    assert type(manager).__module__ == "tempo_verl.rewards.manager"


class Says:
    """A tokenizer for responses that the tiny one cannot write."""

    def __init__(self, text: str):
        self.text = text

    def decode(self, ids, skip_special_tokens: bool) -> str:
        return self.text


def test_an_answer_that_never_finishes_is_wrong_and_holds_nothing_up(tokenizer) -> None:
    started = time.monotonic()
    result = run_single(Says(r"\boxed{9^{9^{9}}}"), rollout(tokenizer, "5", {"style": "math", "ground_truth": "3"}))
    assert result["reward_extra_info"]["acc"] == 0.0
    assert time.monotonic() - started < 60  # Math-Verify gives up after 5 s a step; without that, hours
