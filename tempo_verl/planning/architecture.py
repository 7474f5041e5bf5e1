# SPDX-License-Identifier: Apache-2.0
"""Sizes of decoder-only models, from published ``config.json`` files. No model is loaded, nothing is downloaded."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from tempo_verl.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """A dense model with grouped-query attention and a gated MLP.

    Attributes:
        mlp: ``intermediate_size``.
        full_layers: layers whose attention keeps all positions; the others keep ``window``.
        tied: input and output embedding are one matrix.
        qkv_bias: biases of the query, key and value projections.
        qk_norm: normalised width: "" none, "head" a head (Qwen3), "all" all heads together (OLMo 3).
    """

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    vocabulary: int
    full_layers: int
    window: int = 0
    head_dim: int = 128
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: str = ""

    @property
    def layer(self) -> int:
        """Weights of one layer's matrices: those that are multiplied with every token."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.mlp

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def actor(self) -> int:
        """Weights of the policy in matrices; norms and biases are less than 0.01 % of a large model."""
        return self.layers * self.layer + (1 if self.tied else 2) * self.embedding

    @property
    def critic(self) -> int:
        """As ``actor``, of the critic: a value head of one output in place of the language-model head."""
        return self.layers * self.layer + self.embedding

    @property
    def small(self) -> int:
        """Weights of norms and biases."""
        heads, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        norms = {"": 0, "head": 2 * self.head_dim, "all": heads + kv}[self.qk_norm]
        return self.layers * (2 * self.hidden + norms + (heads + 2 * kv) * self.qkv_bias) + self.hidden

    @property
    def policy_parameters(self) -> int:
        """All weights of the policy, exactly."""
        return self.actor + self.small

    @property
    def critic_parameters(self) -> int:
        """All weights of the critic, exactly, with the weight and the bias of its value head."""
        return self.critic + self.small + self.hidden + 1

    def kv_bytes(self, tokens: int) -> float:
        """Bytes of the bf16 KV cache of one sequence."""
        kept = self.full_layers * tokens + (self.layers - self.full_layers) * min(tokens, self.window)
        return 2 * 2 * self.kv_heads * self.head_dim * kept

    def mean_kv_bytes(self, prompt: int, response: int) -> float:
        """The same, averaged over the time in which the response grows."""
        return sum(map(self.kv_bytes, range(prompt, prompt + response))) / response

    def forward_flops(self, tokens: int, length: int, head: int, causal: bool = True) -> float:
        """FLOPs of a forward pass, 2 for each multiplication and addition.

        Args:
            tokens: of all sequences.
            length: of each sequence.
            head: outputs of the last layer: the vocabulary, or 1 of a critic.
            causal: half of the attention's products, as FlashAttention computes; False: all, as a counter counts.
        """
        matrices = self.layers * self.layer + self.hidden * head
        seen = self.full_layers * length + (self.layers - self.full_layers) * min(length, self.window)
        return tokens * (2 * matrices + 4 * self.heads * self.head_dim * seen * (0.5 if causal else 1.0))


def _qwen3(layers: int, hidden: int, mlp: int, heads: int, tied: bool = False) -> Architecture:
    return Architecture(
        layers, hidden, mlp, heads, 8, 151_936, full_layers=layers, tied=tied, qk_norm="head"
    )  # fmt: skip


def _qwen2(layers: int, hidden: int, mlp: int, heads: int, kv: int, vocabulary: int, tied: bool) -> Architecture:
    size = hidden // heads
    return Architecture(
        layers, hidden, mlp, heads, kv, vocabulary, layers, head_dim=size, tied=tied, qkv_bias=True
    )  # fmt: skip


# From the models' published config.json.
MODELS = {
    "olmo3-7b": Architecture(32, 4096, 11_008, 32, 32, 100_278, full_layers=8, window=4096, qk_norm="all"),
    "qwen3-0.6b": _qwen3(28, 1024, 3072, 16, tied=True),
    "qwen3-1.7b": _qwen3(28, 2048, 6144, 16, tied=True),
    "qwen3-4b": _qwen3(36, 2560, 9728, 32, tied=True),
    "qwen3-8b": _qwen3(36, 4096, 12_288, 32),
    "qwen3-14b": _qwen3(40, 5120, 17_408, 40),
    "qwen3-32b": _qwen3(64, 5120, 25_600, 64),
    "qwen2.5-0.5b": _qwen2(24, 896, 4864, 14, 2, 151_936, True),
    "qwen2.5-1.5b": _qwen2(28, 1536, 8960, 12, 2, 151_936, True),
    "qwen2.5-7b": _qwen2(28, 3584, 18_944, 28, 4, 152_064, False),
    "qwen2.5-32b": _qwen2(64, 5120, 27_648, 40, 8, 152_064, False),
    "llama3.1-8b": Architecture(32, 4096, 14_336, 32, 8, 128_256, full_layers=32),
    "llama3.2-1b": Architecture(16, 2048, 8192, 32, 8, 128_256, full_layers=16, head_dim=64, tied=True),
    "smollm2-135m": Architecture(30, 576, 1536, 9, 3, 49_152, full_layers=30, head_dim=64, tied=True),
}
ENDINGS = ("-instruct", "-base", "-hf")  # of names in the hub, for weights of the same sizes
FAMILIES = ("llama", "mistral", "olmo3", "qwen2", "qwen3")  # ``model_type`` of what is read


def find(model: str) -> Architecture:
    """A model by its known name, with or without an owner, or by its local directory or ``config.json``.

    Raises:
        UserError: neither, or a kind of model whose sizes are not known.
    """
    path = Path(model)
    if (file := path / "config.json").is_file() or (file := path).is_file():
        return read(file)
    name = path.name.lower().replace("olmo-3", "olmo3").replace("llama-3", "llama3")
    for ending in ENDINGS:
        name = name.removesuffix(ending)
    if name not in MODELS:
        raise UserError(
            f"--model={model} is unknown; choose one of {', '.join(MODELS)}, or name a directory with a config.json"
        )
    return MODELS[name]


def read(file: Path) -> Architecture:
    """The sizes in a ``config.json`` of Hugging Face.

    Raises:
        UserError: another kind of model, or a field is missing.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = config["model_type"]
        if kind not in FAMILIES:
            raise UserError(f"{file}: model_type={kind} is not known to the planner; it knows {', '.join(FAMILIES)}")
        layers, heads, hidden = config["num_hidden_layers"], config["num_attention_heads"], config["hidden_size"]
        types = config.get("layer_types") or []
        sliding = types.count("sliding_attention")
        found = Architecture(
            layers,
            hidden,
            config["intermediate_size"],
            heads,
            config.get("num_key_value_heads") or heads,
            config["vocab_size"],
            full_layers=layers - sliding,
            window=(config.get("sliding_window") or 0) if sliding else 0,
            head_dim=config.get("head_dim") or (128 if kind == "qwen3" else hidden // heads),
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=kind == "qwen2",
            qk_norm={"qwen3": "head", "olmo3": "all"}.get(kind, ""),
        )
        if config.get("attention_bias") and kind != "qwen2":
            found = replace(found, qkv_bias=True)  # and of the output, which is less than 0.01 %
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{file}: no configuration of a language model ({type(error).__name__}: {error})") from error
    return found
