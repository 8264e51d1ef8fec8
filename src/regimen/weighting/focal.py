"""Focal loss: tokens, or rows, that the model already predicts count less.

Paper: Focal Loss for Dense Object Detection, arXiv 1708.02002, section 3. The loss of a token of probability p is
    FL = (1 - p)^gamma l,   l = -ln p,   so that   dFL/dl = (1 - p)^gamma + gamma l p (1 - p)^(gamma - 1).
Weights multiply l and are not differentiated, so the weight of a token is dFL/dl: the gradient of the step is exactly
that of FL. With `detach` it is (1 - p)^gamma alone.
Differs from the paper: no factor alpha per class; `norm: sum` divides by the sum of (1 - p)^gamma over the global
batch, taken as a constant; a row has p = exp(-mean token loss).
Beware: what nobody can predict keeps its full weight, so noise and rare tokens gain: the opposite of RHO-1.
Letters: n rows, L target positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.strategy import WeighedBatch, Weighter


@dataclass(frozen=True, kw_only=True)
class Focal(Weighter):
    """Weights that give the gradient of the focal loss.

    gamma: 0 or more; 0 is plain cross-entropy.
    level: `token` weighs every token by its own probability, `row` a row by exp(-mean token loss).
    detach: whether (1 - p)^gamma is a constant factor, rather than a part of what is differentiated, as in the paper.
    norm: `count` leaves the loss divided by the number of tokens or rows; `sum` divides it by the sum of
        (1 - p)^gamma instead, so that the learning rate in effect hardly falls as the model learns.
    """

    gamma: float = 2.0
    level: Literal["token", "row"] = "token"
    detach: bool = False
    norm: Literal["count", "sum"] = "count"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma < math.inf:
            raise ConfigError("gamma of the focal loss is an exponent", got=self.gamma, allowed="0 or more")
        for name, value, allowed in (("level", self.level, ("token", "row")), ("norm", self.norm, ("count", "sum"))):
            if value not in allowed:
                raise ConfigError(f"unknown {name} of the focal loss", got=value, allowed=", ".join(allowed))

    @property
    def scope(self) -> Literal["example", "batch"]:
        """The sum over the whole batch is needed to divide by it."""
        return "batch" if self.norm == "sum" else "example"

    @property
    def unit(self) -> Literal["row", "token"]:
        return self.level

    def weigh(self, state: Any, losses: Tensor, batch: WeighedBatch) -> Tensor:
        """Weights (n,), or (n, L) with level `token`; 0 for a row without target tokens."""
        counted = batch.tokens > 0 if self.level == "row" else batch.targets  # (n,) or (n, L)
        assert counted is not None
        values = losses.double()
        weights = focal_factor(values, self.gamma) if self.detach else focal_slope(values, self.gamma)
        if self.norm == "sum":
            mean = (focal_factor(values, self.gamma) * counted).sum() / counted.sum().clamp(min=1)
            weights = weights / mean.clamp(min=1e-12)
        return (weights * counted).to(losses)


def focal_factor(losses: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma of losses -ln p, exact for p near 1."""
    factor: Tensor = (-torch.expm1(-losses)).clamp(min=0) ** gamma
    return factor


def focal_slope(losses: Tensor, gamma: float) -> Tensor:
    """d/dl of (1 - p)^gamma l at l = -ln p; its limit at l = 0: 1 for gamma = 0, else 0."""
    if gamma == 0:
        return torch.ones_like(losses)
    missed = (-torch.expm1(-losses)).clamp(min=0)  # 1 - p
    # l p (1 - p)^(gamma - 1) = (1 - p)^gamma l / (e^l - 1), and l / (e^l - 1) goes to 1 as l goes to 0.
    ratio = torch.where(losses > 0, losses / torch.expm1(losses), 1.0)
    return missed**gamma * (1 + gamma * ratio)
