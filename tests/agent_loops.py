# SPDX-License-Identifier: Apache-2.0
"""A tool, a parser that always calls it, and a loop with several outputs: small enough for the tiny models.

verl's agent-loop workers load this file by ``rollout.multi_turn.function_tool_path``.
"""

from __future__ import annotations

from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register
from verl.experimental.agent_loop.tool_parser import FunctionCall, ToolParser
from verl.tools.function_tool import function_tool

HINT = "+0="


@function_tool
def hint() -> str:
    """Say something that the tiny policy has seen before."""
    return HINT


@ToolParser.register("always")
class AlwaysCalls(ToolParser):
    """Every response is a call; ``multi_turn.max_assistant_turns`` ends it."""

    async def extract_tool_calls(self, responses_ids, tools=None):
        return self.tokenizer.decode(responses_ids), [FunctionCall(name="hint", arguments="{}")]


@register("drafts")
class Drafts(AgentLoopBase):
    """Session s has s % 3 drafts, in answer to the question said twice, and then its answer: 1, 2 or 3 outputs."""

    async def run(self, sampling_params, *, session_id: int, **row):
        question = await self.ct_build_initial_tokens(list(row["raw_prompt"]))
        contexts = [question * 2] * (session_id % 3) + [question]
        return [await self._output(context, sampling_params) for context in contexts]

    async def _output(self, prompt: list[int], sampling_params) -> AgentLoopOutput:
        drawn = await self.server_manager.generate(
            request_id=uuid4().hex, prompt_ids=prompt, sampling_params=sampling_params
        )
        return AgentLoopOutput(
            prompt_ids=prompt,
            response_ids=drawn.token_ids,
            response_mask=[1] * len(drawn.token_ids),
            response_logprobs=drawn.log_probs,
            num_turns=2,
            metrics=AgentLoopMetrics(),
            extra_fields={**drawn.extra_fields, "turn_scores": [], "tool_rewards": []},
        )
