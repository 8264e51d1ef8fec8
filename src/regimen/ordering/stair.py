"""Stair: sorted rows, with folding inside a window around each border between K sections.

Paper: STR-K, the follow-up to DELT, arXiv 2605.30334.  Differs from the released code, which sorts where windows are
too small to be re-ordered: they are refused, unless there is no border or the radius is 0.  `in_windows` is total.
Letters: n rows of the group, K sections, L passes in a window, R its radius in rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Orderer
from regimen.ordering.folding import check_folds, fold
from regimen.ordering.ranks import ranks


@dataclass(frozen=True, kw_only=True)
class Stair(Orderer):
    """Low to high, but the 2R rows around each of the K-1 borders are served in L ascending passes.

    by: the score to sort by.
    sections: K, at least 1 (1 is plain sorting).
    radius: R as a part of n; windows must not touch, so it stays below 1 / (2K).
    folds: L. With an even L a window ends with its lowest scores and the score jumps up after it.
    """

    by: Signal
    sections: int = 2
    radius: float = 0.225
    folds: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folds(self.folds)
        check_windows(self.sections, self.radius)

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def check_rows(self, rows: int) -> None:
        refuse_small_windows(self.sections, self.radius, self.folds, rows)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Positions (n,) int64, a permutation of 0 to n-1. Raises ConfigError for a NaN score, or windows below L."""
        self.check_rows(len(seen.ids))
        return in_windows(ranks(seen, self.by), self.sections, self.radius, self.inside)

    def inside(self, rank: Tensor) -> Tensor:
        """Positions (m,) of the ranks (m,) in one window."""
        return fold(rank, self.folds)


def in_windows(rank: Tensor, sections: int, radius: float, order: Callable[[Tensor], Tensor]) -> Tensor:
    """Positions (n,) int64 of ranks (n,) after `order` has re-ordered the window around each border.

    Border j is at round(jn/K) and R = round(radius * n), ties to the even integer as Python rounds.
    """
    n = len(rank)
    reach = round(radius * n)
    position, end = rank.clone(), 0
    for j in range(1, sections):
        border = round(j * n / sections)
        start, end = max(end, border - reach), min(n, border + reach)
        inside = (rank >= start) & (rank < end)  # (n,)
        position[inside] = start + order(rank[inside] - start)
    return position


def check_windows(sections: int, radius: float) -> None:
    """Refuse sections or a radius under which windows would meet (ConfigError)."""
    if not isinstance(sections, int) or sections < 1:
        raise ConfigError("sections is the number of parts between borders", got=sections, allowed="1, 2, 3, ...")
    if not 0 <= 2 * radius < 1 / sections:
        raise ConfigError(
            "radius is a part of the rows, and the windows around the borders must not meet",
            got=f"radius={radius} with sections={sections}",
            allowed=f"0 <= radius < {1 / (2 * sections):g}",
        )


def refuse_small_windows(sections: int, radius: float, folds: int, rows: int) -> None:
    """Refuse windows that hold fewer rows than passes (ConfigError), if there are rows, borders and a radius."""
    inside = 2 * round(radius * rows)
    if rows and sections > 1 and radius > 0 and inside < folds:
        raise ConfigError(
            "the windows around the borders hold fewer rows than passes over them",
            got=f"folds={folds}, {inside} rows in a window (radius={radius} of {rows} rows to be served)",
            allowed=f"2 * round(radius * {rows}) of folds or more",
            do="lower folds, raise radius, order by method=sorted, or raise the budget or what a selector keeps",
        )
