"""The language head's loss: used by the model in training, where the head's logits are by far its largest tensors."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

#: Places whose logits are held at once: 100 MB of them in bf16, and products large enough to run at full speed.
CHUNK = 1024
#: Places whose probabilities are worked out at once on a CPU, in fp32: few enough for its caches.
ROWS = 16


def head_loss(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of ``states @ weight.T`` against ``targets``, without ever holding all logits.

    The gradients are worked out along with the loss, chunk by chunk, so that no logit is kept or computed twice (the
    idea of Cut Cross-Entropy, Wijmans et al., arXiv 2411.09009, in plain torch). They equal those of
    ``F.cross_entropy`` up to rounding. Under autocast the products are in its format, softmax and sums in fp32.

    Args:
        states: (places, width).
        weight: (vocabulary, width).
        targets: (places,), token ids.

    Returns:
        the mean; 0 with gradients of 0 where there is no place at all.
    """
    return cast(Tensor, _HeadLoss.apply(states, weight, targets))  # type: ignore[no-untyped-call]


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        device = states.device.type
        with_gradients = any(ctx.needs_input_grad)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
        share = 1 / max(len(states), 1)
        total = states.new_zeros((), dtype=torch.float32)
        by_states = torch.zeros_like(states) if with_gradients else None
        by_weight: Tensor | None = None
        with torch.autocast(device, enabled=False):
            head = weight.to(dtype)
            for start in range(0, len(states), CHUNK):
                chunk, wanted = states[start : start + CHUNK].to(dtype), targets[start : start + CHUNK, None]
                logits = chunk @ head.T  # (places, vocabulary)
                rows = ROWS if device == "cpu" else CHUNK
                for part, target in zip(torch.split(logits, rows), torch.split(wanted, rows), strict=True):
                    likely = F.log_softmax(part, -1, dtype=torch.float32)
                    total -= likely.gather(1, target).sum()
                    if with_gradients:
                        # The gradient takes the logits' place.
                        likely.exp_().scatter_add_(1, target, likely.new_full((), -1.0).expand_as(target))
                        part.copy_(likely)
                if by_states is not None:
                    by_states[start : start + CHUNK] = logits @ head
                    # The share goes to the narrow factor, which costs nothing.
                    product = logits.T @ (chunk * share)  # (vocabulary, width)
                    by_weight = product if by_weight is None else by_weight.to(weight.dtype).add_(product)
        if by_states is not None:
            ctx.gradients = by_states.mul_(share), torch.zeros_like(weight) if by_weight is None else by_weight
            ctx.dtype = weight.dtype
        return total * share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, None]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of the language head's loss are given once. Cure: compute the loss again")
        by_states, by_weight = ctx.gradients
        ctx.gradients = None  # so that whoever takes them owns them
        by_weight = by_weight.to(ctx.dtype)
        # On a GPU looking at the number would make the host wait.
        if outer.device.type != "cpu" or outer != 1:
            by_states, by_weight = by_states.mul_(outer), by_weight.mul_(outer)
        return by_states, by_weight, None
