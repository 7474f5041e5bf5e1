# SPDX-License-Identifier: Apache-2.0
"""verl's reward manager for TEMPO: scores rows that carry an answer, and only reads out the answer of the others."""

from __future__ import annotations

import asyncio
from typing import Any

from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from tempo_verl.rewards import SECONDS, check_allowed, options_of, score, style_of


class TempoRewardManager(RewardManagerBase):
    """Runs in verl's reward workers, one response at a time: the last output of an agent-loop session.

    ``reward_extra_info`` holds for every row ``pred`` (the extracted answer, "" if there is none: verl votes on text),
    ``format`` (1 if it stands where it was asked for), ``verifier_error`` (why there is no verdict, else ""),
    ``style`` (its verifier) and ``data_source`` (its set, by which the report groups dumped rows); for rows with a
    ground truth also ``acc`` (0 or 1). The reward of a row without one is 0 here, and set by the trainer later.
    """

    def __init__(self, config, tokenizer, compute_score=None, **_unused: Any):
        super().__init__(config, tokenizer, compute_score)
        self.timeout = SECONDS if config is None else config.tempo.verifier.timeout
        self.read_unfinished = config is not None and config.tempo.verifier.read_unfinished
        self.allowed = () if config is None else config.tempo.verifier.allow

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        item = data[-1]
        response_ids, row = item.batch["responses"], item.non_tensor_batch
        # verl's agent loop pads prompt and response of several outputs as one, so its mask does not tell the length
        length = int(row.get("response_len", item.batch["attention_mask"][-response_ids.shape[-1] :].sum()))
        truth = row["reward_model"]["ground_truth"]
        style = style_of(row["reward_model"].get("style"), row.get("data_source"))
        check_allowed([style], self.allowed, str(row.get("data_source")), "tempo.verifier.allow=[NAME]")
        result = await asyncio.to_thread(
            score,
            self.tokenizer.decode(response_ids[:length], skip_special_tokens=True),  # type: ignore[attr-defined]
            None if truth is None else str(truth),
            style,
            options=options_of(row.get("extra_info") or {}),
            timeout=self.timeout,
            read_unfinished=self.read_unfinished,
        )
        info = {
            "style": style,
            "pred": result.answer or "",
            "format": float(result.formatted),
            "verifier_error": result.error or "",
            "data_source": str(row.get("data_source") or ""),
        }
        if truth is not None:
            info["acc"] = float(result.correct)
        return {"reward_score": info.get("acc", 0.0), "reward_extra_info": info}
