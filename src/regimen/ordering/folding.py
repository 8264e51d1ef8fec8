"""Folding: the sorted rows in L interleaved passes, so that each pass runs from low to high scores.

Paper: DELT, arXiv 2506.21545, folding ordering (FO-L).  Differs from the paper: ranks are 0-based, as in the released
code; the paper's 1-based formula read literally would serve the pass of rank L-1 first. The code sorts where there are
fewer rows than passes; the strategy refuses them, for they ask for folds that nobody gets. `fold` alone is total.
Letters: n rows of the group, L passes; r the rank of a row, 0 for the lowest score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Orderer
from regimen.ordering.ranks import ranks


@dataclass(frozen=True, kw_only=True)
class Folding(Orderer):
    """Pass l serves the ranks l, l + L, l + 2L, ... in that order.

    by: the score to sort by.
    folds: L, the number of passes, from 1 to n. With 1, or with n, this is plain sorting.
    """

    by: Signal
    folds: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folds(self.folds)

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def check_rows(self, rows: int) -> None:
        refuse_more_folds_than_rows(self.folds, rows)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Positions (n,) int64, a permutation of 0 to n-1. Raises ConfigError for a NaN score, or for L above n."""
        self.check_rows(len(seen.ids))
        return fold(ranks(seen, self.by), self.folds)


def fold(rank: Tensor, folds: int) -> Tensor:
    """Positions (n,) int64 of ranks (n,), a permutation of 0 to n-1, after folding into `folds` passes.

    With n = qL + m, pass l starts at position lq + min(l, m). With L above n this is plain sorting.
    """
    size, longer = divmod(len(rank), folds)
    layer = rank % folds  # (n,)
    position = layer * size  # (n,)
    position += layer.clamp_(max=longer)  # in place: n may be 10^9
    del layer
    return position.add_(rank // folds)  # (n,)


def check_folds(folds: int) -> None:
    """Refuse a number of passes that is not a positive integer (ConfigError)."""
    if not isinstance(folds, int) or folds < 1:
        raise ConfigError("folds is the number of passes over the sorted rows", got=folds, allowed="1, 2, 3, ...")


def refuse_more_folds_than_rows(folds: int, rows: int) -> None:
    """Refuse passes of which some would have no row (ConfigError); there is nothing to refuse where there is no row."""
    if 0 < rows < folds:
        raise ConfigError(
            "there are fewer rows to order than passes over them",
            got=f"folds={folds}, {rows} rows to be served of the pool, or of one domain under a mixture",
            allowed=f"folds 1 to {rows}",
            do=f"set folds={rows} or less, order by method=sorted, or raise the budget or what a selector keeps",
        )
