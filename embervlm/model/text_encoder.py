"""A small encoder that reads a text as a whole, both ways, and says in one vector what it is about."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Width of an attention head.
HEAD_WIDTH = 32
#: What GPT-2 and BERT begin with.
INITIAL_STD = 0.02
_LONGEST_WAVE = 10_000.0
#: How much a token's place counts beside its embedding, which is normalised.
_PLACE_WEIGHT = 0.3


class TextEncoder(nn.Module):
    """A transformer without a causal mask (Devlin et al., arXiv 1810.04805), norms first, over token embeddings.

    It writes nothing, so that all of it can learn what texts mean; a sentence encoder can teach it
    (``training.study``). Places are waves (Vaswani et al., arXiv 1706.03762), so that no text is too long.

    Args:
        embedding_width: of the token embeddings, which are the language model's.
        width: its own, a multiple of ``HEAD_WIDTH``.
        layers: how many blocks.
    """

    def __init__(self, embedding_width: int, width: int, layers: int) -> None:
        super().__init__()
        self.enter = nn.Linear(embedding_width, width)
        self.enter_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(EncoderBlock(width, layers) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.enter.initial_std = INITIAL_STD  # type: ignore[assignment]

    def forward(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """The vectors of texts, (texts, width): the means of their tokens' last states, normalised.

        Args:
            embeddings: (texts, tokens, embedding width), padded at the end with any.
            lengths: tokens of each text, (texts,).
        """
        used = torch.arange(embeddings.shape[1], device=lengths.device)[None] < lengths[:, None]  # (texts, tokens)
        x = self.enter_norm(self.enter(embeddings))
        x = x + _PLACE_WEIGHT * waves(x.shape[1], x.shape[2], x.device).to(x.dtype)
        for block in self.blocks:
            x = block(x, used)
        return cast(Tensor, self.norm((x * used[..., None]).sum(1) / lengths[:, None]))


class EncoderBlock(nn.Module):
    """Attention over all tokens of a text, then a two-layer perceptron, each added to what came in."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_in, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_up, self.mlp_down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for layer in (self.attention_in, self.mlp_up):
            layer.initial_std = INITIAL_STD  # type: ignore[assignment]
        for layer in (self.attention_out, self.mlp_down):  # as in GPT-2, so that depth does not add up
            layer.initial_std = INITIAL_STD / math.sqrt(2 * layers)  # type: ignore[assignment]

    def forward(self, x: Tensor, used: Tensor) -> Tensor:
        """(texts, tokens, width) -> the same; tokens that are not ``used``, (texts, tokens), are seen by none."""
        texts, tokens, width = x.shape
        parts = self.attention_in(self.attention_norm(x)).view(texts, tokens, 3, self.heads, HEAD_WIDTH)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # (texts, heads, tokens, head width) each
        scores = (query @ key.transpose(2, 3)) * HEAD_WIDTH**-0.5
        seen = scores.masked_fill(~used[:, None, None], -math.inf).softmax(-1) @ value
        x = x + self.attention_out(seen.transpose(1, 2).reshape(texts, tokens, width))
        return cast(Tensor, x + self.mlp_down(F.gelu(self.mlp_up(self.mlp_norm(x)))))


def waves(tokens: int, width: int, device: torch.device) -> Tensor:
    """What tells places apart: sines and cosines of falling frequency, (tokens, width)."""
    frequencies = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(_LONGEST_WAVE) / width))
    angles = torch.arange(tokens, device=device)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)
