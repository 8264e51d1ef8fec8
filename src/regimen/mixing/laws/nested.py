"""Laws of training time and model size that the mixing law is built on: extrapolate each run, then mix.

Letters: p points of a curve, T targets, n rows. Curve of target i: L_i(x) = c_i + d_i x^-alpha, x tokens (or
steps) seen or non-embedding parameters, alpha shared by the targets.
Paper: Ye et al., Data Mixing Laws, arXiv 2403.16952v2, section 4: step law per mixture with alpha shared by its
targets, size law with alpha shared by all, then the mixing law at the target step and size.

Differs from the paper: least squares, in which c and d are linear once alpha is set, so that alpha is found by search
on a line and no start can matter; the authors fit Huber's loss by L-BFGS. Extrapolation is optimistic: from 30k to 100k
steps their own losses come out up to 0.06 nats too low.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from regimen.core.errors import ConfigError
from regimen.mixing.laws.table import Array, LawTable

_ALPHAS = (0.01, 3.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class PowerLaw:
    """Exponent, floors c (T,) and scales d (T,) at x = `unit`: L_i(x) = c_i + d_i (x / unit)^-alpha."""

    alpha: float
    floor: Array
    scale: Array
    unit: float

    def predict(self, x: float) -> Array:
        """Losses (T,) at x."""
        losses: Array = self.floor + self.scale * (x / self.unit) ** -self.alpha
        return losses


def power_law(x: Array, losses: Array) -> PowerLaw:
    """One power law for curves (p, T) over x (p,), alpha shared. Raises ConfigError for fewer than three points."""
    return tied_power_laws([(x, losses)])[0]


def tied_power_laws(curves: Sequence[tuple[Array, Array]]) -> list[PowerLaw]:
    """Power laws of several groups of curves, (p,) and (p, T) each, with one alpha for all."""
    for x, _ in curves:
        if len(set(x.tolist())) < 3:
            raise ConfigError(
                "a power law with a floor needs three points or more",
                got=f"{len(set(x.tolist()))} different values",
                do="evaluate each run three times or more: evaluation.at=..., or train three sizes or more",
            )
    units = [float(np.exp(np.log(x).mean())) for x, _ in curves]

    def error(alpha: float) -> float:
        return sum(_linear(x / unit, y, alpha)[2] for unit, (x, y) in zip(units, curves, strict=True))

    grid = np.geomspace(*_ALPHAS, 60)
    best = int(np.argmin([error(alpha) for alpha in grid]))
    alpha = _golden_section(error, float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)]))
    laws = []
    for unit, (x, y) in zip(units, curves, strict=True):
        floor, scale, _ = _linear(x / unit, y, alpha)
        laws.append(PowerLaw(alpha=alpha, floor=floor, scale=scale, unit=unit))
    return laws


def _linear(x: Array, losses: Array, alpha: float) -> tuple[Array, Array, float]:
    """Floors (T,) and scales (T,), neither below 0, for one alpha; and the sum of squared errors."""
    u = x**-alpha  # (p,)
    centred = u - u.mean()
    scale = np.maximum(centred @ losses / (centred @ centred), 0)  # (T,)
    floor = losses.mean(0) - scale * u.mean()  # (T,)
    below = floor < 0
    scale = np.where(below, np.maximum(u @ losses / (u @ u), 0), scale)
    floor = np.where(below, 0, floor)
    return floor, scale, float(((floor + u[:, None] * scale - losses) ** 2).sum())


def _golden_section(function: object, low: float, high: float) -> float:
    assert callable(function)
    ratio = (5**0.5 - 1) / 2
    for _ in range(100):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if function(left) < function(right) else (left, high)
    return (low + high) / 2


def at_step(table: LawTable, step: float) -> LawTable:
    """One row per run: its losses at `step`, extrapolated by its step law. Raises ConfigError without steps."""
    if table.steps is None:
        raise ConfigError("a law of training time needs the step of each row", do="give steps")
    rows, losses = [], []
    for name in dict.fromkeys(table.runs):
        of = np.array([run == name for run in table.runs])
        rows.append(int(np.flatnonzero(of)[-1]))
        losses.append(power_law(table.steps[of], table.losses[of]).predict(step))
    last = table.rows(np.array(rows))
    return replace(last, losses=np.stack(losses), steps=np.full(len(rows), float(step)))


def at_size(table: LawTable, size: float) -> LawTable:
    """One row per mixture: its losses at `size` parameters, by a size law with one alpha for all mixtures."""
    if table.sizes is None:
        raise ConfigError("a law of model size needs the non-embedding parameters of each row", do="give sizes")
    last = table.last()
    assert last.sizes is not None
    groups: dict[tuple[float, ...], list[int]] = {}
    for i, mixture in enumerate(last.mixtures):
        groups.setdefault(tuple(np.round(mixture, 9).tolist()), []).append(i)
    laws = tied_power_laws([(last.sizes[rows], last.losses[rows]) for rows in groups.values()])
    kept = last.rows(np.array([rows[0] for rows in groups.values()]))
    return replace(kept, losses=np.stack([law.predict(size) for law in laws]), sizes=np.full(len(laws), float(size)))
