"""The mixing law of two domains, and the critical share of continual pre-training.

Letters: n runs. Loss at share r of one of the domains: L(r) = c + exp(k r + b).
Paper: Ye et al., Data Mixing Laws, arXiv 2403.16952v2, section 3.1 and the section on continual pre-training.

Differs from the paper: k and b are least squares of log(L - c) once c is scanned; the authors then refine them by
Huber's loss of width 0.02, which is `huber`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from regimen.core.errors import ConfigError
from regimen.mixing.laws.table import Array


@dataclass(frozen=True, kw_only=True)
class TwoDomains:
    """L(r) = c + exp(k r + b); correlation: |corr(r, log(L - c))| of the fit."""

    c: float
    k: float
    b: float
    correlation: float

    def predict(self, share: Any) -> Array:
        """Losses of shares, any shape."""
        losses: Array = self.c + np.exp(self.k * np.asarray(share, dtype=np.float64) + self.b)
        return losses

    def critical_share(self, loss: float) -> float:
        """The share at which the law gives `loss`: that of the model before continual pre-training, so that it is kept.

        Raises ConfigError where the law gives it nowhere between 0 and 1.
        """
        share = (np.log(loss - self.c) - self.b) / self.k if loss > self.c and self.k else np.nan
        if not 0 <= share <= 1:
            ends = self.predict([0.0, 1.0])
            raise ConfigError(
                "no share gives this loss",
                got=f"loss {loss:g}",
                allowed=f"{min(ends):.4g} to {max(ends):.4g}, the law's losses at shares 0 and 1",
            )
        return float(share)


def two_domains(share: Any, losses: Any, *, scan: int = 1000, huber: float | None = None) -> TwoDomains:
    """Fit shares (n,) and losses (n,): of `scan` floors in [0, min L) the one with the largest |corr(r, log(L - c))|.

    Raises ConfigError for fewer than three different shares.
    """
    r, y = np.asarray(share, dtype=np.float64), np.asarray(losses, dtype=np.float64)  # (n,) both
    if r.shape != y.shape or len(set(r.tolist())) < 3 or not (np.isfinite(r) & np.isfinite(y) & (y > 0)).all():
        raise ConfigError(
            "the law of two domains cannot be fitted",
            got=f"shares {r.tolist()}, losses {y.tolist()}",
            allowed="three different shares or more, one positive loss each",
        )
    floors = np.linspace(0, y.min(), scan, endpoint=False)  # (scan,)
    logs = np.log(y - floors[:, None])  # (scan, n)
    centred, x = logs - logs.mean(1, keepdims=True), r - r.mean()
    spread = np.sqrt((centred**2).sum(1) * (x @ x))  # (scan,)
    correlation = np.abs(centred @ x) / np.where(spread > 0, spread, 1)
    best = int(correlation.argmax())
    k, b = np.polyfit(r, logs[best], 1)
    if huber is not None:
        k, b = _refined(r, y - floors[best], float(k), float(b), huber)
    return TwoDomains(c=float(floors[best]), k=float(k), b=float(b), correlation=float(correlation[best]))


def _refined(r: Array, above: Array, k: float, b: float, delta: float) -> tuple[float, float]:
    from scipy.optimize import least_squares  # type: ignore[import-untyped]

    def residuals(p: Array) -> Array:
        found: Array = np.exp(p[0] * r + p[1]) - above
        return found

    fit = least_squares(residuals, [k, b], loss="huber", f_scale=delta)
    return float(fit.x[0]), float(fit.x[1])
