"""Sorted: rows by a score, a curriculum from easy to hard or the reverse.

Paper: curriculum learning, as the sorting baseline of DELT, arXiv 2506.21545.
Letters: n rows of the group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Orderer
from regimen.ordering.ranks import ranks


@dataclass(frozen=True, kw_only=True)
class Sorted(Orderer):
    """Lowest score first, or highest first.

    by: the score; `${signal.loss}` makes it easy to hard under the model of that moment.
    descending: highest first. Equal scores come by id in both directions.
    """

    by: Signal
    descending: bool = False

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Positions (n,) int64, a permutation of 0 to n-1. Raises ConfigError for a NaN score."""
        return ranks(seen, self.by, descending=self.descending)
