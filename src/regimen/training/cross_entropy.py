"""Token losses in float32 without float32 logits for the whole batch.

Letters: T tokens, V vocabulary.  The forward pass keeps the logits in their own type (bfloat16 under autocast) and one
log-sum-exp per token; both passes upcast a chunk of rows at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORE = -100  # the target of a token that is not trained on


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, chunk: int) -> Tensor:
        losses = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
        normalizer = torch.empty_like(losses)
        picked = targets.clamp(min=0)
        for part in _parts(len(targets), chunk):
            rows = logits[part].float()  # (c, V)
            normalizer[part] = rows.logsumexp(-1)
            losses[part] = normalizer[part] - rows.gather(-1, picked[part, None]).squeeze(-1)
        losses.masked_fill_(targets == IGNORE, 0.0)
        ctx.save_for_backward(logits, targets, normalizer)
        ctx.chunk = chunk
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        logits, targets, normalizer = ctx.saved_tensors
        scale = grad.masked_fill(targets == IGNORE, 0.0)
        out = torch.empty_like(logits)
        for part in _parts(len(targets), ctx.chunk):
            rows = (logits[part].float() - normalizer[part, None]).exp_()  # (c, V) probabilities
            rows.scatter_add_(-1, targets[part, None].clamp(min=0), rows.new_full((len(rows), 1), -1.0))
            out[part] = rows.mul_(scale[part, None])
        return out, None, None


def _parts(total: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, total)) for start in range(0, total, chunk)]


def token_losses(logits: Tensor, targets: Tensor, *, chunk: int = 1024) -> Tensor:
    """Cross-entropy (B, T) float32 of logits (B, T, V) against targets (B, T); 0 where the target is `IGNORE`.

    chunk: tokens that are upcast at a time. One derivative only: forward mode and double backward need the plain
    `torch.nn.functional.cross_entropy`.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    return _ChunkedCrossEntropy.apply(flat, targets.reshape(-1), chunk).view(targets.shape)
