# SPDX-License-Identifier: Apache-2.0
"""What draws the responses: ``transformers``, on the CPU or one accelerator, or vLLM."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tempo_verl.backends.sampling import Completion, Request, generate
from tempo_verl.errors import UserError

ENGINES = ("transformers", "vllm")


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Attributes:
        model: Hugging Face directory or name of the policy.
        critic: the same of a critic with a trained value head; None for no values.
        n: samples a question.
        temperature: 0 is greedy.
        top_p: nucleus limit, 1 is off.
        max_prompt_tokens, max_tokens: limits of prompt and response.
        seed: of the evaluation; every sample has its own, made of this one, its question and its number.
        engine: ``transformers``, ``vllm``, or ``auto``: vLLM where it is installed.
        final_value: which value of a response, see ``algo.advantage.final_value``.
        chat_template_kwargs: verl's ``data.apply_chat_template_kwargs``.
        trust_remote_code: as in transformers.
        read_unfinished: read an answer in a response that ends within its thinking, see ``rewards.score``.
        batch_size: samples drawn at a time and then written; None is the engine's own: what a kill may cost.
        tensor_parallel: accelerators that share the model, vLLM only.
        allowed: functions that the files may name as verifiers, see ``rewards.check_allowed``.
    """

    model: str
    critic: str | None = None
    n: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    max_prompt_tokens: int = 2048
    max_tokens: int = 8192
    seed: int = 1
    engine: str = "auto"
    final_value: str = "after_last_token"
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False
    read_unfinished: bool = False
    batch_size: int | None = None
    tensor_parallel: int = 1
    allowed: tuple[str, ...] = ()

    @property
    def chosen_engine(self) -> str:
        """``engine`` with ``auto`` resolved.

        Raises:
            UserError: unknown, or not installed.
        """
        installed = importlib.util.find_spec("vllm") is not None
        if self.engine == "auto":
            return "vllm" if installed else "transformers"
        if self.engine not in ENGINES:
            raise UserError(f"--engine={self.engine}: unknown; choose one of auto, {', '.join(ENGINES)}")
        if self.engine == "vllm" and not installed:
            raise UserError(
                "--engine=vllm: vLLM is not installed; pip install 'tempo-verl[vllm]', or use --engine=transformers"
            )
        return self.engine

    def record(self) -> dict[str, Any]:
        """All that the samples depend on, for ``settings.json``; fingerprints tell a model saved anew."""
        settings = asdict(self) | {"engine": self.chosen_engine}
        for indifferent in ("batch_size", "tensor_parallel", "max_prompt_tokens", "allowed"):
            del settings[indifferent]
        for role in ("model", "critic"):
            path = settings[role]
            settings[f"{role}_fingerprint"] = None
            if path is not None and Path(path).is_dir():
                settings[role] = str(Path(path).resolve())
                settings[f"{role}_fingerprint"] = fingerprint(Path(path))
        return settings


def fingerprint(directory: Path) -> str:
    """Changes when another model is saved to the directory; weights are too large to read for that."""
    files = [(file.name, file.stat()) for file in sorted(directory.iterdir()) if file.is_file()]
    listing = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
    return hashlib.sha256(repr(listing).encode()).hexdigest()[:16]


class Engine(Protocol):
    """Draws one response for each prompt and seed."""

    batch_size: int

    def generate(self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[int]) -> list[Completion]:
        """Responses in the order of the prompts; ``log_probs`` may be left empty."""


def load_engine(sampling: Sampling, tokenizer: Any) -> Engine:
    """Load the model into the engine.

    Raises:
        UserError: the engine is not installed, or the model cannot be loaded.
    """
    try:
        if sampling.chosen_engine == "vllm":
            return VLLMEngine(sampling)
        return TransformersEngine(sampling, tokenizer)
    except (OSError, ValueError) as error:
        raise UserError(f"{sampling.model}: cannot be loaded ({first_line(error)}); check the directory") from error


def first_line(error: Exception) -> str:
    """What a library's error says first."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def device_and_dtype() -> tuple[Any, Any]:
    """The first accelerator and bfloat16, or the CPU and float32."""
    import torch

    return (torch.device("cuda"), torch.bfloat16) if torch.cuda.is_available() else (torch.device("cpu"), torch.float32)


class TransformersEngine:
    """``model.generate`` in batches. A sample hardly depends on its batch: rounding alone differs."""

    def __init__(self, sampling: Sampling, tokenizer: Any):
        from transformers import AutoModelForCausalLM

        device, dtype = device_and_dtype()
        self.batch_size = sampling.batch_size or (16 if device.type == "cpu" else 64)
        self._sampling, self._tokenizer = sampling, tokenizer
        self._model = AutoModelForCausalLM.from_pretrained(
            sampling.model,
            dtype=dtype,
            attn_implementation="sdpa",
            trust_remote_code=sampling.trust_remote_code,
        )
        self._model.to(device).eval()

    def generate(self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[int]) -> list[Completion]:
        options = self._sampling
        requests = [
            Request(prompt, options.max_tokens, seed, temperature=options.temperature, top_p=options.top_p)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return generate(self._model, self._tokenizer, requests)


class VLLMEngine:
    """vLLM's offline engine, on the prompts' token ids."""

    def __init__(self, sampling: Sampling):
        from vllm import LLM

        self.batch_size = sampling.batch_size or 1024
        self._sampling = sampling
        self._llm = LLM(
            model=sampling.model,
            trust_remote_code=sampling.trust_remote_code,
            tensor_parallel_size=sampling.tensor_parallel,
            max_model_len=sampling.max_prompt_tokens + sampling.max_tokens,
            # a critic, about as large as the policy, has to fit beside it
            gpu_memory_utilization=0.9 if sampling.critic is None else 0.45,
            enable_prefix_caching=True,
            seed=sampling.seed,
        )

    def generate(self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[int]) -> list[Completion]:
        from vllm import SamplingParams

        options = self._sampling
        params = [
            SamplingParams(
                temperature=options.temperature,
                top_p=options.top_p,
                max_tokens=options.max_tokens,
                seed=seed,
                detokenize=False,
            )
            for seed in seeds
        ]
        outputs = self._llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], params, use_tqdm=False)
        drawn = [output.outputs[0] for output in outputs]
        return [Completion(list(one.token_ids), truncated=one.finish_reason == "length") for one in drawn]
