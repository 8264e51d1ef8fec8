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

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Signal
from regimen.core.strategy import Observation
from regimen.selection.common import AmountSelector


@dataclass(frozen=True, kw_only=True)
class Perplexity(AmountSelector):
    """Rows ranked by score, equal scores by id; a run of ranks is kept.

    by: the score.
    keep: `low`, `middle` or `high` ranks, as many as the next three say.
    ratio, count, token_ratio: floor(ratio * n), a number of rows, or rows until they hold this part of the target
        tokens of all n: from the lowest rank up, from the middle to both sides, or from the highest down.
    quantiles: instead of these four, ranks r with lower * n <= r < upper * n, the lowest score being rank 0.
    """

    by: Signal
    keep: Literal["low", "middle", "high"] = "middle"
    quantiles: Sequence[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep not in ("low", "middle", "high"):
            raise ConfigError("keep names a part of the ranks", got=self.keep, allowed="low, middle, high")
        if self.quantiles is None:
            return
        object.__setattr__(self, "quantiles", tuple(float(q) for q in self.quantiles))
        if len(self.quantiles) != 2 or not 0 <= self.quantiles[0] < self.quantiles[1] <= 1:
            raise ConfigError("quantiles are two borders", got=list(self.quantiles), allowed="0 <= lower < upper <= 1")

    def amount_by(self) -> str | None:
        return None if self.quantiles is None else "quantiles"

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Ids (M,) int64, by score. Raises ConfigError for a NaN score or an amount that cannot be kept."""
        ids, by_id = seen.ids.sort()  # (n,)
        ranked = seen.scores(self.by)[by_id].argsort(stable=True)  # (n,)
        return ids[ranked[self._ranks(seen.tokens[by_id][ranked])]]  # (M,)

    def _ranks(self, tokens: Tensor) -> Tensor:
        """Ranks to keep (M,), ascending, of rows whose target tokens are `tokens` (n,) by rank."""
        n = len(tokens)
        ranks = torch.arange(n)
        if self.quantiles is not None:
            first, end = (ceil(Fraction(str(q)) * n) for q in self.quantiles)
            return ranks[first:end]  # (M,)
        if self.keep == "middle":
            ranks = ranks[(2 * ranks - (n - 1)).abs().argsort(stable=True)]  # (n,) the run that grows from the middle
        elif self.keep == "high":
            ranks = ranks.flip(0)  # (n,)
        kept = self.kept(tokens[ranks])
        return ranks[:kept].sort().values  # (M,)
