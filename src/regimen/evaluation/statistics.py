"""Statistics for comparing methods over seeds and items: intervals, paired tests, corrections, bootstraps.

Unit of observation: (method, seed, item). A seed fixes the initialisation and the order of the data, and all methods
run with the same seeds, so methods are compared in pairs, seed by seed. Everything is NumPy; no SciPy.

Shapes: S seeds, N items (documents of the validation set, say), R bootstrap replications.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

EXACT_UP_TO = 12
"""The sign-flip test enumerates all 2^S flips up to this many seeds, and samples flips beyond."""

_CHUNK = 2_000_000
"""Numbers that one block of bootstrap replications may hold, so that memory stays flat."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over `n` values with a confidence interval; `low` and `high` are NaN when one value gives none."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def bounded(self) -> bool:
        """Whether there is an interval at all."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.bounded and (self.low > 0 or self.high < 0)

    @property
    def half_width(self) -> float:
        """Half the length of the interval, NaN without one."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, kw_only=True)
class SignFlip:
    """A two-sided sign-flip p-value, and `minimum`: the least p that this many pairs can give."""

    p: float
    minimum: float
    exact: bool


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """A mean with its bootstrap standard deviation and percentile interval."""

    mean: float
    sd: float
    low: float
    high: float


# ---------------------------------------------------------------------------------------------- Student's t


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by Lentz's continued fraction."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1.0) / (a + b + 2.0):  # the fraction converges fast on this side only
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, 1.0 - x) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0) or tiny)
    value = d
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / (1.0 + term * d or tiny)
            c = 1.0 + term / c or tiny
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value


def t_cdf(t: float, dof: float) -> float:
    """P(T <= t) of Student's t with `dof` degrees of freedom."""
    tail = 0.5 * incomplete_beta(dof / 2.0, 0.5, dof / (dof + t * t))
    return tail if t < 0 else 1.0 - tail


def t_quantile(p: float, dof: float) -> float:
    """The value that Student's t with `dof` degrees of freedom stays below with probability `p`, by bisection."""
    assert 0.0 < p < 1.0 and dof > 0, (p, dof)
    if p < 0.5:
        return -t_quantile(1.0 - p, dof)
    low, high = 0.0, 1.0
    while t_cdf(high, dof) < p:
        high *= 2.0
    for _ in range(200):
        middle = (low + high) / 2.0
        if middle in (low, high):
            break
        low, high = (middle, high) if t_cdf(middle, dof) < p else (low, middle)
    return (low + high) / 2.0


# ---------------------------------------------------------------------------------------------- over seeds


def mean_interval(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """The mean of independent values with its t-interval, S - 1 degrees of freedom.

    Args:
        values: (S,) one number per seed; all finite.
        level: the coverage of the interval.
    """
    x = _vector(values)  # (S,)
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean=mean, low=math.nan, high=math.nan, n=1)
    half = t_quantile(0.5 + level / 2, len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Interval(mean=mean, low=mean - half, high=mean + half, n=len(x))


def paired_interval(method: ArrayLike, baseline: ArrayLike, *, level: float = 0.95) -> Interval:
    """The mean of `method - baseline` over pairs with its t-interval; both (S,), position by position one seed."""
    x, y = _vector(method), _vector(baseline)
    assert x.shape == y.shape, (x.shape, y.shape)
    return mean_interval(x - y, level=level)


def sign_flip(differences: ArrayLike, *, draws: int = 20_000, seed: int = 0) -> SignFlip:
    """The two-sided p-value of "each difference could as well have had the other sign".

    Exact (all 2^S flips) for S <= 12. Beyond, `draws` sampled flips with the observed one counted in, so p is never
    zero. With S pairs no p below 2 / 2^S can come out: 5 seeds cannot reach .05.

    Args:
        differences: (S,) method minus baseline, one per seed.
        draws: how many flips to sample when they are too many to enumerate.
        seed: of the sampled flips.
    """
    d = _vector(differences)  # (S,)
    exact = len(d) <= EXACT_UP_TO
    if exact:
        bits = np.arange(2 ** len(d))[:, None] >> np.arange(len(d)) & 1  # (2^S, S)
    else:
        bits = np.random.default_rng(seed).integers(0, 2, size=(draws, len(d)))  # (draws, S)
    flipped = np.abs((1 - 2 * bits) @ d)  # (flips,)
    observed = abs(float(d.sum()))
    hits = int((flipped >= observed - 1e-12 * float(np.abs(d).sum())).sum())
    p = hits / len(flipped) if exact else (hits + 1) / (draws + 1)
    minimum = 2.0 ** (1 - len(d)) if exact else max(2.0 ** (1 - len(d)), 1 / (draws + 1))
    return SignFlip(p=p, minimum=minimum, exact=exact)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment over the family `p_values`, in the order given; monotone and at most 1."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for position, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = running
    return adjusted


def iqm(values: ArrayLike) -> float:
    """The interquartile mean: the mean without the lowest and the highest quarter (rounded down) of the values."""
    x = np.sort(_vector(values))
    cut = len(x) // 4
    return float(x[cut : len(x) - cut].mean())


# ---------------------------------------------------------------------------------------------- over items


def bootstrap_items(
    differences: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    replications: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Bootstrap:
    """The paired bootstrap over items: resample items, keep both methods' scores of an item together.

    Args:
        differences: (N,) method minus baseline, one per item (the mean over seeds, if there are several).
        clusters: (N,) a label per item; items of one label (a document's passages) are drawn together.
        replications: R.
        level: the coverage of the percentile interval.
        seed: of the resampling.
    """
    d = _vector(differences)  # (N,)
    sums, counts = d, np.ones(len(d), dtype=np.float64)
    if clusters is not None:
        index = np.unique(np.asarray(clusters), return_inverse=True)[1]  # (N,)
        sums = np.bincount(index, weights=d).astype(np.float64)  # (C,)
        counts = np.bincount(index).astype(np.float64)  # (C,)
    rng = np.random.default_rng(seed)
    means = []
    for size in _blocks(replications, len(sums)):
        drawn = rng.integers(0, len(sums), size=(size, len(sums)))  # (block, C)
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return _summary(float(d.mean()), np.concatenate(means), level)


def bootstrap_crossed(
    differences: ArrayLike, *, replications: int = 10_000, level: float = 0.95, seed: int = 0
) -> Bootstrap:
    """The crossed bootstrap: resample seeds and items independently of each other.

    Resampling S seeds underestimates the variance between seeds by (S - 1) / S, so each seed's deviation from the
    grand mean is multiplied by sqrt(S / (S - 1)) first.

    Args:
        differences: (S, N) method minus baseline for every seed and item; S of 2 or more.
        replications: R.
        level: the coverage of the percentile interval.
        seed: of the resampling.
    """
    d = np.asarray(differences, dtype=float)  # (S, N)
    assert d.ndim == 2 and d.shape[0] > 1 and np.isfinite(d).all(), d.shape
    seeds, items = d.shape
    deviation = d.mean(axis=1, keepdims=True) - d.mean()  # (S, 1)
    d = d + (math.sqrt(seeds / (seeds - 1)) - 1.0) * deviation
    rng = np.random.default_rng(seed)
    means = []
    for size in _blocks(replications, items):
        by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=size) / seeds  # (block, S)
        drawn = rng.integers(0, items, size=(size, items)) + items * np.arange(size)[:, None]  # (block, N)
        by_item = np.bincount(drawn.ravel(), minlength=size * items).reshape(size, items) / items  # (block, N)
        means.append(((by_seed @ d) * by_item).sum(axis=1))
    return _summary(float(d.mean()), np.concatenate(means), level)


def _blocks(replications: int, width: int) -> list[int]:
    size = max(1, min(replications, _CHUNK // max(width, 1)))
    full, rest = divmod(replications, size)
    return [size] * full + ([rest] if rest else [])


def _summary(mean: float, means: NDArray[np.float64], level: float) -> Bootstrap:
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return Bootstrap(mean=mean, sd=float(means.std(ddof=1)), low=float(low), high=float(high))


def _vector(values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=float)
    assert x.ndim == 1 and len(x) > 0 and np.isfinite(x).all(), x
    return x
