"""Labels that a model draws itself, whose gradients give the curvature of its loss.

With a label y drawn from p, the model's own prediction, the gradient of -log p(y) has mean 0, and its outer product
with itself has the Gauss-Newton matrix of the cross-entropy as its mean: the Fisher matrix, where the labels given make
the empirical one of it (arXiv 1905.12558, section 3).
Letters: b rows, L positions, T positions of a row with a target, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from regimen.core.seeding import seed_of
from regimen.training.cross_entropy import IGNORE
from regimen.training.predictions import predicted_logits


@torch.no_grad()
def drawn_labels(
    model: nn.Module, inputs: Tensor, targets: Tensor, positions: Tensor | None, *, ids: Tensor, seed: int, chunk: int
) -> Tensor:
    """Targets (b, L) in whose place, where there is one, a draw from the model's prediction stands.

    ids: (b,) of the rows; the draw of a row depends on its id, the seed and the prediction, and on no padding or other
    row. chunk: tokens whose logits are upcast at a time, at most.
    """
    first, logits = predicted_logits(model, inputs, targets, positions)  # (b, L - first, V)
    levels = torch.stack([_levels(seed, int(row), targets.shape[1]) for row in ids]).to(logits.device)  # (b, L)
    flat, wanted = logits.flatten(0, 1), levels[:, first:].flatten()
    drawn = [_inverse(part.float(), level) for part, level in zip(flat.split(chunk), wanted.split(chunk), strict=True)]
    found = torch.full_like(targets, IGNORE)
    found[:, first:] = torch.cat(drawn).view(len(targets), -1)
    return torch.where(targets == IGNORE, targets, found)


def factor_scale(targets: Tensor, reduction: str) -> Tensor:
    """(b, 1): what turns the gradient of a row's loss at labels drawn into a factor of its Gauss-Newton matrix.

    That of a sum over T tokens is one as it is; a mean is short by the root of T, its matrix being 1 / T of the sum's.
    """
    counts = (targets != IGNORE).sum(1, keepdim=True).float()
    return counts.sqrt() if reduction == "mean" else torch.ones_like(counts)


def _levels(seed: int, row: int, length: int) -> Tensor:
    """(length,) uniform in [0, 1). NumPy's are the same however many are asked for; torch's are not."""
    return torch.from_numpy(np.random.default_rng(seed_of(seed, "labels", row)).random(length))


def _inverse(logits: Tensor, levels: Tensor) -> Tensor:
    """(c,) int64: where the cumulative probability of logits (c, V) passes levels (c,)."""
    sums = logits.double().softmax(-1).cumsum(-1)
    return (
        torch.searchsorted(sums, (levels * sums[:, -1])[:, None], right=True).squeeze(-1).clamp_(max=sums.shape[1] - 1)
    )
