"""Segment: one end of the sorted rows first, one end last, the rest between, each part shuffled.

Paper: SEG(l x - h y), the follow-up to DELT, arXiv 2605.30334.  Differs from the released code: two parts that together
ask for more than all rows are refused; the code shrinks both with a warning. A part that is asked for and would hold no
row is refused, too.
Letters: n rows of the group; r the rank of a row, 0 for the lowest score.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Orderer
from regimen.ordering.ranks import ranks

End = Literal["low", "high"]


@dataclass(frozen=True, kw_only=True)
class Segment(Orderer):
    """Easy rows to warm up, hard rows at the end, or any of the other three choices of ends.

    by: the score to sort by.
    first, last: the end of the score that opens and closes, `low` or `high`. Where both are the same, the rows of both
        parts are drawn jointly from that end and split at random.
    first_share, last_share: part of the n rows that each takes, rounded down.
    """

    by: Signal
    first: End = "low"
    first_share: float = 0.1
    last: End = "high"
    last_share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, end in (("first", self.first), ("last", self.last)):
            if end not in ("low", "high"):
                raise ConfigError(f"{name} names an end of the score", got=end, allowed="low, high")
        if not (self.first_share >= 0 and self.last_share >= 0 and self.first_share + self.last_share <= 1 + 1e-12):
            raise ConfigError(
                "first_share and last_share are parts of the rows",
                got=f"first_share={self.first_share}, last_share={self.last_share}",
                allowed="both 0 or more, together at most 1",
            )

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def check_rows(self, rows: int) -> None:
        self._sizes(rows)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Sort keys (n,) float64: the part 0, 1 or 2 plus noise in [0, 1).

        Raises ConfigError for a NaN score, and for a part that would hold no row.
        """
        rank = ranks(seen, self.by)
        n = len(rank)
        first, last = self._sizes(n)
        noise = torch.rand(n, generator=seen.generator, dtype=torch.float64)[rank]  # (n,)
        if self.first == self.last:
            both = _end_of(rank, self.first, first + last)  # (n,) rows of the first and the last part
            ahead = torch.where(both, noise, 2.0).argsort().argsort() < first  # (n,)
            return noise + torch.where(ahead, 0, torch.where(both, 2, 1))
        opens, closes = _end_of(rank, self.first, first), _end_of(rank, self.last, last)
        return noise + torch.where(opens, 0, torch.where(closes, 2, 1))  # (n,)

    def _sizes(self, n: int) -> tuple[int, int]:
        """Rows of the first and the last part of n rows."""
        sizes = []
        for name in ("first_share", "last_share"):
            share = Fraction(str(getattr(self, name)))
            size = int(share * n)
            if n and share and not size:
                raise ConfigError(
                    "a part of the order holds no row",
                    got=f"{name}={getattr(self, name)} of {n} rows to be served",
                    allowed=f"0, or {1 / n:.3g} and above",
                    do=f"raise {name} or set it to 0, or raise the budget or what a selector keeps",
                )
            sizes.append(size)
        return sizes[0], sizes[1]


def _end_of(rank: Tensor, end: End, rows: int) -> Tensor:
    """Which (n,) bool ranks (n,) are among the `rows` at one end of the score."""
    return rank < rows if end == "low" else rank >= len(rank) - rows
