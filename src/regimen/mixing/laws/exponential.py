"""The exponential mixing law's fit and optimum, shared by Data Mixing Laws and Olmix.

Letters: n rows, K domains, T targets. Loss of target i at shares r: L_i(r) = c_i + exp(sum_j g_ij r_j), c_i > 0.
Shares sum to 1, so k exp(t.r) is the same function as exp(g.r) with g_j = log k + t_j: only g can be told, and k is not
fitted. The fit is Huber's loss by SciPy's Trust Region Reflective method from several starts; the starts are weighted
linear regressions of log(L - c) for values of c between 0 and the least loss, and then those with noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from regimen.core.errors import ConfigError
from regimen.mixing.laws.constraints import Constraints
from regimen.mixing.laws.law import Fitted, Law, positive, whole
from regimen.mixing.laws.simplex import kl_parts, minimise
from regimen.mixing.laws.table import Array, LawTable

_LARGEST = 300.0  # of an exponent: beyond it a start is hopeless, and exp must not overflow


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedExponential(Fitted):
    """Floors c (T,), exponents g (T, K) and the mean Huber loss (T,) of the fit; `pull` is the law's own KL weight."""

    c: Array
    g: Array
    huber: Array
    pull: float = 0.0

    def _predict(self, mixtures: Array) -> Array:
        losses: Array = self.c + np.exp(np.minimum(mixtures @ self.g.T, _LARGEST))
        return losses

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            name: {
                "c": float(self.c[t]),
                "g": dict(zip(self.domains, self.g[t].tolist(), strict=True)),
                "mean_huber": float(self.huber[t]),
            }
            for t, name in enumerate(self.targets)
        }

    def default_kl(self) -> float:
        """The law's own; 0 where there are no natural shares to stay near."""
        return 0.0 if self.natural is None else self.pull

    def optimum(self, constraints: Constraints) -> Array | None:
        """Exact: a sum of exponentials of linear functions is convex, and so is the divergence."""
        lower, upper, weight, natural = self.limits(constraints)

        def convex(x: Array) -> tuple[Array, Array]:
            values = self.weights * np.exp(np.minimum(self.g @ x, _LARGEST))  # (T,)
            slope, curvature = self.g.T @ values, (self.g.T * values) @ self.g  # (K,), (K, K)
            if weight:
                pull, diagonal = kl_parts(x, natural, weight)
                slope, curvature = slope + pull, curvature + np.diag(diagonal)
            return slope, curvature

        return minimise(convex, lower, upper)


@dataclass(frozen=True, kw_only=True)
class ExponentialLaw(Law):
    """The fit of both laws. delta: where Huber's loss turns linear. starts: fits tried, the best is kept."""

    delta: float = 0.05
    starts: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        positive(self, delta=self.delta)
        whole(self, starts=self.starts)
        whole(self, least=0, seed=self.seed)

    def minimum_rows(self, table: LawTable) -> int:
        return len(table.domains) + 1

    def own_kl(self) -> float:
        """The weight of the divergence that the law proposes mixtures with."""
        return 0.0

    def _fit(self, table: LawTable, weights: Array) -> Fitted:
        if (table.losses <= 0).any():
            raise ConfigError("the exponential law needs losses above 0", got=f"{table.losses.min():g}")
        k = len(table.domains)
        found = [self._target(table.mixtures, table.losses[:, t]) for t in range(len(table.targets))]
        notes = [] if len(table) >= 2 * (k + 1) else [f"{k + 1} parameters per target on {len(table)} rows: fragile"]
        return FittedExponential(
            domains=tuple(table.domains),
            targets=tuple(table.targets),
            weights=weights,
            natural=table.natural,
            notes=tuple(notes),
            c=np.array([c for c, _, _ in found]),
            g=np.stack([g for _, g, _ in found]),
            huber=np.array([huber for _, _, huber in found]),
            pull=self.own_kl(),
        )

    def _target(self, mixtures: Array, losses: Array) -> tuple[float, Array, float]:
        return fit_exponential(mixtures, losses, delta=self.delta, starts=self.starts, seed=self.seed)


def fit_exponential(
    mixtures: Array, losses: Array, *, delta: float, starts: int, seed: int
) -> tuple[float, Array, float]:
    """Floor c, exponents g (K,) and the mean Huber loss of mixtures (n, K) and losses (n,)."""
    from scipy.optimize import least_squares  # type: ignore[import-untyped]

    def residuals(p: Array) -> Array:
        found: Array = np.exp(p[0]) + np.exp(np.minimum(mixtures @ p[1:], _LARGEST)) - losses
        return found

    def slopes(p: Array) -> Array:
        inner = np.exp(np.minimum(mixtures @ p[1:], _LARGEST))  # (n,)
        return np.concatenate([np.full((len(losses), 1), np.exp(p[0])), mixtures * inner[:, None]], 1)  # (n, 1 + K)

    best: Any = None
    for start in _starts(mixtures, losses, starts, seed):
        fit = least_squares(
            residuals, start, slopes, method="trf", loss="huber", f_scale=delta, x_scale="jac",
            ftol=1e-12, xtol=1e-12, gtol=1e-12, max_nfev=500,
        )  # fmt: skip
        best = fit if best is None or fit.cost < best.cost else best
    return float(np.exp(best.x[0])), best.x[1:], float(best.cost) / len(losses)


def _starts(mixtures: Array, losses: Array, count: int, seed: int) -> list[Array]:
    """Starting log c and g (1 + K,)."""
    rng = np.random.default_rng(seed)
    fractions = (0.5, 0.9, 0.98, 0.1, 0.7, 0.95)
    found = []
    for i in range(count):
        c = losses.min() * (fractions[i] if i < len(fractions) else rng.uniform(0.05, 0.995))
        above = losses - c  # (n,): errors of log(L - c) count as errors of L when weighted with L - c
        g = np.linalg.lstsq(mixtures * above[:, None], np.log(above) * above, rcond=1e-8)[0]  # (K,)
        if i >= len(fractions):
            g = g + rng.normal(0, 1, len(g))
        found.append(np.concatenate([[np.log(c)], np.clip(g, -_LARGEST, 20)]))
    return found
