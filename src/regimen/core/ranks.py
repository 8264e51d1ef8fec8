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
    if ascending(ties):
        return torch.arange(len(ties)) if values is ties else inverse(values.argsort(stable=True))
    by_tie = ties.argsort()
    return inverse(by_tie[values[by_tie].argsort(stable=True)])


def ascending(ids: Tensor) -> bool:
    """Whether ids (n,) are sorted and distinct, as those of a group are: then there is nothing to sort by id."""
    return bool((ids[1:] > ids[:-1]).all())


def inverse(order: Tensor) -> Tensor:
    """The inverse (n,) int64 of a permutation (n,) of 0 to n-1: the place of each number."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return place


def is_permutation(keys: Tensor) -> bool:
    """Whether keys (n,) are the numbers 0 to n-1 in some order."""
    n = len(keys)
    if keys.dtype != torch.int64 or not n or int(keys.min()) < 0 or int(keys.max()) >= n:
        return False
    seen = torch.zeros(n, dtype=torch.bool)
    seen[keys] = True
    return bool(seen.all())


def mean_rank(values: Tensor) -> Tensor:
    """Ranks (n,) float64 of `values` (n,), 0 for the lowest; equal values have the mean of their places."""
    ordered = values.sort().values
    first, behind = (torch.searchsorted(ordered, values, right=right).double() for right in (False, True))
    return (first + behind - 1) / 2


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of numbers (n,) and (n,), ties by their mean rank; 0 where one of both is constant."""
    x, y = (mean_rank(values) - (len(values) - 1) / 2 for values in (a, b))
    size = float(x.norm() * y.norm())
    return float(x @ y) / size if size > 0 else 0.0
