# SPDX-License-Identifier: Apache-2.0
"""Batched sampling with ``transformers``: every request has its own temperature, top-p, top-k, seed and stops.

``model.generate`` keeps the cache and the loop. A logits processor draws each row's next token by the Gumbel-max trick
(argmax of log p + Gumbel noise is an exact sample of p), so greedy ``generate`` returns samples, rows do not share a
random stream, and the log-probability of each drawn token is known exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from tempo_verl.errors import UserError


@dataclass(frozen=True)
class Request:
    """One prompt to continue.

    Attributes:
        prompt_ids: token ids of the prompt.
        max_tokens: most tokens to draw.
        seed: seed of this request's own random stream.
        temperature: 0 is greedy.
        top_p, top_k: nucleus and top-k limits; 1.0 and -1 turn them off.
        stop: strings that end the response (kept in it).
        stop_token_ids: token ids that end the response, beside the model's end tokens.
        ignore_eos: do not stop at the model's end tokens.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    @classmethod
    def from_sampling_params(cls, prompt_ids, params: dict, *, max_tokens: int, seed: int) -> Request:
        """Read a verl/vLLM ``sampling_params`` dict.

        Raises:
            UserError: a penalty is asked for, which this backend does not implement.
        """
        for name, neutral in (("repetition_penalty", 1.0), ("presence_penalty", 0.0), ("frequency_penalty", 0.0)):
            if params.get(name, neutral) not in (None, neutral):
                raise UserError(
                    f"rollout {name}={params[name]} is not implemented by rollout.name=transformers; use vllm"
                )
        stop = params.get("stop") or ()
        limit = params.get("max_tokens") or params.get("max_new_tokens") or max_tokens
        return cls(
            prompt_ids=tuple(prompt_ids),
            max_tokens=min(int(limit), max_tokens),
            seed=int(seed if params.get("seed") is None else params["seed"]),
            temperature=float(params.get("temperature", 1.0)),
            top_p=float(params.get("top_p", 1.0)),
            top_k=int(params.get("top_k") or -1),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            stop_token_ids=tuple(params.get("stop_token_ids") or ()),
            ignore_eos=bool(params.get("ignore_eos", False)),
        )


@dataclass
class Completion:
    """Drawn ``token_ids`` and, aligned with them, ``log_probs`` under softmax(logits / temperature).

    ``truncated``: the limit ended it, no end token or stop string. ``interrupted``: it could go on.
    """

    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    truncated: bool = False
    interrupted: bool = False


def restrict(log_probs: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Set what top-k and top-p exclude to -inf, row by row.

    Args:
        log_probs: (B, V) float.
        top_k: (B,) int64, V or more where off.
        top_p: (B,) float, 1.0 where off.
    """
    size = log_probs.size(-1)
    if bool((top_k >= size).all() and (top_p >= 1.0).all()):
        return log_probs
    ordered, order = log_probs.sort(dim=-1, descending=True)
    mass_before = ordered.exp().cumsum(dim=-1) - ordered.exp()
    rank = torch.arange(size, device=ordered.device).expand_as(ordered)
    excluded = (rank >= top_k.unsqueeze(-1)) | ((mass_before >= top_p.unsqueeze(-1)) & (top_p < 1.0).unsqueeze(-1))
    excluded[:, 0] = False  # the likeliest token always stays
    return log_probs.masked_fill(excluded.gather(-1, order.argsort(dim=-1)), float("-inf"))


class _Sampler(LogitsProcessor):
    """Draws each row's token; ``log_probs`` holds, per step, the (B,) log-probabilities of the tokens drawn."""

    def __init__(self, requests: list[Request], vocab_size: int, device: torch.device):
        temperature = torch.tensor([r.temperature for r in requests], device=device)
        self.greedy = (temperature <= 0).unsqueeze(-1)
        self.temperature = temperature.masked_fill(temperature <= 0, 1.0).unsqueeze(-1)
        self.top_k = torch.tensor([r.top_k if r.top_k > 0 else vocab_size for r in requests], device=device)
        self.top_p = torch.tensor([r.top_p for r in requests], device=device)
        self.streams = [torch.Generator(device).manual_seed(r.seed) for r in requests]
        self.log_probs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        log_probs = torch.log_softmax(scores.float() / self.temperature, dim=-1)
        exponential = torch.stack(
            [torch.empty_like(row).exponential_(generator=g) for row, g in zip(log_probs, self.streams, strict=True)]
        )
        gumbel = -exponential.clamp_min(1e-30).log()
        keyed = restrict(log_probs, self.top_k, self.top_p) + gumbel.masked_fill(self.greedy, 0.0)
        self.log_probs.append(log_probs.gather(-1, keyed.argmax(dim=-1, keepdim=True)).squeeze(-1))
        return keyed


class _Stops(StoppingCriteria):
    """Ends rows at their own stops and limits.

    ``length`` (B,) is the number of tokens each row keeps, ``truncated`` (B,) whether its limit ended it,
    ``interrupted`` (B,) whether ``interrupt`` did.
    """

    def __init__(
        self,
        requests: list[Request],
        prompt_length: int,
        end_ids: set[int],
        tokenizer,
        interrupt: Callable[[], bool],
    ):
        self.interrupt = interrupt
        self.requests, self.prompt_length, self.tokenizer = requests, prompt_length, tokenizer
        self.end_ids = [
            frozenset(request.stop_token_ids) | (frozenset() if request.ignore_eos else end_ids) for request in requests
        ]
        self.length = [request.max_tokens for request in requests]
        self.truncated = [True] * len(requests)
        self.interrupted = [False] * len(requests)
        self.done = torch.zeros(len(requests), dtype=torch.bool)

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        drawn = input_ids[:, self.prompt_length :]
        step = drawn.size(1)
        last, interrupted = drawn[:, -1].tolist(), self.interrupt()
        for row, request in enumerate(self.requests):
            if self.done[row]:
                continue
            ended = last[row] in self.end_ids[row] or self._has_stop_string(row, drawn)
            full = step >= request.max_tokens
            if ended or full or interrupted:
                self.done[row] = True
                self.length[row] = step
                self.truncated[row] = full and not ended
                self.interrupted[row] = not ended and not full
        return self.done.to(input_ids.device, copy=True)

    def _has_stop_string(self, row: int, drawn: torch.Tensor) -> bool:
        stop = self.requests[row].stop
        if not stop:
            return False
        text = self.tokenizer.decode(drawn[row])
        return any(s in text for s in stop)


@torch.inference_mode()
def generate(
    model, tokenizer, requests: list[Request], interrupt: Callable[[], bool] = lambda: False
) -> list[Completion]:
    """Continue all requests in one batched ``generate`` call (left padding), in the order given.

    Args:
        model: a causal language model in eval mode, whole on one device.
        tokenizer: its tokenizer; only needed for the padding id and for ``stop`` strings.
        requests: at least one, none with an empty prompt.
        interrupt: asked after every token; once it says so, all rows end.

    Raises:
        UserError: the model's logits are no numbers.
    """
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    end_ids = model.generation_config.eos_token_id
    end_ids = tokenizer.eos_token_id if end_ids is None else end_ids
    end_ids = frozenset(end_ids if isinstance(end_ids, list | tuple) else [end_ids])

    width = max(len(request.prompt_ids) for request in requests)
    input_ids = torch.full((len(requests), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, request in enumerate(requests):
        input_ids[row, width - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
        attention_mask[row, width - len(request.prompt_ids) :] = 1

    sampler = _Sampler(requests, model.config.vocab_size, model.device)
    stops = _Stops(requests, width, end_ids, tokenizer, interrupt)
    # `generate` fills in what we leave open from the model's own settings: their end tokens would end rows behind our
    # back, their penalties would bend the distribution that is sampled.
    own_settings, model.generation_config = model.generation_config, GenerationConfig()
    try:
        output = model.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=max(request.max_tokens for request in requests),
                pad_token_id=pad_id,
            ),
            logits_processor=LogitsProcessorList([sampler]),
            stopping_criteria=StoppingCriteriaList([stops]),
        )
    finally:
        model.generation_config = own_settings
    log_probs = torch.stack(sampler.log_probs, dim=1)
    if log_probs.isnan().any():  # the largest of no numbers is the first token
        raise UserError(
            "the policy's probabilities are not finite (nan): its weights have diverged; lower its learning rate "
            "(actor_rollout_ref.actor.optim.lr), and go on from the last checkpoint"
        )
    return [
        Completion(
            output[row, width : width + length].tolist(), log_probs[row, :length].tolist(), truncated, interrupted
        )
        for row, (length, truncated, interrupted) in enumerate(
            zip(stops.length, stops.truncated, stops.interrupted, strict=True)
        )
    ]
