"""Uniform: the same share for every domain ("stratified" in some papers).

Letters: K domains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regimen.core.strategy import Mixer, Observation


@dataclass(frozen=True, kw_only=True)
class Uniform(Mixer):
    """Every domain gives 1/K of the target tokens, however small it is."""

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Shares (K,) float64."""
        k = len(seen.index.domains)
        return torch.full((k,), 1 / k, dtype=torch.float64)
