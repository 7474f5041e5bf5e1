# SPDX-License-Identifier: Apache-2.0
"""verl's reward manager for TEMPO: scores rows that carry an answer, and only reads out the answer of the others."""

from __future__ import annotations

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

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        item = data[-1]
        response_ids = item.batch["responses"]
        length = int(item.batch["attention_mask"][-response_ids.shape[-1] :].sum())
        reward_model = item.non_tensor_batch["reward_model"]
        return await self.loop.run_in_executor(
            None, self._score, response_ids[:length], reward_model.get("style") or "math", reward_model["ground_truth"]
        )

    def _score(self, response_ids, style: str, ground_truth: str | None) -> dict[str, Any]:
        response: str = self.tokenizer.decode(response_ids, skip_special_tokens=True)  # type: ignore[attr-defined]
        if ground_truth is None:
            return {"reward_score": 0.0, "reward_extra_info": {"pred": extract(response, style)}}
        result = score(response, str(ground_truth), style)
        correct = float(result.correct)
        return {"reward_score": correct, "reward_extra_info": {"acc": correct, "pred": result.answer}}
