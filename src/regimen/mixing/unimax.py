"""UniMax: as uniform as the budget allows without serving any domain more than N times.

Paper: UniMax, arXiv 2304.09151.  Differs from the paper: it counts characters per language, this counts target tokens
per domain. The budget is the rows that the run will serve. Where rows differ in length between domains, the tokens that
those rows hold depend on the mixture, so a token costs 1 / (mean length) rows of the budget. With rows of one length
this is the paper's algorithm with a budget of rows times length.
Letters: K domains, N epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.strategy import Mixer, Observation


@dataclass(frozen=True, kw_only=True)
class UniMax(Mixer):
    """Equal shares, small domains capped at N epochs and the rest shared equally by the others.

    epochs: N, above 0, the most often that any row may be served until the next decision.
    """

    epochs: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.epochs > 0:
            raise ConfigError("epochs caps how often a row is served", got=self.epochs, allowed="above 0")

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Shares (K,) float64; 0 for a domain without tokens."""
        return self._shared_out(seen)[0]

    def notes(self, state: Any, decision: Tensor, seen: Observation) -> list[str]:
        """A warning where all domains are at the cap and rows of the budget are left."""
        unspent = self._shared_out(seen)[1]
        if unspent < 1:
            return []
        needed = seen.horizon / (seen.horizon - unspent) * self.epochs
        return [
            f"unimax: with at most {self.epochs:g} epochs per domain, {unspent:.0f} of the {seen.horizon} rows of the "
            f"budget find no data, so every domain will be served about {needed:.3g} times: lower the budget "
            "or raise epochs"
        ]

    def _shared_out(self, seen: Observation) -> tuple[Tensor, float]:
        index = seen.index
        return share_out(index.domain_tokens(), seen.horizon, epochs=self.epochs, row_tokens=index.mean_tokens())


def share_out(
    tokens: Tensor, budget: float, *, epochs: float, row_tokens: Tensor | None = None
) -> tuple[Tensor, float]:
    """Shares (K,) float64 of target tokens, and the part of the budget that no domain may take.

    tokens: (K,) target tokens of each domain.
    budget: rows to serve; tokens, where row_tokens is None.
    row_tokens: (K,) mean target tokens of a row of each domain.
    """
    tokens = tokens.double()
    cap = epochs * tokens  # (K,)
    price = torch.ones_like(tokens) if row_tokens is None else 1 / row_tokens.double()  # (K,) budget per token
    taken = torch.zeros_like(tokens)  # (K,) tokens
    left, order = float(budget), cap.argsort(stable=True)
    open_price = price[order].flip(0).cumsum(0).flip(0)  # (K,) of the domains that are not yet served
    for k, ahead in zip(order.tolist(), open_price.tolist(), strict=True):
        taken[k] = min(left / ahead, float(cap[k]))
        left -= float(taken[k] * price[k])
    return taken / taken.sum(), max(left, 0.0)
