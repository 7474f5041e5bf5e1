# SPDX-License-Identifier: Apache-2.0
"""What can be told of a model directory without loading its weights."""

from __future__ import annotations

from pathlib import Path

from tempo_verl.compat import register_critic_class


def missing_value_head(path: Path, trust_remote_code: bool = False) -> list[str]:
    """Names of the value-head weights that a critic directory should hold and does not (safetensors headers only)."""
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForTokenClassification

    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    config.num_labels = 1
    register_critic_class(config)
    with torch.device("meta"):
        model = AutoModelForTokenClassification.from_config(config, trust_remote_code=trust_remote_code)
    prefix = model.base_model_prefix + "."
    head = {name: list(value.shape) for name, value in model.state_dict().items() if not name.startswith(prefix)}
    stored: dict[str, list[int]] = {}
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            stored |= {name: weights.get_slice(name).get_shape() for name in head.keys() & set(weights.keys())}
    return sorted(name for name, shape in head.items() if stored.get(name) != shape)
