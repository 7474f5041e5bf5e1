# SPDX-License-Identifier: Apache-2.0
"""verl's reward manager for TEMPO: scores rows that carry an answer, and only reads out the answer of the others."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from tempo_verl.rewards import extract, score


class TempoRewardManager(RewardManagerBase):
    """Runs in verl's reward workers, one response at a time.

    ``reward_extra_info`` holds ``pred`` (extracted answer or ``None``) for every row and ``acc`` (0 or 1) for rows with
    a ground truth; the reward of a row without one is 0 here and set by the trainer later.
    """

    def __init__(self, config, tokenizer, compute_score=None, **_unused: Any):
        super().__init__(config, tokenizer, compute_score)
        # One child process: verifiers run in its main thread, where Math-Verify's timeouts work, so that no answer can
        # hold up a run; started with the first response.
        self._verifier = ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        item = data[-1]
        response_ids = item.batch["responses"]
        length = int(item.batch["attention_mask"][-response_ids.shape[-1] :].sum())
        reward_model = item.non_tensor_batch["reward_model"]
        style, truth = reward_model.get("style") or "math", reward_model["ground_truth"]
        response = self.tokenizer.decode(response_ids[:length], skip_special_tokens=True)  # type: ignore[attr-defined]
        if truth is None:
            answer = await self._verify(extract, response, style)
            return {"reward_score": 0.0, "reward_extra_info": {"pred": answer}}
        result = await self._verify(score, response, str(truth), style)
        correct = float(result.correct)
        return {"reward_score": correct, "reward_extra_info": {"acc": correct, "pred": result.answer}}

    async def _verify(self, function: Callable[..., Any], *arguments: str) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._verifier, function, *arguments)
