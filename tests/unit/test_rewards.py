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
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.trainer.ppo.reward import load_reward_manager

from tempo_verl.errors import UserError
from tempo_verl.rewards import STYLES, Score, check_ground_truth, check_style, extract, score, style_of
from tempo_verl.rewards.manager import TempoRewardManager

SUMS = "tempo_verl.tasks.running_sums:verify"


# ---------------------------------------------------------------------- verifiers


@pytest.mark.parametrize(
    ("response", "truth", "expected"),
    [
        ("Paris", "Paris", Score(True, "Paris")),
        (r"\boxed{Paris}", "Paris", Score(True, "Paris", formatted=True)),
        ("paris", "Paris", Score(False, "paris")),
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
        (r"so it is $\boxed{\frac{3}{4}}$", "0.75", Score(True, r"\frac{3}{4}", formatted=True)),
        (r"so it is $\frac{3}{4}$", "0.75", Score(True, r"\frac{3}{4}")),
        (r"\boxed{4}", r"\frac{3}{4}", Score(False, "4", formatted=True)),  # a bare label is not cut to "4"
        (r"the answer is $\boxed{4}$", r"\boxed{4}", Score(True, "4", formatted=True)),
        (r"\boxed{3}", "4", Score(False, "3", formatted=True)),
        ("I do not know", "4", Score(False, None)),
        (r"\boxed{", "4", Score(False, None)),
    ],
)
def test_math(response: str, truth: str, expected: Score) -> None:
    assert score(response, truth, "math") == expected
    assert score(response, truth) == expected  # the default
    assert extract(response) == expected.answer


@pytest.mark.parametrize(
    ("response", "truth", "expected"),
    [
        ("70y55y", "5", Score(True, "5", formatted=True)),
        ("70y56y", "5", Score(False, "6", formatted=True)),
        ("70y5", "5", Score(False, None)),
    ],
)
def test_a_users_own_verifier(response: str, truth: str, expected: Score) -> None:
    assert score(response, truth, SUMS) == expected
    assert extract(response, SUMS) == expected.answer


@pytest.mark.parametrize("style", STYLES)
def test_without_a_ground_truth_the_answer_is_only_read(style: str) -> None:
    response = '{"House 1": {"Name": "Eric"}}' if style == "grid" else r"\boxed{5}"
    result = score(response, None, style)
    assert result.answer and result.formatted and not result.correct and result.error is None
    assert (
        result.answer == extract(response, style) == score(response, "5" if style != "grid" else response, style).answer
    )


def test_a_verifier_that_takes_too_long_leaves_the_answer_for_the_vote(caplog: pytest.LogCaptureFixture) -> None:
    started = time.monotonic()
    result = score(r"\boxed{9^{9^{9^{9}}}}", r"\pi", timeout=0.5)
    assert time.monotonic() - started < 30
    assert (result.correct, result.answer, result.formatted) == (False, "9^{9^{9^{9}}}", True)
    assert result.error == "timeout: tempo_verl.rewards.algebra:judge took longer than 0.5 s"
    assert result.error in caplog.text


@pytest.mark.parametrize("style", [*STYLES, SUMS])
def test_known_styles(style: str) -> None:
    check_style(style)
    assert check_ground_truth(" ", style) == "empty"


@pytest.mark.parametrize(
    "style",
    ["nonsense", "no_such_module:verify", "tempo_verl.rewards:nothing", "tempo_verl.rewards:", ":verify", ".a:b", ""],
)
def test_an_unknown_style_is_told_with_the_known_ones(style: str) -> None:
    for use in (check_style, lambda style: score("1", "1", style), lambda style: check_ground_truth("1", style)):
        with pytest.raises(UserError, match=f"neither one of {', '.join(STYLES)} nor an importable module:") as caught:
            use(style)
        assert f"reward_model.style={style!r}" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("style", "data_source", "expected"),
    [
        ("choice", "math500", "choice"),
        (SUMS, None, SUMS),
        ("rule", "Idavidrein/gpqa", "choice"),
        ("rule", "TIGER-Lab/MMLU-Pro", "choice"),
        ("rule", "allenai/ZebraLogicBench", "grid"),
        ("rule", "lukaemon/bbh", "text"),
        ("rule-lighteval/MATH_v2", "lighteval/MATH", "math"),
        ("rule", None, "math"),
        (None, "gpqa", "choice"),
        ("", "", "math"),
    ],
)
def test_the_style_of_a_row(style: str | None, data_source: str | None, expected: str) -> None:
    assert style_of(style, data_source) == expected


# ---------------------------------------------------------------------- verl's reward manager


@pytest.fixture(scope="module")
def tokenizer(tiny_policy: Path):
    return AutoTokenizer.from_pretrained(tiny_policy)


def rollout(tokenizer, response: str, reward_model: dict[str, Any], data_source: str = "test") -> DataProto:
    """One sample as verl's agent loop hands it to a reward manager: padded left and right, here with visible text."""
    ids = tokenizer(response + "<eos>")["input_ids"]
    pad = tokenizer.convert_tokens_to_ids("9")
    prompts = torch.tensor([[pad, pad, *tokenizer("3+7+5=")["input_ids"]]])
    responses = torch.tensor([ids + [pad] * (16 - len(ids))])
    length = torch.tensor([[0, 0, *[1] * 6, *[1] * len(ids), *[0] * (16 - len(ids))]])
    data = DataProto.from_dict({"prompts": prompts, "responses": responses, "attention_mask": length})
    data.non_tensor_batch["reward_model"] = np.array([reward_model], dtype=object)
    data.non_tensor_batch["data_source"] = np.array([data_source], dtype=object)
    return data


def run_single(tokenizer, data: DataProto) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        return await TempoRewardManager(None, tokenizer).run_single(data)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("response", "correct", "answer"), [("70y55y", 1.0, "5"), ("70y56y", 0.0, "6"), ("y", 0.0, "")]
)
def test_a_labeled_row_is_scored(tokenizer, response: str, correct: float, answer: str) -> None:
    result = run_single(tokenizer, rollout(tokenizer, response, {"style": SUMS, "ground_truth": "5"}))
    info = {"acc": correct, "pred": answer, "format": float(answer != ""), "verifier_error": "", "style": SUMS}
    assert result == {"reward_score": correct, "reward_extra_info": info | {"data_source": "test"}}


@pytest.mark.parametrize("draft", ["70y", "70y56y70y56y70y"])
def test_of_several_outputs_the_last_is_scored_whatever_their_lengths(tokenizer, draft: str) -> None:
    of_outputs = (["3+7+5=3+7+5=", "3+7+5="], [draft, "70y55y<eos>"])
    prompts, responses = ([torch.tensor(tokenizer(text)["input_ids"]) for text in texts] for texts in of_outputs)
    # as verl's agent loop does: the mask is padded over prompt and response, each of which is padded by itself
    masks = [torch.ones(len(prompt) + len(response)) for prompt, response in zip(prompts, responses, strict=True)]
    columns = {"prompts": prompts, "responses": responses, "attention_mask": masks}
    data = DataProto.from_dict({name: pad_sequence(rows, batch_first=True) for name, rows in columns.items()})
    data.non_tensor_batch["reward_model"] = np.array([{"style": SUMS, "ground_truth": "5"}] * 2, dtype=object)
    data.non_tensor_batch["data_source"] = np.array(["test"] * 2, dtype=object)
    data.non_tensor_batch["response_len"] = np.array([len(response) for response in responses])
    assert run_single(tokenizer, data)["reward_extra_info"]["pred"] == "5"


def test_a_truth_that_is_a_number_is_read_as_text(tokenizer) -> None:
    result = run_single(tokenizer, rollout(tokenizer, "70y55y", {"style": SUMS, "ground_truth": 5}))
    assert result["reward_score"] == 1.0


@pytest.mark.parametrize(("response", "answer"), [("70y55y", "5"), ("y", "")])
def test_of_an_unlabeled_row_only_the_answer_is_read_out(tokenizer, response: str, answer: str) -> None:
    result = run_single(tokenizer, rollout(tokenizer, response, {"style": SUMS, "ground_truth": None}))
    info = {"pred": answer, "format": float(answer != ""), "verifier_error": "", "style": SUMS}
    info["data_source"] = "test"
    assert result == {"reward_score": 0.0, "reward_extra_info": info}  # no "acc": nothing is known


@pytest.mark.parametrize("style", [None, "rule"])
@pytest.mark.parametrize(("source", "correct"), [("math500", 1.0), ("bbh", 0.0)])
def test_a_row_without_a_style_has_that_of_its_source(
    tokenizer, style: str | None, source: str, correct: float
) -> None:
    result = run_single(tokenizer, rollout(tokenizer, "5", {"style": style, "ground_truth": "5.0"}, source))
    assert result["reward_score"] == correct  # as numbers equal, as text not


def test_an_error_in_scoring_is_raised(tokenizer) -> None:
    with pytest.raises(UserError, match="neither one of"):
        run_single(tokenizer, rollout(tokenizer, "5", {"style": "no_such_style", "ground_truth": "5"}))


def test_a_row_names_no_function_that_was_not_allowed(tokenizer) -> None:
    row = rollout(tokenizer, "5", {"style": "no_such_module:f", "ground_truth": "5"})
    with pytest.raises(UserError, match=r"names a function to call.*tempo\.verifier\.allow"):
        run_single(tokenizer, row)


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


def test_an_answer_that_never_finishes_is_wrong_and_told(compose, tokenizer) -> None:
    config = compose(["tempo.verifier.timeout=0.5"])
    data = rollout(tokenizer, "5", {"style": "math", "ground_truth": r"\pi"})
    started = time.monotonic()
    result = asyncio.run(TempoRewardManager(config, Says(r"\boxed{9^{9^{9^{9}}}}")).run_single(data))
    assert time.monotonic() - started < 30
    assert result["reward_score"] == 0.0
    info = result["reward_extra_info"]
    assert info.pop("verifier_error") == "timeout: tempo_verl.rewards.algebra:judge took longer than 0.5 s"
    assert info == {"acc": 0.0, "pred": "9^{9^{9^{9}}}", "format": 1.0, "style": "math", "data_source": "test"}
