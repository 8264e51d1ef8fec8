"""RegMix with linear regression: each loss is an intercept plus a linear function of the shares.

Letters: n rows, K domains, T targets.
Paper: Liu et al., RegMix, arXiv 2407.01492v2, section 3 (the linear variant, table 2).

Differs from the paper:
- Shares sum to 1, so an intercept and K slopes are not identifiable in exact tables. Shares and losses are centred and
  the shortest slopes taken (the pseudo-inverse); where a table's shares are rounded, that is plain least squares.
- The best mixture is found exactly (a linear program, or a convex one with `kl`), not by simulation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from regimen.mixing.laws.constraints import Constraints
from regimen.mixing.laws.law import Fitted, Law, at_least_zero
from regimen.mixing.laws.simplex import kl_parts, minimise
from regimen.mixing.laws.table import Array, LawTable


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedLinear(Fitted):
    """Slopes (K, T) around the mean mixture (K,) and the mean losses (T,)."""

    slopes: Array
    mean_mixture: Array
    mean_losses: Array

    def _predict(self, mixtures: Array) -> Array:
        losses: Array = (mixtures - self.mean_mixture) @ self.slopes + self.mean_losses
        return losses

    @property
    def parameters(self) -> dict[str, Any]:
        intercepts = self.mean_losses - self.mean_mixture @ self.slopes  # (T,)
        return {
            name: {
                "intercept": float(intercepts[t]),
                "slopes": dict(zip(self.domains, self.slopes[:, t].tolist(), strict=True)),
            }
            for t, name in enumerate(self.targets)
        }

    def optimum(self, constraints: Constraints) -> Array | None:
        lower, upper, weight, natural = self.limits(constraints)
        slope = self.slopes @ self.weights  # (K,)
        if not weight:
            return cheapest(slope, lower, upper)

        def convex(x: Array) -> tuple[Array, Array]:
            pull, curvature = kl_parts(x, natural, weight)
            return slope + pull, np.diag(curvature)

        return minimise(convex, lower, upper)


def cheapest(cost: Array, lower: Array, upper: Array) -> Array:
    """The mixture (K,) of least cost between bounds: domains are filled up from the cheapest on."""
    x = lower.copy()  # (K,)
    left = 1 - float(x.sum())
    for i in np.argsort(cost, kind="stable"):
        more = min(left, float(upper[i] - lower[i]))
        x[i] += more
        left -= more
    return x


@dataclass(frozen=True, kw_only=True)
class RegMixLinear(Law):
    """Ordinary least squares; with `ridge` above 0, ridge regression that leaves the intercept alone."""

    ridge: float = 0.0

    def __post_init__(self) -> None:
        at_least_zero(self, ridge=self.ridge)

    def minimum_rows(self, table: LawTable) -> int:
        return 2 if self.ridge else len(table.domains)

    def with_few_rows(self) -> str:
        return "train more mixtures, or penalise the slopes: law.ridge=1"

    def _fit(self, table: LawTable, weights: Array) -> Fitted:
        mean_mixture, mean_losses = table.mixtures.mean(0), table.losses.mean(0)  # (K,), (T,)
        x, y = table.mixtures - mean_mixture, table.losses - mean_losses  # (n, K), (n, T)
        if self.ridge:
            slopes = np.linalg.solve(x.T @ x + self.ridge * np.eye(x.shape[1]), x.T @ y)
        else:
            slopes = np.linalg.lstsq(x, y, rcond=1e-10)[0]
        return FittedLinear(
            domains=tuple(table.domains),
            targets=tuple(table.targets),
            weights=weights,
            natural=table.natural,
            slopes=slopes,
            mean_mixture=mean_mixture,
            mean_losses=mean_losses,
        )
