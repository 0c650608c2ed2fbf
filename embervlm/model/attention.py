"""The attention of training on a CPU; the engine turns it on, and nothing else asks for it."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "products"


def attend_by_products(model: Any) -> None:
    """Let the language model attend by products of matrices in autocast's format, with the probabilities kept.

    On a CPU torch 2.13's own attention takes three times as long, forward and backward: in bf16 it makes its oneDNN
    products anew in every backward pass, and in fp32 products have a quarter of the rate. The probabilities of all
    layers take 2 bytes each: 500 MB for a batch of 8 with 960 tokens and six heads. With dropout, or a mask that says
    more than what is seen, attention is the library's.
    """
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    model.language_model.config._attn_implementation = _NAME


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    tokens, keys, device = query.shape[2], key.shape[2], query.device.type
    whole = mask is None and tokens in (1, keys)
    if dropout or not (whole or (mask is not None and mask.dtype == torch.bool)):
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if mask is None:
        mask = torch.ones(tokens, keys, dtype=torch.bool, device=query.device).tril(keys - tokens)
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    attended = _Attention.apply(  # type: ignore[no-untyped-call]
        query.to(dtype), key.to(dtype), value.to(dtype), ~mask, scale
    )
    return cast(Tensor, attended).transpose(1, 2), None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, unseen: Tensor, scale: float) -> Tensor:
        """(batch, heads, tokens, width), with keys and values of (batch, heads, keys, width) -> as the query.

        ``unseen``: (batch or 1, 1, tokens, keys), or (tokens, keys).
        """
        batch, heads, tokens, width = query.shape
        keys = key.shape[2]
        with torch.autocast(query.device.type, enabled=False):
            query = (query * scale).reshape(batch * heads, tokens, width)
            key, value = (each.reshape(batch * heads, keys, width) for each in (key, value))
            scores = torch.bmm(query, key.transpose(1, 2)).view(batch, heads, tokens, keys)
            # The least number and not infinity: a row that sees nothing has no NaN.
            shares = scores.masked_fill_(unseen, torch.finfo(scores.dtype).min).softmax(-1)
            shares = shares.view(batch * heads, tokens, keys)
            attended = torch.bmm(shares, value)
        ctx.save_for_backward(query, key, value, shares)
        ctx.shape, ctx.scale = (batch, heads), scale
        return attended.view(batch, heads, tokens, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, shares = ctx.saved_tensors
        with torch.autocast(query.device.type, enabled=False):
            outer = outer.reshape(query.shape)
            by_value = torch.bmm(shares.transpose(1, 2), outer)
            by_shares = torch.bmm(outer, value.transpose(1, 2))
            by_scores = torch.ops.aten._softmax_backward_data(by_shares, shares, -1, shares.dtype)
            by_query = torch.bmm(by_scores, key).mul_(ctx.scale)
            by_key = torch.bmm(by_scores.transpose(1, 2), query)
        found = (each.view(*ctx.shape, *each.shape[1:]) for each in (by_query, by_key, by_value))
        return (*found, None, None)  # type: ignore[return-value]
