"""Convex minimisation over mixtures with bounds: a primal-dual interior-point method, and scaling into the bounds.

Letters: K domains, m mixtures.
Source: the method is that of Boyd and Vandenberghe, Convex Optimization (2004), section 11.7.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from regimen.mixing.laws.table import Array

Convex = Callable[[Array], tuple[Array, Array]]
"""Slope (K,) and curvature (K, K) of a convex function at a mixture (K,)."""

_SNAP = 1e-9  # shares this near to a bound are on it


def minimise(function: Convex, lower: Array, upper: Array) -> Array:
    """The mixture (K,) that minimises a convex function between bounds (K,) which some mixture obeys."""
    free = upper - lower > 1e-12  # (K,)
    room = 1 - lower[~free].sum() - lower[free].sum()
    span = (upper - lower)[free].sum()
    fraction = room / span if span else 0.0
    start = lower + np.where(free, fraction * (upper - lower), 0)  # (K,)
    if fraction < 1e-12 or fraction > 1 - 1e-12 or free.sum() < 2:
        return np.clip(start, lower, upper)  # the only mixture there is

    def inner(x: Array) -> tuple[Array, Array]:
        whole = start.copy()
        whole[free] = x
        slope, curvature = function(whole)
        return slope[free], curvature[np.ix_(free, free)]

    found = start.copy()
    found[free] = _interior_point(inner, start[free], lower[free], upper[free])
    return _snapped(found, lower, upper)


def _interior_point(function: Convex, x: Array, lower: Array, upper: Array) -> Array:
    """Newton steps on the perturbed optimality conditions; x (k,) starts strictly inside and keeps its sum."""
    k = len(x)
    first = function(x)[0]
    scale = float(np.ptp(first)) or 1.0
    low = high = np.ones(k)  # multipliers of the two bounds
    level = float(first.mean() / scale)  # multiplier of the sum
    for _ in range(300):
        slope, curvature = (part / scale for part in function(x))
        gap = float(low @ (x - lower) + high @ (upper - x))
        residual = np.abs(slope - level - low + high).max()
        if gap < 1e-13 and residual < 1e-10:
            break
        mu = 0.1 * gap / (2 * k)
        below, above = x - lower, upper - x
        system = curvature + np.diag(low / below + high / above)  # (k, k)
        right = np.stack([-(slope - level - mu / below + mu / above), np.ones(k)], 1)  # (k, 2)
        solved = np.linalg.solve(system, right)
        change = -solved[:, 0].sum() / solved[:, 1].sum()  # of the level, so that dx sums to 0
        dx = solved[:, 0] + change * solved[:, 1]
        d_low, d_high = mu / below - low - low / below * dx, mu / above - high + high / above * dx
        step = min(1.0, *(_to_boundary(v, dv) for v, dv in ((below, dx), (above, -dx), (low, d_low), (high, d_high))))
        before = _residuals(slope, low, high, below, above, level, mu)
        for _ in range(40):  # shorter while the conditions are met worse than before
            moved = (low + step * d_low, high + step * d_high, below + step * dx, above - step * dx)
            new_slope = function(x + step * dx)[0] / scale
            if _residuals(new_slope, *moved, level + step * change, mu) <= (1 - 0.01 * step) * before:
                break
            step /= 2
        x, low, high, level = x + step * dx, moved[0], moved[1], level + step * change
    return x


def _residuals(slope: Array, low: Array, high: Array, below: Array, above: Array, level: float, mu: float) -> float:
    dual = slope - level - low + high
    return float(np.linalg.norm(np.concatenate([dual, low * below - mu, high * above - mu])))


def _to_boundary(value: Array, change: Array) -> float:
    """How much of a change leaves all values above 0."""
    falling = change < 0
    return 0.99 * float((-value[falling] / change[falling]).min()) if falling.any() else 1.0


def _snapped(x: Array, lower: Array, upper: Array) -> Array:
    x = np.where(x - lower < _SNAP, lower, np.where(upper - x < _SNAP, upper, x))  # (K,)
    rest = 1 - x.sum()
    room = np.minimum(x - lower, upper - x)
    widest = int(room.argmax()) if room.max() > 0 else int(((upper - x) if rest > 0 else (x - lower)).argmax())
    x[widest] += rest
    return x


def within(mixtures: Array, lower: Array, upper: Array) -> Array:
    """Mixtures (m, K) scaled and clipped into the bounds: x = clip(s * x, lower, upper) with s such that x sums to 1.

    It is the nearest allowed mixture in KL divergence. Shares of 0 are raised where nothing else can fill the sum.
    """
    raised = np.maximum(mixtures, 1e-12)  # (m, K)
    low, high = np.full(len(raised), -60.0), np.full(len(raised), 60.0)  # log s (m,)
    for _ in range(100):
        middle = (low + high) / 2
        short = np.clip(np.exp(middle)[:, None] * raised, lower, upper).sum(1) < 1
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    found: Array = np.clip(np.exp(high)[:, None] * raised, lower, upper)
    return found


def kl_parts(x: Array, natural: Array, weight: float) -> tuple[Array, Array]:
    """Slope (K,) and curvature (K,) of weight * KL(x || natural), both 0 where the natural share is 0."""
    there = natural > 0
    ratio = np.where(there, np.maximum(x, 1e-300) / np.where(there, natural, 1), 1)
    return weight * (np.log(ratio) + 1) * there, weight / np.maximum(x, 1e-300) * there


def kl(mixtures: Array, natural: Array) -> Array:
    """KL(mixture || natural) (m,) in nats, of the domains that have a natural share."""
    there = natural > 0
    ratio = np.where(there, np.maximum(mixtures, 1e-300) / np.where(there, natural, 1), 1)  # (m, K)
    total: Array = (mixtures * np.log(ratio)).sum(1)
    return total
