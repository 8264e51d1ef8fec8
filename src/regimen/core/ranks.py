"""Ranks with ties, and windows that are shuffled: what orders are made of.

Letters: n rows.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shuffle_windows(ids: Tensor, window: int, generator: torch.Generator) -> Tensor:
    """Ids (n,) shuffled inside consecutive windows of `window` rows. Source: window jitter, arXiv 2605.30334."""
    noise = torch.rand(len(ids), generator=generator, dtype=torch.float64)
    return ids[(torch.arange(len(ids)) // window + noise).argsort()]


def stable_rank(values: Tensor, *, ties: Tensor) -> Tensor:
    """Ranks (n,) int64 of `values` (n,), 0 for the lowest; equal values are ranked by `ties` (n,), their ids."""
    by_tie = ties.argsort()
    order = by_tie[values[by_tie].argsort(stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    return rank
