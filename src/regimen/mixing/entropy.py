"""Entropy mixture: shares in proportion to exp(entropy), so that domains with more varied text are drawn more often.

Paper: Ge et al., BiMix, arXiv 2405.14908v4, eq. 13.  The sizes of the domains play no part.
Differs from the paper: nothing in the formula; what the entropies are measured on is said in regimen.signals.entropy.
They are those of the whole pool, also where a selector keeps a part of it.
Letters: K domains, H their entropies in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from regimen.core.index import PoolIndex
from regimen.core.signal import Signal
from regimen.core.strategy import Mixer, Observation
from regimen.signals.entropy import Entropy


class EntropyState(NamedTuple):
    """available: (K,) int64 tokens, or rows, of the pool's domains that the entropy may read."""

    available: Tensor


@dataclass(frozen=True, kw_only=True)
class EntropyMixture(Mixer):
    """Shares softmax(H): a nat more is e times the share. A domain without tokens gets none.

    by: the entropy.
    """

    by: Entropy

    def init(self, index: PoolIndex) -> EntropyState:
        return EntropyState(self.by.available(index))

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: EntropyState, seen: Observation) -> Tensor:
        """Shares (K,) float64."""
        entropy = seen.values[self.by]  # (K,)
        return entropy.where(seen.index.natural() > 0, -torch.inf).softmax(0)  # (K,)

    def notes(self, state: EntropyState, decision: Tensor, seen: Observation) -> list[str]:
        """Domains that have less than the budget, which makes their entropies too low beside the others'."""
        field, budget = self.by.budget
        short = (state.available < budget) & (state.available > 0)  # (K,)
        if not bool(short.any()):
            return []
        names = ", ".join(seen.index.domains[k] for k in short.nonzero()[:, 0].tolist())
        least = int(state.available[short].min())
        return [
            f"by.{field} is {budget}, but {names} have less, so that their entropies are biased lower than those of "
            f"larger domains; by.{field}={least} reads the same from every domain"
        ]
