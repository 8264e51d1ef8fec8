"""Temperature: natural token shares to the power 1/tau, between natural (tau = 1) and uniform (tau = infinity).

Source: the usual rule of multilingual pretraining, e.g. mT5, arXiv 2010.11934, which states the exponent
alpha = 1/tau.  Some code calls the exponent itself a temperature: its 0.5 is tau = 2 here.
Letters: K domains, p their natural shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.strategy import Mixer, Observation


@dataclass(frozen=True, kw_only=True)
class Temperature(Mixer):
    """Shares in proportion to p^(1/tau).

    tau: above 0; `.inf` is uniform over the domains that have tokens, below 1 makes the large domains larger.
    """

    tau: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tau > 0:
            raise ConfigError("tau is the inverse of the exponent on natural shares", got=self.tau, allowed="above 0")

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Shares (K,) float64; 0 for a domain without tokens."""
        return tempered(seen.index.natural(), self.tau)


def tempered(natural: Tensor, tau: float) -> Tensor:
    """Shares (K,) float64 in proportion to natural^(1/tau), for natural shares (K,); 0 stays 0."""
    logits = torch.where(natural > 0, natural.log() / tau, -torch.inf)  # (K,)
    return logits.softmax(0)  # (K,)
