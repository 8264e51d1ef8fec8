"""Zigzag: folding whose every second pass runs from high to low scores, so that the score never jumps.

Paper: ZIG-L, the follow-up to DELT, arXiv 2605.30334, on DELT's folding, arXiv 2506.21545.
Letters: n rows of the group, L passes; r the rank of a row, 0 for the lowest score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regimen.core.strategy import Observation
from regimen.ordering.folding import Folding, fold
from regimen.ordering.ranks import ranks


@dataclass(frozen=True, kw_only=True)
class Zigzag(Folding):
    """Passes 0, 2, 4, ... ascend and passes 1, 3, 5, ... descend.

    by: the score to sort by.
    folds: L, the number of passes, from 1 to n.
    """

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Positions (n,) int64, a permutation of 0 to n-1. Raises ConfigError for a NaN score, or for L above n."""
        self.check_rows(len(seen.ids))
        return zigzag(ranks(seen, self.by), self.folds)


def zigzag(rank: Tensor, folds: int) -> Tensor:
    """Positions (n,) int64 of ranks (n,), a permutation of 0 to n-1: `fold` with every second pass reversed."""
    size, longer = divmod(len(rank), folds)
    layer = rank % folds  # (n,)
    back = (layer < longer).long().add_(size - 1)  # (n,) place of the pass's last row within the pass
    back.sub_(rank // folds, alpha=2).mul_(layer.remainder_(2))  # (n,) how far a row of a reversed pass moves
    del layer
    return back.add_(fold(rank, folds))  # (n,)
