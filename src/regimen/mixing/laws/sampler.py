"""RegMix's sampler of training mixtures, and one mixture per domain.

Letters: K domains, m mixtures.
Paper: Liu et al., RegMix, arXiv 2407.01492v2, section 3 (Dirichlet around a flattened prior, strengths 0.1 to 5).

Differs from the paper: a mixture is rounded to multiples of the resolution by largest remainders, so that it sums to 1;
rounding each share by itself, as the authors do, leaves sums such as 0.9996.
The authors' published mixtures are denser (45 % of shares below 0.0005) than their code's settings, ours too, give for
that prior (65 %); what they were drawn with is not known. Larger `strengths` give denser ones.
"""

from __future__ import annotations

import numpy as np

from regimen.core.errors import ConfigError
from regimen.mixing.laws.table import Array, shares

STRENGTHS = np.logspace(np.log10(0.1), np.log10(5), 15)
"""The Dirichlet's strengths: low ones give mixtures of few domains."""


def sample_mixtures(
    prior: Array,
    count: int,
    *,
    seed: int,
    exponent: float = 0.5,
    resolution: float = 2e-4,
    usage: float = 15.0,
    oversample: int = 100,
    strengths: Array = STRENGTHS,
) -> Array:
    """Different mixtures (count, K) around a prior (K,), every share a multiple of `resolution`.

    Each is a draw of Dirichlet(strength * prior^exponent / sum) with one of the `strengths`, kept if no share is above
    usage * prior; shares below `resolution` become 0. `count` of the distinct ones are drawn.

    Raises:
        ConfigError: there are fewer distinct mixtures than asked for.
    """
    prior = shares(prior, len(prior), "shares of the prior")  # (K,)
    if count < 1 or not 0 < resolution <= 0.5 or exponent < 0 or usage <= 0 or oversample < 1:
        raise ConfigError(
            "the mixtures cannot be sampled",
            got=f"count={count}, resolution={resolution}, exponent={exponent}, usage={usage}, oversample={oversample}",
            allowed="count 1 or more, resolution above 0 and at most 0.5, exponent 0 or more, the others above 0",
        )
    rng = np.random.default_rng(seed)
    base = np.where(prior > 0, prior**exponent, 0)
    base /= base.sum()  # (K,)
    strength = rng.choice(strengths, size=count * oversample)  # (m,)
    drawn = dirichlet(strength[:, None] * base, rng)  # (m, K)
    drawn = drawn[(drawn <= np.minimum(usage * prior, 1)).all(1)]
    drawn = np.where(drawn < resolution, 0, drawn)
    units = np.unique(_rounded(drawn, round(1 / resolution)), axis=0)  # (distinct, K) whole numbers
    if len(units) < count:
        raise ConfigError(
            f"the prior allows fewer different mixtures than {count}",
            got=f"{len(units)} of {count * oversample} draws were allowed and different",
            do="ask for fewer, raise usage (the largest share, in multiples of the prior's), or add domains",
        )
    mixtures: Array = units[rng.permutation(len(units))[:count]] / round(1 / resolution)
    return mixtures


def one_hot(k: int, *, weight: float = 1.0) -> Array:
    """One mixture (K, K) per domain: `weight` on it and the rest spread evenly over the others.

    Raises ConfigError for a weight that makes all of them the same, or none.
    """
    if k < 1 or not 0 < weight <= 1 or (k > 1 and abs(weight - 1 / k) < 1e-12):
        raise ConfigError("no such one-domain mixtures", got=f"weight={weight}, K={k}", allowed="above 0 to 1, not 1/K")
    rest = (1 - weight) / (k - 1) if k > 1 else 0.0
    return np.where(np.eye(k, dtype=bool), weight if k > 1 else 1.0, rest)


def dirichlet(alpha: Array, rng: np.random.Generator) -> Array:
    """One draw of Dirichlet(alpha) for each row (m, K); entries of 0 stay 0.

    Gammas of small shape underflow, so they are drawn as log Gamma(a + 1) + log(U) / a.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(rng.standard_gamma(alpha + 1)) + np.log(1 - rng.random(alpha.shape)) / alpha  # (m, K)
    logs = np.where(alpha > 0, logs, -np.inf)
    raised = np.exp(logs - logs.max(1, keepdims=True))
    found: Array = raised / raised.sum(1, keepdims=True)
    return found


def _rounded(mixtures: Array, units: int) -> Array:
    """Whole numbers (m, K) that sum to `units` in every row, by largest remainders."""
    exact = mixtures / mixtures.sum(1, keepdims=True) * units
    whole = np.floor(exact)
    short = (units - whole.sum(1)).round()  # (m,)
    place = (exact - whole).argsort(1, kind="stable")[:, ::-1].argsort(1, kind="stable")  # 0: largest remainder
    found: Array = whole + (place < short[:, None])
    return found
