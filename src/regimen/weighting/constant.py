"""Constant: every row counts alike, but not once. The control for methods whose weights do not have mean 1.

Not from a paper. Multiplying the loss by c multiplies the gradient by c: plain SGD steps as with c times the learning
rate, while Adam, which divides by the size of the gradient, steps as before, up to its eps. Clipping, too, undoes c
where the norm is above the limit. A gain over plain training that this control shows as well is no gain of weighting.
Letters: n rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.strategy import WeighedBatch, Weighter


@dataclass(frozen=True, kw_only=True)
class Constant(Weighter):
    """Weight `weight` for every row; 1 is plain training."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.weight < math.inf:
            raise ConfigError("the constant weight is a factor", got=self.weight, allowed="0 or more")

    def weigh(self, state: Any, losses: Tensor, batch: WeighedBatch) -> Tensor:
        """Weights (n,), all alike."""
        return torch.full_like(losses, self.weight)
