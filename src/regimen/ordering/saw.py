"""Saw: sorted rows, with zigzag inside a window around each border between K sections.

Paper: SAW-K, the follow-up to DELT, arXiv 2605.30334.  Differs from the released code as `stair` does.
Letters: n rows of the group, K sections, L passes in a window, R its radius in rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regimen.core.index import PoolIndex
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Orderer
from regimen.ordering.folding import check_folds
from regimen.ordering.ranks import ranks
from regimen.ordering.stair import check_windows, in_windows, refuse_small_windows
from regimen.ordering.zigzag import zigzag


@dataclass(frozen=True, kw_only=True)
class Saw(Orderer):
    """Low to high, but the 2R rows around each of the K-1 borders are served in L passes up and down.

    by: the score to sort by.
    sections: K, at least 1 (1 is plain sorting).
    radius: R as a part of n; windows must not touch, so it stays below 1 / (2K).
    folds: L. With an even L, the default of the released code, a window ends with its lowest scores and the score jumps
        up after it; an odd L is continuous.
    """

    by: Signal
    sections: int = 3
    radius: float = 0.075
    folds: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folds(self.folds)
        check_windows(self.sections, self.radius)

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def init(self, index: PoolIndex) -> Any:
        """The state before the first step. Raises ConfigError for a pool whose windows hold fewer rows than passes."""
        refuse_small_windows(self.sections, self.radius, self.folds, index.rows)
        return super().init(index)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Positions (n,) int64, a permutation of 0 to n-1. Raises ConfigError for a NaN score, or windows below L."""
        refuse_small_windows(self.sections, self.radius, self.folds, len(seen.ids))
        return in_windows(ranks(seen, self.by), self.sections, self.radius, lambda rank: zigzag(rank, self.folds))
