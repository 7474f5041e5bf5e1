# SPDX-License-Identifier: Apache-2.0
"""The generation side of ``rollout.name=transformers``: a Ray actor that batches requests, and its verl replica."""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections import Counter
from typing import Any

import numpy as np
import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

from tempo_verl.backends.sampling import Request, generate

# How long the server waits for one more request before it starts a batch. Agent-loop workers hand requests over one by
# one, a few milliseconds apart; a batch twice as large costs hardly more.
GATHER_SECONDS = 0.02


def server_name(replica_rank: int) -> str:
    """Ray actor name of a replica's server."""
    return f"transformers_server_{replica_rank}"


class TransformersServer:
    """One copy of the policy that answers ``generate`` calls in batches (async Ray actor)."""

    def __init__(self, config, model_config, replica_rank: int):
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from verl.utils.fs import copy_to_local

        self.config, self.replica_rank = config, replica_rank
        self.tokenizer = AutoTokenizer.from_pretrained(
            copy_to_local(model_config.tokenizer_path or model_config.path),
            trust_remote_code=model_config.trust_remote_code,
        )
        self.model = AutoModelForCausalLM.from_pretrained(
            copy_to_local(model_config.path),
            dtype=torch.float32,
            attn_implementation="sdpa",
            trust_remote_code=model_config.trust_remote_code,
        ).eval()
        self.adapted: Any = None  # the model with its LoRA adapter, once there is one
        self.global_steps: int | None = None
        self.repeats: Counter = Counter()
        self.in_validation = False
        self.waiting: list[tuple[Request, asyncio.Future]] = []
        self.arrived = asyncio.Event()
        self.serving: asyncio.Task | None = None
        self.interrupt = threading.Event()  # read after every token, in the thread of the batch
        self.running = asyncio.Event()  # requests are taken up
        self.running.set()
        self.batch = asyncio.Lock()  # held while one is drawn

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **_kwargs: Any
    ) -> TokenOutput:
        """Continue ``prompt_ids``; ``log_probs`` are those of softmax(logits / temperature)."""
        if self.serving is None:
            self.serving = asyncio.get_running_loop().create_task(self._serve())
        prompt = tuple(int(token) for token in prompt_ids)
        request = Request.from_sampling_params(
            prompt, sampling_params, max_tokens=self.config.response_length, seed=self._seed(prompt)
        )
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((request, future))
        self.arrived.set()
        completion = await future
        return TokenOutput(
            token_ids=completion.token_ids,
            log_probs=completion.log_probs if sampling_params.get("logprobs") else None,
            stop_reason="aborted" if completion.interrupted else "completed",  # verl's client goes on with the former
            extra_fields={"global_steps": self.global_steps},
        )

    async def generate_batch(self, prompts: list[list[int]], sampling_params: dict[str, Any]) -> list[TokenOutput]:
        """:meth:`generate` for many prompts in one call, answers in their order."""
        return await asyncio.gather(*(self.generate("", prompt, sampling_params) for prompt in prompts))

    def _seed(self, prompt: tuple[int, ...]) -> int:
        """A seed that depends on the run's seed, the policy version, the prompt and its how-manieth sample this is.

        Not on the order in which different prompts arrive, so that a run can be repeated. Samples in validation are
        other ones, and are counted apart, so that validating does not change what is trained on.
        """
        digest = zlib.crc32(np.asarray(prompt, dtype=np.int64).tobytes())
        repeat = self.repeats[prompt]
        self.repeats[prompt] += 1
        entropy = [self.config.seed, self.replica_rank, (self.global_steps or 0) + 1, digest, repeat]
        entropy += [1] * self.in_validation
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    async def _serve(self) -> None:
        """Answer requests in batches of at most ``rollout.max_num_seqs``, for as long as the actor lives."""
        while True:
            await self.arrived.wait()
            seen = 0
            while seen < len(self.waiting) < self.config.max_num_seqs:
                seen = len(self.waiting)
                await asyncio.sleep(GATHER_SECONDS)
            await self.running.wait()
            async with self.batch:
                if self.running.is_set():  # an abort may have been first
                    await self._serve_batch()

    async def _serve_batch(self) -> None:
        batch, self.waiting = self.waiting[: self.config.max_num_seqs], self.waiting[self.config.max_num_seqs :]
        if not self.waiting:
            self.arrived.clear()
        requests, loop = [request for request, _ in batch], asyncio.get_running_loop()
        try:
            completions = await loop.run_in_executor(
                None, generate, self.model, self.tokenizer, requests, self.interrupt.is_set
            )
        except Exception as error:  # handed to every caller of this batch: they fail, the server lives on
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), completion in zip(batch, completions, strict=True):
            future.set_result(completion)

    async def update_weights(
        self, weights: dict[str, np.ndarray], global_steps: int | None, lora: dict[str, Any] | None = None
    ) -> None:
        """Take over the training process's weights (full tensors).

        Args:
            weights: of the model, by Hugging Face names; or of its LoRA adapter, by peft's.
            global_steps: the policy version.
            lora: configuration of the adapter that ``weights`` are.

        Raises:
            ValueError: a name or a shape does not fit the model.
        """
        tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
        if lora is None:
            unknown = self.model.load_state_dict(tensors, strict=False).unexpected_keys
        else:
            unknown = self._update_adapter(tensors, lora)
        if unknown:
            raise ValueError(f"rollout weights not in the model: {sorted(unknown)[:3]}")
        if global_steps is not None and global_steps != self.global_steps:
            self.global_steps = global_steps
            self.repeats.clear()

    def _update_adapter(self, weights: dict[str, torch.Tensor], lora: dict[str, Any]) -> list[str]:
        """Put the adapter on the model, the first time, and give it these weights; returns those without a place."""
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

        if self.adapted is None:
            self.adapted = get_peft_model(self.model, LoraConfig(**lora)).eval()  # its layers are now in self.model
        return set_peft_model_state_dict(self.adapted, weights).unexpected_keys

    async def validate(self, on: bool) -> None:
        """Whether the samples from here on are those of a validation."""
        self.in_validation = on
        self.repeats.clear()

    async def sleep(self) -> None:
        """Nothing to free: the CPU backend shares no device memory with training."""

    async def wake_up(self, tags: list[str] | None = None) -> None:
        """See :meth:`sleep`."""

    async def clear_kv_cache(self) -> None:
        """See :meth:`sleep`: no cache outlives a batch."""

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        """Hand out what is drawn so far, as ``aborted``; later requests wait for :meth:`resume_generation`.

        Args:
            reject_request: refuse them instead; not here, where engines are not lent to training.

        Raises:
            NotImplementedError: ``reject_request``.
        """
        if reject_request:
            raise NotImplementedError("rollout.name=transformers holds requests that come after an abort")
        self.running.clear()
        self.interrupt.set()
        async with self.batch:  # nothing is drawn any more, so the weights may change
            self.interrupt.clear()

    async def resume_generation(self) -> None:
        """Take up requests again."""
        self.running.set()


class TransformersReplica(RolloutReplica):
    """verl's handle on one :class:`TransformersServer`, placed on the node of the training process that feeds it."""

    def validate(self, on: bool) -> None:
        """Tell the server whether a validation begins, or is over."""
        ray.get([server.validate.remote(on) for server in self.servers])

    async def launch_servers(self) -> None:
        node_id = await self.workers[0].__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id())
        server = (
            ray.remote(TransformersServer)
            .options(
                name=server_name(self.replica_rank),
                num_cpus=0,
                max_concurrency=self.max_concurrency,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node_id, soft=False),
            )
            .remote(self.config, self.model_config, self.replica_rank)
        )
        await server.sleep.remote()  # wait until the model is loaded, and hear now if it cannot be
        self.servers = [server]
        self._server_handle = server
        self._server_address = server_name(self.replica_rank)
