"""The attention of training on a CPU; the engine turns it on, and nothing else asks for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "sdpa_in_fp32"


def attend_in_fp32(model: Any) -> None:
    """Let the language model attend in fp32 whatever autocast says.

    torch 2.13 makes its oneDNN products anew in every backward pass of bf16 attention on a CPU, which at this model's
    size takes longer than the products themselves.
    """
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    model.language_model.config._attn_implementation = _NAME


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    with torch.autocast(query.device.type, enabled=False):
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query.float(), key.float(), value.float(), mask, **kwargs
        )
