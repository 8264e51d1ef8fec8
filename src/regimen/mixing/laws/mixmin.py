"""MixMin: the mixture of one model per source that gives the target data the highest likelihood.

Letters: n target rows, K sources. log p_i(x): log-probability of row x under the model trained on source i alone.
    min over w of f(w) = -mean_x [ log sum_i w_i p_i(x) / len(x) ]                     (convex)
Paper: Thudi et al., MixMin, arXiv 2502.10510: exponentiated gradient from the uniform mixture, w <- w exp(-lr g) / Z.

Differs from the paper:
- It stops when the gap max_i(-g_i) - sum_i w_i (-g_i), which bounds f(w) - min f, is small: at an optimum the slopes
  are one constant on the support and not 0, so the authors' test (largest slope below 1e-4) does not notice it.
- Slopes are divided by mean_x 1 / len(x), so that a learning rate of 1 means the same for rows of any length; it is
  halved while a step does not help and grows again after. More than 100 steps are allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regimen.core.errors import ConfigError
from regimen.mixing.laws.constraints import Constraints
from regimen.mixing.laws.law import positive, whole
from regimen.mixing.laws.simplex import minimise
from regimen.mixing.laws.table import Array, matrix


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedMixMin:
    """The best mixture (K,), nats per token there, the gap that is left and the steps taken."""

    domains: tuple[str, ...]
    mixture: Array
    value: float
    gap: float
    steps: int
    log_probs: Array
    lengths: Array

    def predict(self, mixtures: Any) -> Array:
        """Nats per token (m,) of the target rows under mixtures (m, K) of the source models."""
        return np.array([objective(row, self.log_probs, self.lengths)[0] for row in np.atleast_2d(mixtures)])

    @property
    def parameters(self) -> dict[str, Any]:
        return {"nats_per_token": self.value, "gap": self.gap, "steps": self.steps}

    def optimum(self, constraints: Constraints) -> Array:
        """The best mixture (K,) that obeys bounds; that of the fit where it obeys them."""
        lower, upper = constraints.bounds(self.domains)
        if ((self.mixture >= lower) & (self.mixture <= upper)).all():
            return self.mixture
        scaled = np.exp(self.log_probs - self.log_probs.max(1, keepdims=True))  # (n, K)
        share = (1 / self.lengths) / (1 / self.lengths).sum()  # (n,)

        def convex(w: Array) -> tuple[Array, Array]:
            ratio = scaled / (scaled @ w)[:, None]  # (n, K)
            return -(share @ ratio), (ratio * share[:, None]).T @ ratio

        return minimise(convex, lower, upper)


@dataclass(frozen=True, kw_only=True)
class MixMin:
    """lr: step size. steps: at most so many. tolerance: of the gap, relative to mean 1 / len."""

    lr: float = 1.0
    steps: int = 10_000
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        positive(self, lr=self.lr, tolerance=self.tolerance)
        whole(self, steps=self.steps)

    def fit(self, log_probs: Any, lengths: Any, domains: Sequence[str]) -> FittedMixMin:
        """The mixture for log-probabilities (n, K) of rows of `lengths` tokens (n,), sources in sorted order.

        Raises ConfigError for numbers that are no log-probabilities.
        """
        order = sorted(range(len(domains)), key=lambda i: domains[i])
        logs = matrix(log_probs, "log-probabilities", len(domains))[:, order]  # (n, K)
        tokens = np.asarray(lengths, dtype=np.float64)  # (n,)
        if tokens.shape != (len(logs),) or not (tokens > 0).all() or (logs > 0).any():
            raise ConfigError(
                "MixMin needs the log-probability of each target row under each source and the row's tokens",
                got=f"{logs.shape} numbers up to {logs.max():g}, {tokens.shape} lengths",
                allowed="natural logarithms, 0 or less; one length above 0 for each row",
            )
        scale = float((1 / tokens).mean())
        w = np.full(len(domains), 1 / len(domains))  # (K,)
        value, slope = objective(w, logs, tokens)
        lr, done = self.lr, 0
        for done in range(self.steps + 1):
            gap = float((-slope).max() - w @ -slope)
            if gap <= self.tolerance * scale or done == self.steps:
                break
            better = self._step(w, value, slope, lr, (logs, tokens, scale))
            if better is None:
                break
            w, value, slope, lr = better
        names = tuple(domains[i] for i in order)
        return FittedMixMin(domains=names, mixture=w, value=value, gap=gap, steps=done, log_probs=logs, lengths=tokens)

    def _step(
        self, w: Array, value: float, slope: Array, lr: float, data: tuple[Array, Array, float]
    ) -> tuple[Array, float, Array, float] | None:
        """The next mixture, its value and slope, and the learning rate; None where rounding hides any progress."""
        logs, tokens, scale = data
        for _ in range(60):
            exponent = -lr * (slope - slope.min()) / scale  # (K,), 0 for the steepest
            moved = w * np.exp(np.maximum(exponent, -50))
            moved = np.maximum(moved / moved.sum(), 1e-300)
            new_value, new_slope = objective(moved, logs, tokens)
            if new_value <= value + 0.1 * float(slope @ (moved - w)):  # Armijo; the slope points down
                return moved, new_value, new_slope, min(lr * 1.5, 1e3 * self.lr)
            lr /= 2
        return None


def objective(w: Array, log_probs: Array, lengths: Array) -> tuple[float, Array]:
    """f(w) and its slope (K,) for log-probabilities (n, K) and lengths (n,)."""
    top = log_probs.max(1)  # (n,)
    scaled = np.exp(log_probs - top[:, None])  # (n, K)
    mixed = scaled @ w  # (n,)
    value = -float(((np.log(mixed) + top) / lengths).mean())
    slope: Array = -((scaled / mixed[:, None]) / lengths[:, None]).mean(0)
    return value, slope
