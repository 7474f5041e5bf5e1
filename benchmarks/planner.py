# SPDX-License-Identifier: Apache-2.0
"""How far the planner's formulas are from what torch counts and holds. Writes ``planner.md``.

    python benchmarks/planner.py

Weights: against transformers, on the meta device. FLOPs: against torch's counter. Bytes: of a real model after a step
of AdamW, and of what autograd keeps for the backward pass, on a CPU in float32.
"""

from __future__ import annotations

import platform
from pathlib import Path

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification

from tempo_verl.planning.architecture import MODELS, Architecture

ROWS, LENGTH = 2, 512
SMALL = {
    "qwen3": Architecture(4, 256, 768, 8, 4, 2048, full_layers=4, head_dim=32, qk_norm="head"),
    "qwen2": Architecture(4, 256, 768, 8, 4, 2048, full_layers=4, head_dim=32, qkv_bias=True, tied=True),
    "llama": Architecture(4, 256, 768, 8, 4, 2048, full_layers=4, head_dim=32),
}


def config_of(kind: str, model: Architecture):
    """transformers' configuration of the same sizes; ``kind``: its ``model_type``."""
    options = {"head_dim": model.head_dim} if kind in ("qwen3", "llama") else {}
    return AutoConfig.for_model(
        kind,
        num_hidden_layers=model.layers,
        hidden_size=model.hidden,
        intermediate_size=model.mlp,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        vocab_size=model.vocabulary,
        tie_word_embeddings=model.tied,
        pad_token_id=0,
        num_labels=1,
        **options,
    )


def kind_of(name: str) -> str:
    """``model_type`` of a known name."""
    if name.startswith("qwen2.5"):
        return "qwen2"
    return next((kind for kind in ("qwen3", "olmo3") if name.startswith(kind)), "llama")


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def weights() -> list[str]:
    """Weights of every known policy, and of its critic where transformers has one of its kind."""
    lines = ["| model | policy, planned | transformers | critic, planned | transformers |", "|---|---:|---:|---:|---:|"]
    for name, sizes in MODELS.items():
        config = config_of(kind_of(name), sizes)
        with torch.device("meta"):
            policy = count(AutoModelForCausalLM.from_config(config))
            has = type(config) in AutoModelForTokenClassification._model_mapping
            critic = count(AutoModelForTokenClassification.from_config(config)) if has else None
        told = "no such class" if critic is None else f"{critic:,}"
        lines.append(f"| {name} | {sizes.policy_parameters:,} | {policy:,} | {sizes.critic_parameters:,} | {told} |")
    return lines


def flops() -> list[str]:
    """Forward, and forward with backward, as torch counts them: attention in full, without the causal half."""
    lines = ["| model | pass | planned | counted | error |", "|---|---|---:|---:|---:|"]
    ids = torch.randint(0, 2048, (ROWS, LENGTH))
    for kind, sizes in SMALL.items():
        model = AutoModelForCausalLM.from_config(config_of(kind, sizes), attn_implementation="eager")
        planned = sizes.forward_flops(ROWS * LENGTH, LENGTH, sizes.vocabulary, causal=False)
        with FlopCounterMode(display=False) as forward:
            loss = model(ids).logits.float().sum()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
        counts = (forward.get_total_flops(), forward.get_total_flops() + backward.get_total_flops())
        for name, factor, found in zip(("forward", "training"), (1, 3), counts, strict=True):
            error = 100 * (factor * planned / found - 1)
            lines.append(f"| {kind} | {name} | {factor * planned:.4e} | {found:.4e} | {error:+.2f} % |")
    return lines


def kept_bytes(model: torch.nn.Module, ids: torch.Tensor) -> int:
    """Bytes that autograd keeps between forward and backward: each storage once, no weights."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(ids, use_cache=False)[0]
        del output
    return sum(kept.values())


def memory() -> list[str]:
    """State after a step of AdamW, and activations of the layers, without a head, with and without recomputation."""
    lines = ["| model | what | planned | measured | error |", "|---|---|---:|---:|---:|"]
    ids, tokens = torch.randint(0, 2048, (ROWS, LENGTH)), ROWS * LENGTH
    for kind, sizes in SMALL.items():
        model = AutoModelForCausalLM.from_config(config_of(kind, sizes), attn_implementation="sdpa")
        optimizer = torch.optim.AdamW(model.parameters())
        model(ids).logits.float().sum().backward()
        optimizer.step()
        tensors = [*model.parameters(), *(p.grad for p in model.parameters())]
        tensors += [value for state in optimizer.state.values() for value in state.values() if value.numel() > 1]
        layer = 4 * tokens * (8 * sizes.hidden + 3 * sizes.mlp)
        rows = [("weights, gradients, Adam", 16 * sizes.policy_parameters, sum(t.nbytes for t in tensors))]
        rows.append(("activations of all layers", sizes.layers * layer, kept_bytes(model.model, ids)))
        model.gradient_checkpointing_enable()
        model.train()
        inputs = 4 * tokens * sizes.layers * sizes.hidden
        rows.append(("layer inputs kept, recomputing", inputs, kept_bytes(model.model, ids)))
        for name, planned, found in rows:
            lines.append(f"| {kind} | {name} | {planned:,} | {found:,} | {100 * (planned / found - 1):+.1f} % |")
    return lines


def main() -> None:
    torch.manual_seed(0)
    head = [
        "# The planner against what torch counts",
        f"`python benchmarks/planner.py`, seed 0, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {platform.system()} {platform.machine()}, float32 on a CPU.",
        "",
    ]
    small = f"4 layers, hidden 256, MLP 768, 8 heads of 32, 4 KV heads, vocabulary 2,048; {ROWS} x {LENGTH} tokens."
    sections = [
        *head, "## Weights", *weights(), "", "## FLOPs", small, "", *flops(), "", "## Bytes", small,
        "Activations are those of the layers, without a head: what autograd keeps, each storage once.", "", *memory(),
    ]  # fmt: skip
    text = "\n".join(sections) + "\n"
    (Path(__file__).parent / "planner.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
