# SPDX-License-Identifier: Apache-2.0
"""``attn_implementation=packed_cpu``: the path of flash attention with a kernel that a CPU can run.

It goes through transformers' own glue, where verl's Ulysses patch replaces ``_flash_attention_forward``, and so
through verl's real all-to-all. The name must not contain "flash": transformers would look for the package. A process
that imports verl with ``VERL_USE_EXTERNAL_MODULES=flash_stand_in`` knows the name.
"""

from __future__ import annotations

import torch
import transformers.modeling_flash_attention_utils as flash_utils
from transformers.integrations import flash_attention
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "packed_cpu"


def kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *_args,
    position_ids: torch.Tensor,
    softmax_scale: float | None = None,
    **_options,
) -> torch.Tensor:
    """Causal attention within each sequence of a packed batch; a sequence begins where ``position_ids`` is 0.

    Args:
        query, key, value: (1, S, heads, D) float; keys and values may have fewer heads.
        attention_mask: None, as no row is padded.
        position_ids: (1, S) int64.

    Returns:
        (1, S, heads, D).
    """
    assert attention_mask is None and query.shape[:2] == position_ids.shape, "for packed inputs alone"
    sequence = (position_ids[0] == 0).cumsum(0)
    mask = (sequence[:, None] == sequence).tril()
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(query, key, value, attn_mask=mask, scale=softmax_scale, enable_gqa=True).transpose(1, 2)


flash_utils._flash_attention_forward = flash_attention._flash_attention_forward = kernel
ALL_ATTENTION_FUNCTIONS.register(NAME, flash_attention.flash_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, flash_attention_mask)
