"""Observations with gradients and a target set, and cooperative games by brute force."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from itertools import permutations

import torch
from torch import Tensor

from regimen.core.signal import Signal
from regimen.core.strategy import Observation
from tests.reference.observations import index_of, seeing

Game = Callable[[frozenset[int]], float]


def seeing_gradients(
    by: Signal,
    gradients: Tensor,
    target: Tensor | None,
    *,
    ids: Sequence[int] | Tensor | None = None,
    tokens: Sequence[int] | None = None,
    rows: int | None = None,
    lr: float = 1.0,
    step: int = 1,
    total_steps: int = 100,
    horizon: int = 1,
) -> Observation:
    """Rows `ids` (0, 1, ... if not given) with gradients (n, d), of a pool of `rows`, and target rows' (M, d)."""
    where = torch.arange(len(gradients)) if ids is None else torch.as_tensor(ids)
    index = index_of([int(where.max()) + 1 if rows is None else rows])
    seen = seeing(torch.zeros(len(where)), ids=where, index=index, horizon=horizon, step=step, total_steps=total_steps)
    return dataclasses.replace(
        seen,
        values={by: gradients.float()},
        tokens=seen.tokens if tokens is None else torch.as_tensor(tokens),
        target=None if target is None else index_of([len(target)]),
        target_values={} if target is None else {by: target.float()},
        lr=lr,
    )


def shapley(players: int, value: Game) -> list[float]:
    """Shapley values by the formula over all subsets of the other players."""
    found = []
    for i in range(players):
        others = [j for j in range(players) if j != i]
        total = 0.0
        for mask in range(2 ** len(others)):
            subset = frozenset(j for bit, j in enumerate(others) if mask >> bit & 1)
            chance = math.factorial(len(subset)) * math.factorial(players - len(subset) - 1) / math.factorial(players)
            total += chance * (value(subset | {i}) - value(subset))
        found.append(total)
    return found


def shapley_by_orders(players: int, value: Game) -> list[float]:
    """Shapley values as means over all orders in which players join."""
    found = [0.0] * players
    for order in permutations(range(players)):
        for place, i in enumerate(order):
            before = frozenset(order[:place])
            found[i] += (value(before | {i}) - value(before)) / math.factorial(players)
    return found
