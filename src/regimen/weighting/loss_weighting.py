"""Loss weighting: examples count by where their loss stands within the global batch.

Paper: dynamic loss-based sample reweighting, arXiv 2502.06733, and its released code.  Differs from the paper: examples
without target tokens are left out of every statistic; a batch whose losses are nearly equal is weighted uniformly, not
by noise; weights have mean 1, not sum 1; `norm: quantile` and `norm: zscore`, which one bad example cannot upset, are
ours. The strategy that the code calls "uniform" is `kl_dro` here, for it raises high losses; `uniform` is uniform.
Letters: n examples of the global batch with target tokens, l their losses, h their places in [-delta, delta], r the
temperature of the softmax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.strategy import WeighedBatch, Weighter

STRATEGIES = ("linupper", "quadratic", "extremes", "kl_dro", "uniform")
SCHEDULES = ("constant", "step", "linear", "cosine")
NORMS = ("minmax", "quantile", "zscore")


@dataclass(frozen=True, kw_only=True)
class LossWeighting(Weighter):
    """Weights n softmax(f(h) / r) with h = delta (2l - (high + low)) / (high - low), l clipped to [low, high].

    strategy: f. `linupper` min(h + delta, delta), which mutes easy examples; `quadratic` 1 - (h/delta)^2, which favours
        medium ones; `extremes` |h|; `kl_dro` h; `uniform` 0.
    delta: above 0, half the range of h.
    norm: low and high. `minmax` of the batch; its `quantile` and 1 - `quantile`; `zscore` mean -+ `deviations` standard
        deviations.
    quantile: at least 0 and below 0.5.
    deviations: above 0.
    r_schedule: `constant` r_final; from r_warm to r_final by a `step` after warm_steps, or `linear` or `cosine` over
        them.
    r_warm, r_final: above 0; r_warm: .inf, for `step`, weighs uniformly.
    warm_steps: optimizer steps if 1 or more, a part of the run if less.
    guard: where high - low is below this part of the highest loss, all weights are 1.
    """

    strategy: Literal["linupper", "quadratic", "extremes", "kl_dro", "uniform"] = "linupper"
    delta: float = 1.0
    norm: Literal["minmax", "quantile", "zscore"] = "minmax"
    quantile: float = 0.05
    deviations: float = 2.0
    r_schedule: Literal["constant", "step", "linear", "cosine"] = "step"
    r_warm: float = 100.0
    r_final: float = 1.0
    warm_steps: float = 0.05
    guard: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, allowed in (
            ("strategy", self.strategy, STRATEGIES),
            ("norm", self.norm, NORMS),
            ("r_schedule", self.r_schedule, SCHEDULES),
        ):
            if value not in allowed:
                raise ConfigError(f"unknown {name} of loss_weighting", got=value, allowed=", ".join(allowed))
        for name, number in (
            ("delta", self.delta),
            ("deviations", self.deviations),
            ("r_warm", self.r_warm),
            ("r_final", self.r_final),
        ):
            if not number > 0 or (number == math.inf and name != "r_warm"):
                raise ConfigError(f"{name} of loss_weighting must be positive", got=number, allowed="a number above 0")
        if self.r_warm == math.inf and self.r_schedule in ("linear", "cosine"):
            raise ConfigError("r cannot fall from infinity", got=f"r_schedule={self.r_schedule}", allowed="step")
        if not 0 <= self.quantile < 0.5:
            raise ConfigError("quantile cuts off both ends", got=self.quantile, allowed="0 <= quantile < 0.5")
        if not (self.warm_steps >= 0 and self.guard >= 0):
            got = f"warm_steps={self.warm_steps}, guard={self.guard}"
            raise ConfigError("warm_steps and guard cannot be negative", got=got, allowed="0 or more")

    @property
    def scope(self) -> Literal["example", "batch"]:
        """The losses of the whole batch are compared."""
        return "batch"

    def weigh(self, state: Any, losses: Tensor, batch: WeighedBatch) -> Tensor:
        """Weights like `losses` (B,), 0 for examples without target tokens, mean 1 over the others."""
        counted = batch.tokens > 0  # (B,)
        weights = torch.zeros_like(losses)
        if bool(counted.any()):
            raised = self._raised(losses.detach()[counted].double())  # (n,)
            r = self.temperature(batch.step, batch.total_steps)
            # The maximum goes first: a small r would turn the difference of two infinities into a NaN.
            share = ((raised - raised.max()) / r).softmax(0)  # (n,)
            weights[counted] = (share * len(share)).to(losses.dtype)
        return weights

    def temperature(self, step: int, total_steps: int) -> float:
        """The softmax temperature r for the batch after `step` of `total_steps` optimizer steps."""
        warm = self.warm_steps if self.warm_steps >= 1 else self.warm_steps * total_steps
        if self.r_schedule == "constant" or step >= warm:
            return self.r_final
        if self.r_schedule == "step":
            return self.r_warm
        left = 1 - step / warm if self.r_schedule == "linear" else (1 + math.cos(math.pi * step / warm)) / 2
        return self.r_final + (self.r_warm - self.r_final) * left

    def _raised(self, losses: Tensor) -> Tensor:
        """f(h) (n,) of losses (n,) float64."""
        low, high = self._range(losses)
        if self.strategy == "uniform" or bool(high - low < self.guard * losses.abs().max()):
            return torch.zeros_like(losses)
        h = self.delta * (2 * losses.clamp(low, high) - (high + low)) / (high - low).clamp(min=1e-6)  # (n,)
        if self.strategy == "linupper":
            return (h + self.delta).clamp(max=self.delta)
        if self.strategy == "quadratic":
            return 1 - (h / self.delta) ** 2
        return h.abs() if self.strategy == "extremes" else h

    def _range(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """The losses that stand at -delta and at delta."""
        if self.norm == "minmax":
            return losses.min(), losses.max()
        if self.norm == "quantile":
            return losses.quantile(self.quantile), losses.quantile(1 - self.quantile)
        spread = self.deviations * losses.std(correction=0)
        return losses.mean() - spread, losses.mean() + spread
