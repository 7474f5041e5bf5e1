# SPDX-License-Identifier: Apache-2.0
"""Rollouts of whole batches, for ``rollout.name=transformers``.

verl's agent loop handles every sample by itself (its own actor calls, scoring call and queue write: about 10 ms a
sample, whatever the model), which on a CPU is most of a round. Single-turn rollouts need none of that: this manager
generates, scores and stores a batch in a handful of calls, through the same replicas, reward workers and queue fields.
It is chosen by ``rollout.agent.agent_loop_manager_class``; set that to null for tools or multi-turn agents.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any

import numpy as np
import ray
import torch
from tensordict import NonTensorData, NonTensorStack, TensorDict
from torch.nn.utils.rnn import pad_sequence
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from tempo_verl.backends.replica import server_name
from tempo_verl.errors import UserError
from tempo_verl.trainer.batch import put
from tempo_verl.trainer.status import told

logger = logging.getLogger(__name__)

SINGLE_TURN = "single_turn_agent"
# What anybody reads later of a question's columns. Each column is an object for each sample on its way to the queue.
STORED = ("uid", "data_source", "reward_model")


class BatchRolloutManager:
    """Stands in for verl's agent-loop manager: ``create`` and a non-blocking ``generate_sequences``."""

    def __init__(self, config, reward_loop_worker_handles):
        agent_loop = config.actor_rollout_ref.rollout.agent.default_agent_loop
        if agent_loop != SINGLE_TURN:
            raise UserError(
                f"actor_rollout_ref.rollout.agent.default_agent_loop={agent_loop}: batched rollouts are single-turn; "
                "set actor_rollout_ref.rollout.agent.agent_loop_manager_class=null"
            )
        self.rollout = config.actor_rollout_ref.rollout
        model = omega_conf_to_dataclass(config.actor_rollout_ref.model)
        self.chat = create_continuous_token_builder(
            model.tokenizer,
            hf_model_type=model.hf_config.model_type,
            chat_template_kwargs=config.data.get("apply_chat_template_kwargs", {}),
        )
        replicas = config.trainer.n_gpus_per_node * config.trainer.nnodes
        self.servers = [ray.get_actor(server_name(rank)) for rank in range(replicas)]
        self.reward_workers = reward_loop_worker_handles
        self.threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="rollout")

    @classmethod
    def create(cls, config, llm_client=None, teacher_client=None, reward_loop_worker_handles=None):
        """Called by verl's task runner; requests go to the replicas directly, so the client is not needed."""
        return cls(config, reward_loop_worker_handles)

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Start rolling out; samples and then the prompts' final status appear in TransferQueue."""
        validate = "validate" in prompts and bool(prompts["validate"])
        self.threads.submit(self._roll_out, [_row(prompts, i) for i in range(len(prompts))], validate)

    def _roll_out(self, rows: list[dict[str, Any]], validate: bool) -> None:
        partition, uids = "val" if validate else "train", [row["uid"] for row in rows]
        try:
            samples = self._generate(rows, validate)
            self._score(samples)
            self._store(samples, partition)
            tag = {"status": "finished"}
        except Exception as error:  # told by the status: the trainer stops when too many samples are missing
            logger.exception("rollout of %d prompts failed", len(rows))
            tag = {"status": "failure", "error": told(error)}
        put(partition, uids, [tag for _ in uids])

    def _generate(self, rows: list[dict[str, Any]], validate: bool) -> list[tuple[dict[str, Any], AgentLoopOutput]]:
        """n samples a prompt, as (row with its ``session_id``, output) pairs."""
        options = self.rollout.val_kwargs if validate else self.rollout
        params = {name: options[name] for name in ("temperature", "top_p", "top_k")} | {"logprobs": True}
        requests, prompts = [], []
        for row in rows:
            if row.get("agent_name", SINGLE_TURN) != SINGLE_TURN:
                raise UserError(
                    f"a question asks for agent_name={row['agent_name']}: batched rollouts are single-turn; "
                    "set actor_rollout_ref.rollout.agent.agent_loop_manager_class=null"
                )
            n = int(row.pop("__rollout_n__", options.n))
            prompt = self.chat.build_initial_tokens(list(row["raw_prompt"]))
            if len(prompt) > self.rollout.prompt_length:
                raise UserError(
                    f"a prompt has {len(prompt)} tokens, more than data.max_prompt_length={self.rollout.prompt_length}"
                )
            requests += [row | {"session_id": session} for session in range(n)]
            prompts += repeat(prompt, n)
        # Neighbours (samples of one prompt) go to different replicas; a prompt meets the same replicas every time.
        shares = [range(rank, len(prompts), len(self.servers)) for rank in range(len(self.servers))]
        answers = ray.get(
            [
                server.generate_batch.remote([prompts[i] for i in share], params)
                for server, share in zip(self.servers, shares, strict=True)
            ]
        )
        outputs: list[Any] = [None] * len(prompts)
        for share, part in zip(shares, answers, strict=True):
            for i, token_output in zip(share, part, strict=True):
                outputs[i] = _as_agent_output(prompts[i], token_output)
        return list(zip(requests, outputs, strict=True))

    def _score(self, samples: list[tuple[dict[str, Any], AgentLoopOutput]]) -> None:
        """Fill in reward and ``reward_extra_info`` by verl's reward workers, each a share of the batch."""
        shares = [samples[rank :: len(self.reward_workers)] for rank in range(len(self.reward_workers))]
        scored = ray.get(
            [
                worker.compute_score_batch.remote(_reward_input(share))
                for worker, share in zip(self.reward_workers, shares, strict=True)
                if share
            ]
        )
        for share, results in zip([share for share in shares if share], scored, strict=True):
            for (_, output), result in zip(share, results, strict=True):
                output.reward_score = result["reward_score"]
                output.extra_fields["reward_extra_info"] = result["reward_extra_info"]

    @staticmethod
    def _store(samples: list[tuple[dict[str, Any], AgentLoopOutput]], partition: str) -> None:
        keys, fields, tags = [], [], []
        for row, output in samples:
            field = output.as_dict() | {name: row[name] for name in STORED}
            input_ids = torch.cat([field["prompts"], field["responses"]])
            field |= {
                "loss_mask": field["response_mask"],
                "input_ids": input_ids,
                "position_ids": torch.arange(len(input_ids)),
            }
            keys.append(f"{row['uid']}_{row['session_id']}_0")
            fields.append(field)
            prompt_len, response_len = len(field["prompts"]), len(field["responses"])
            tags.append(
                {
                    "status": "success",
                    "prompt_len": prompt_len,
                    "response_len": response_len,
                    "seq_len": prompt_len + response_len,
                    "global_steps": row["global_steps"],
                    "min_global_steps": output.extra_fields["min_global_steps"],
                    "max_global_steps": output.extra_fields["max_global_steps"],
                }
            )
        put(partition, keys, tags, list_of_dict_to_tensordict(fields))


def _row(prompts: TensorDict, index: int) -> dict[str, Any]:
    """One prompt's columns as plain values."""
    row: dict[str, Any] = {}
    for name, column in prompts.items():
        if isinstance(column, NonTensorStack):
            row[name] = column[index].data
        elif isinstance(column, NonTensorData):
            row[name] = column.data
        else:
            row[name] = column[index]
    return row


def _as_agent_output(prompt_ids: list[int], output) -> AgentLoopOutput:
    steps = output.extra_fields.get("global_steps")
    return AgentLoopOutput(
        prompt_ids=prompt_ids,
        response_ids=output.token_ids,
        response_mask=[1] * len(output.token_ids),
        response_logprobs=output.log_probs,
        num_turns=2,
        metrics=AgentLoopMetrics(),
        extra_fields={
            "global_steps": steps,
            "min_global_steps": steps,
            "max_global_steps": steps,
            "turn_scores": [],
            "tool_rewards": [],
        },
    )


def _reward_input(samples: list[tuple[dict[str, Any], AgentLoopOutput]]) -> DataProto:
    """What verl's reward managers read: right-padded [prompts | responses] and the prompt's columns."""
    prompts = [torch.tensor(output.prompt_ids) for _, output in samples]
    responses = [torch.tensor(output.response_ids) for _, output in samples]
    mask = torch.cat([_padded([torch.ones_like(ids) for ids in part]) for part in (prompts, responses)], dim=1)
    batch = {"prompts": _padded(prompts), "responses": _padded(responses), "attention_mask": mask}
    columns = {name: [row[name] for row, _ in samples] for name in samples[0][0]}
    columns["__num_turns__"] = [output.num_turns for _, output in samples]
    columns["tool_extra_fields"] = [output.extra_fields for _, output in samples]
    return DataProto(
        batch=TensorDict(batch, batch_size=len(samples)),
        non_tensor_batch={name: _objects(values) for name, values in columns.items()},
    )


def _padded(rows: list[torch.Tensor]) -> torch.Tensor:
    return pad_sequence(rows, batch_first=True)


def _objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
