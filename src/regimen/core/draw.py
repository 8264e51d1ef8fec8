"""Which domain each row of a global batch comes from: a pure function of (mixture, seed, step, carry).

Letters: B rows of the global batch, K domains.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regimen.core.plan import Draw
from regimen.core.seeding import generator


def row_probabilities(shares: Tensor, mean_tokens: Tensor) -> Tensor:
    """(K,) probability that a row is of each domain, for (K,) shares of target tokens and mean tokens per row."""
    per_row = shares.double() / mean_tokens.double()
    return per_row / per_row.sum()


def largest_remainder(wanted: Tensor, total: int) -> Tensor:
    """(K,) int64 counts >= 0 that sum to `total` and are nearest to `wanted` (K,); ties go to the first domain."""
    wanted = wanted.clamp(min=0)
    wanted = wanted * (total / wanted.sum())
    counts = wanted.floor().long()
    by_remainder = (wanted - counts).argsort(descending=True, stable=True)
    counts[by_remainder[: total - int(counts.sum())]] += 1
    return counts


def draw_labels(
    p: Tensor, batch_size: int, *, draw: Draw, groups: int, carry: Tensor, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Domain (B,) int64 of each row of global batch `step`, and the carry (K,) of `fixed_counts` for the next one.

    p: (K,) row probabilities. groups: independent draws per batch for `one_domain`.
    """
    rng = generator(seed, "labels", step)
    if draw == "fixed_counts":
        wanted = carry + p * batch_size
        counts = largest_remainder(wanted, batch_size)
        labels = torch.repeat_interleave(torch.arange(len(p)), counts)
        return labels[torch.randperm(batch_size, generator=rng)], wanted - counts
    draws = groups if draw == "one_domain" else batch_size
    u = torch.rand(draws, generator=rng, dtype=torch.float64)
    edges = p.cumsum(0)
    drawn = torch.searchsorted(edges, u * edges[-1], right=True).clamp(max=len(p) - 1)
    return drawn.repeat_interleave(batch_size // draws), carry
