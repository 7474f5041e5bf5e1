# SPDX-License-Identifier: Apache-2.0
"""What a critic thinks of finished responses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tempo_verl.algo.advantage import final_value
from tempo_verl.errors import UserError
from tempo_verl.evaluation.engines import device_and_dtype, first_line
from tempo_verl.models import missing_value_head

BATCH = 16  # responses in one forward pass


def check_critic(path: str, policy: str, tokenizer: Any, trust_remote_code: bool = False) -> None:
    """Check a critic before anything is loaded: the headers of its weights, and its tokenizer.

    Args:
        path: Hugging Face directory or name.
        policy, tokenizer: the model whose token ids it is to read.
        trust_remote_code: as in transformers.

    Raises:
        UserError: no such model, no trained value head, or another vocabulary than the policy's.
    """
    from transformers import AutoTokenizer

    try:
        missing = missing_value_head(Path(path), trust_remote_code) if Path(path).is_dir() else []
        vocabulary = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code).get_vocab()
    except (OSError, ValueError) as error:
        raise UserError(f"--critic={path}: cannot be read ({first_line(error)}); give a Hugging Face model") from error
    if missing:
        raise UserError(
            f"--critic={path}: no trained value head (missing weight {', '.join(missing)}); "
            "point it at a critic saved by stage 0 (method=ppo) or by a run of method=tempo"
        )
    if vocabulary != tokenizer.get_vocab():
        raise UserError(
            f"--critic={path}: its tokenizer is not that of {policy}, whose token ids it has to read; "
            "use the critic that was trained with this model"
        )


class Critic:
    """A value-head model, in transformers' token-classification form.

    Args:
        path: Hugging Face directory or name.
        which: the value a response has, see ``algo.advantage.final_value``.
        trust_remote_code: as in transformers.

    Raises:
        UserError: no trained value head, or weights are missing.
    """

    def __init__(self, path: str, which: str = "after_last_token", trust_remote_code: bool = False):
        from transformers import AutoConfig

        from tempo_verl.compat import FLOAT32_HEAD, load_valuehead_model

        device, dtype = device_and_dtype()
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, num_labels=1)
        setattr(config, FLOAT32_HEAD, True)
        self._model = load_valuehead_model(path, dtype, config, trust_remote_code).to(device).eval()
        self._which = which

    def final_values(self, prompts: Sequence[tuple[int, ...]], responses: Sequence[Sequence[int]]) -> list[float]:
        """V(x, y_1:T) of each response, not clipped.

        Args:
            prompts, responses: token ids; the responses as they were drawn, with their end tokens.
        """
        pairs = list(zip(prompts, responses, strict=True))
        batches = (pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH))
        return [value for batch in batches for value in self._batch(batch)]

    def _batch(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        input_ids = pad_sequence([torch.tensor([*prompt, *response]) for prompt, response in pairs], batch_first=True)
        # Padding is on the right, where a causal model's real positions never look.
        with torch.inference_mode():
            every = self._model(input_ids=input_ids.to(self._model.device), use_cache=False).logits.squeeze(-1)
        # V(x) is the value after the prompt's last token, the others follow the response's tokens.
        values = [
            row[len(prompt) - 1 : len(prompt) + len(response)]
            for row, (prompt, response) in zip(every.float().cpu(), pairs, strict=True)
        ]
        mask = [torch.ones(len(response)) for _, response in pairs]
        final = final_value(pad_sequence(values, batch_first=True), pad_sequence(mask, batch_first=True), self._which)
        return final.tolist()
