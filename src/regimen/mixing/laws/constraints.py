"""What a proposed mixture must obey: shares between bounds, a cap on repetition, and a pull to the natural shares.

Letters: K domains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from regimen.core.errors import ConfigError, closest
from regimen.mixing.laws.table import Array

SLACK = 1e-9  # what rounding may take from a bound or a sum


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Bounds of every share; where several apply to a domain, the tightest holds.

    min_share, max_share: of every domain. caps: largest share by domain name.
    kl: weight of KL(mixture || natural shares) beside the predicted loss; None leaves it to the law.
    rho: no domain is repeated more than `rho` times: share * tokens <= rho * pool, with `tokens` of the run to come and
        `pool` tokens of each domain.
    """

    min_share: float = 0.0
    max_share: float = 1.0
    caps: Mapping[str, float] | None = None
    kl: float | None = None
    rho: float | None = None
    tokens: float | None = None
    pool: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        for name, share in {"min_share": self.min_share, "max_share": self.max_share, **dict(self.caps or {})}.items():
            if not _number(share) or not 0 <= share <= 1:
                raise ConfigError(f"{name!r} is no share", got=share, allowed="a number from 0 to 1")
        for key, value in (("kl", self.kl), ("rho", self.rho), ("tokens", self.tokens)):
            if value is not None and (not _number(value) or value < 0 or (key != "kl" and value == 0)):
                raise ConfigError(f"{key} cannot be used", got=f"{key}={value}", allowed="a number above 0")
        if (self.rho is None) != (self.tokens is None) or (self.rho is not None and self.pool is None):
            given = [key for key in ("rho", "tokens", "pool") if getattr(self, key) is not None]
            raise ConfigError(
                "a cap on repetition needs rho, tokens and pool",
                got=", ".join(given) or "none of them",
                do="give all: rho=4 (times a token may be seen), tokens=1e9 (of the run to come) and pool={domain: "
                "tokens, ...}, or take rho and tokens out",
            )

    def bounds(self, domains: Sequence[str]) -> tuple[Array, Array]:
        """Smallest and largest share (K,) of each domain. Raises ConfigError for unknown names, or if none can be."""
        lower = np.full(len(domains), float(self.min_share))  # (K,)
        upper = np.full(len(domains), float(self.max_share))  # (K,)
        for name, cap in (self.caps or {}).items():
            if name not in domains:
                raise ConfigError(
                    f"a cap is for a domain that the mixtures do not have{closest(name, domains)}",
                    got=name,
                    allowed=", ".join(domains),
                )
            upper[list(domains).index(name)] = min(cap, self.max_share)
        if self.rho is not None:
            assert self.tokens is not None and self.pool is not None
            missing = [name for name in domains if name not in self.pool]
            if missing:
                raise ConfigError("the pool does not say how many tokens each domain has", got=", ".join(missing))
            tokens = np.array([self.pool[name] for name in domains], dtype=np.float64)  # (K,)
            upper = np.minimum(upper, self.rho * tokens / self.tokens)
        _feasible(domains, lower, upper)
        return lower, upper


def obeys(mixture: Array, lower: Array, upper: Array) -> bool:
    """Whether a mixture (K,) lies between its bounds and sums to 1."""
    inside = (mixture >= lower - SLACK).all() and (mixture <= upper + SLACK).all()
    return bool(inside and abs(mixture.sum() - 1) <= SLACK)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _feasible(domains: Sequence[str], lower: Array, upper: Array) -> None:
    crossed = [name for name, low, high in zip(domains, lower, upper, strict=True) if low > high]
    if crossed:
        raise ConfigError(
            "no mixture obeys the constraints: a share would have to be above its smallest and below its largest",
            got=", ".join(crossed),
            do="lower min_share, or take the domain out of the caps (or its repetition cap: a larger rho)",
        )
    if lower.sum() > 1 + SLACK or upper.sum() < 1 - SLACK:
        raise ConfigError(
            "no mixture obeys the constraints: the shares cannot sum to 1",
            got=f"smallest shares sum to {lower.sum():.4g}, largest to {upper.sum():.4g}",
            allowed="smallest at most 1 together, largest at least 1 together",
            do="lower min_share, or raise max_share, caps or rho",
        )
