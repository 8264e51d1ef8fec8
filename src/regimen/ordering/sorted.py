"""Sorted: rows by a score, a curriculum from easy to hard or the reverse.

Papers: curriculum learning, as the sorting baseline of DELT, arXiv 2506.21545; by the influence of rows, arXiv
2508.15475, where `by` is a signal of influence or a file of it; as a warm-up for random order, arXiv 2506.11300.
Letters: n rows of the group.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.ranks import stable_rank
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Orderer
from regimen.ordering.ranks import ranks


@dataclass(frozen=True, kw_only=True)
class Sorted(Orderer):
    """Lowest score first, or highest first.

    by: the score; `${signal.loss}` makes it easy to hard under the model of that moment.
    descending: highest first. Equal scores come by id in both directions.
    share: part of the rows, drawn at random and rounded down, that is sorted and comes first; the others come after it
        in random order. 1 sorts all; less is a warm-up.
    """

    by: Signal
    descending: bool = False
    share: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.share <= 1:
            raise ConfigError("share is the part of the rows that is sorted", got=self.share, allowed="0 to 1")

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Positions (n,) int64, a permutation of 0 to n-1. Raises ConfigError for a NaN score."""
        rank = ranks(seen, self.by, descending=self.descending)
        if self.share == 1:
            return rank
        noise = torch.rand(len(rank), generator=seen.generator, dtype=torch.float64)
        drawn = noise.argsort().argsort()[stable_rank(seen.ids, ties=seen.ids)]  # (n,) a random permutation
        first = int(Fraction(str(self.share)) * len(rank))
        keys = torch.where(drawn < first, rank, len(rank) + drawn)  # (n,)
        return stable_rank(keys, ties=seen.ids)
