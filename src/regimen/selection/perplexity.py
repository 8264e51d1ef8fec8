"""Perplexity pruning: the rows with low, middle or high perplexity under a model of n-grams, or under any signal.

Papers: CCNet, arXiv 1911.00359 (head, middle, tail); When Less is More, arXiv 2309.04564 (bottom, middle, top).
Differs from the papers: CCNet cuts at thirds of a language's text, this at any two quantiles of the rows given.
Letters: n rows to choose from, M kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any, Literal

from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Selector
from regimen.selection.common import amount, require_amount


@dataclass(frozen=True, kw_only=True)
class Perplexity(Selector):
    """Rows ranked by score, equal scores by id; a run of ranks is kept.

    by: the score.
    keep: `low`, `middle` or `high` ranks, as many as `ratio` or `count` says.
    ratio, count: floor(ratio * n), or a number of rows.
    quantiles: instead of these three, ranks r with lower * n <= r < upper * n, the lowest score being rank 0.
    """

    by: Signal
    keep: Literal["low", "middle", "high"] = "middle"
    ratio: float | None = 0.5
    count: int | None = None
    quantiles: Sequence[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep not in ("low", "middle", "high"):
            raise ConfigError("keep names a part of the ranks", got=self.keep, allowed="low, middle, high")
        if self.quantiles is None:
            require_amount(self.ratio, self.count)
            return
        object.__setattr__(self, "quantiles", tuple(float(q) for q in self.quantiles))
        if self.ratio is not None or self.count is not None:
            got = f"quantiles={list(self.quantiles)}, ratio={self.ratio}, count={self.count}"
            raise ConfigError("quantiles say how many rows to keep", got=got, do="set ratio and count to null")
        if len(self.quantiles) != 2 or not 0 <= self.quantiles[0] < self.quantiles[1] <= 1:
            raise ConfigError("quantiles are two borders", got=list(self.quantiles), allowed="0 <= lower < upper <= 1")

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Ids (M,) int64, by score. Raises ConfigError for a NaN score or an amount that cannot be kept."""
        ids, by_id = seen.ids.sort()  # (n,)
        ranked = ids[seen.scores(self.by)[by_id].argsort(stable=True)]  # (n,)
        first, end = self._ranks(len(ids))
        return ranked[first:end]  # (M,)

    def _ranks(self, n: int) -> tuple[int, int]:
        if self.quantiles is not None:
            first, end = (ceil(Fraction(str(q)) * n) for q in self.quantiles)
            return first, end
        kept = amount(n, self.ratio, self.count)
        first = {"low": 0, "middle": (n - kept) // 2, "high": n - kept}[self.keep]
        return first, first + kept
