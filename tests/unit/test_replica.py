# SPDX-License-Identifier: Apache-2.0
"""The rollout server of the CPU backend: requests that are interrupted, and go on under other weights."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tempo_verl.backends.replica import TransformersServer

pytestmark = pytest.mark.usefixtures("one_thread")
LONG = 4000  # tokens: seconds
ENDLESS = {"ignore_eos": True, "logprobs": True, "max_tokens": LONG}


@pytest.fixture
def server(tiny_policy: Path) -> TransformersServer:
    model = SimpleNamespace(path=str(tiny_policy), tokenizer_path=None, trust_remote_code=False)
    return TransformersServer(SimpleNamespace(response_length=LONG, max_num_seqs=4, seed=1), model, 0)


def log_probs(server: TransformersServer, prompt: list[int], response: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits = server.model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None]).squeeze(-1)


def test_an_interrupted_request_goes_on_under_the_new_weights(server: TransformersServer, able_policy: Path) -> None:
    prompt = AutoTokenizer.from_pretrained(able_policy)("3+7+5=")["input_ids"]
    new = {name: t.numpy() for name, t in AutoModelForCausalLM.from_pretrained(able_policy).state_dict().items()}

    async def scene() -> None:
        first = asyncio.create_task(server.generate("a", prompt, ENDLESS))
        while not server.batch.locked():
            await asyncio.sleep(0.01)
        await server.abort_all_requests()
        begun = await asyncio.wait_for(first, 20)
        assert begun.stop_reason == "aborted"
        assert 0 < len(begun.token_ids) == len(begun.log_probs) < LONG
        assert torch.tensor(begun.log_probs) == pytest.approx(log_probs(server, prompt, begun.token_ids), abs=1e-3)

        context = prompt + begun.token_ids
        rest = asyncio.create_task(server.generate("a", context, ENDLESS | {"max_tokens": 5}))
        await asyncio.sleep(0.3)
        assert not rest.done()  # the weights may change now
        await server.update_weights(new, 1)
        await server.resume_generation()
        ended = await asyncio.wait_for(rest, 20)
        assert (ended.stop_reason, ended.extra_fields["global_steps"], len(ended.token_ids)) == ("completed", 1, 5)
        assert torch.tensor(ended.log_probs) == pytest.approx(log_probs(server, context, ended.token_ids), abs=1e-3)

    asyncio.run(scene())


def test_nothing_to_interrupt_is_no_interruption(server: TransformersServer) -> None:
    async def scene() -> None:
        await server.abort_all_requests()
        await server.resume_generation()
        answer = await server.generate("a", [1, 2], ENDLESS | {"max_tokens": 3})
        assert (answer.stop_reason, len(answer.token_ids)) == ("completed", 3)
        with pytest.raises(NotImplementedError):
            await server.abort_all_requests(reject_request=True)

    asyncio.run(scene())
