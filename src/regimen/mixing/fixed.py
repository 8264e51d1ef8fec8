"""Fixed mixture: the shares that the user or a published table gives.

Letters: K domains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regimen.core.errors import ConfigError, closest
from regimen.core.index import PoolIndex
from regimen.core.strategy import Empty, Mixer, Observation

TOLERANCE = 1e-3  # of the sum: what three-digit tables are off by


@dataclass(frozen=True, kw_only=True)
class FixedMixture(Mixer):
    """The same shares of target tokens at every decision.

    weights: share by domain name. A name means the domain of that name or, where there is none, the one domain whose
        name has the same letters and digits whatever the case: `Pile-CC` means `pile_cc`.
    normalise: divide by the sum; without it a sum that is off 1 by more than 0.001 is refused.
    others: domains of the pool that `weights` does not name: `refuse` them, or give them `zero`.
    """

    weights: Mapping[str, float] | None = None
    normalise: bool = False
    others: Literal["refuse", "zero"] = "refuse"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is None:
            raise ConfigError(
                "the fixed mixture has no weights",
                got="strategies.fixed.weights=null",
                do="add mixture=NAME, a file of conf/mixture, or 'strategies.fixed.weights={web: 0.5, code: 0.5}'",
            )
        if self.others not in ("refuse", "zero"):
            raise ConfigError("others says what unnamed domains get", got=self.others, allowed="refuse, zero")
        object.__setattr__(self, "weights", {str(name): _share(name, w) for name, w in self.weights.items()})
        total = sum(self.weights.values())
        if total == 0 or (not self.normalise and abs(total - 1) > TOLERANCE):
            raise ConfigError(
                f"the weights of a mixture sum to {total:g}",
                got=dict(self.weights),
                allowed=f"a sum of 1, give or take {TOLERANCE:g}; with normalise: true any sum above 0",
                do="correct the weights, or set strategies.fixed.normalise=true",
            )

    def init(self, index: PoolIndex) -> Empty:
        """No state; domains that do not fit are refused here, before the first step."""
        self.shares(index)
        return Empty()

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Shares (K,) float64. Raises ConfigError as `shares` does."""
        return self.shares(seen.index)

    def shares(self, index: PoolIndex) -> Tensor:
        """Shares (K,) float64 that sum to 1, in the order of `index.domains`.

        Raises:
            ConfigError: a name that means no domain or several, two names for one domain, a domain without a name.
        """
        assert self.weights is not None
        named: dict[str, str] = {}  # domain: the name that was given for it
        for name in self.weights:
            domain = _domain(name, index.domains)
            if domain in named:
                raise ConfigError(
                    "two weights are for one domain", got=f"{named[domain]!r} and {name!r} for {domain!r}"
                )
            named[domain] = name
        missing = [domain for domain in index.domains if domain not in named]
        if missing and self.others == "refuse":
            raise ConfigError(
                f"the mixture does not name {len(missing)} of {len(index.domains)} domains of the pool",
                got=", ".join(missing),
                do="give each a weight, 0 included, or set strategies.fixed.others=zero",
            )
        shares = [self.weights[named[d]] if d in named else 0.0 for d in index.domains]
        weights = torch.tensor(shares, dtype=torch.float64)  # (K,)
        return weights / weights.sum()


def _share(name: object, weight: object) -> float:
    try:
        share = float(weight)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        share = math.nan
    if not 0 <= share < math.inf:
        raise ConfigError(f"the weight of {name!r} is not a share", got=weight, allowed="a number of 0 or more")
    return share


def _domain(name: str, domains: tuple[str, ...]) -> str:
    """The domain that a name means."""
    if name in domains:
        return name
    alike = [domain for domain in domains if _letters(domain) == _letters(name)]
    if len(alike) == 1:
        return alike[0]
    if alike:
        raise ConfigError(f"{name!r} could mean several domains", got=", ".join(alike), do="type the name as it is")
    raise ConfigError(
        f"the mixture names a domain that the pool does not have{closest(name, domains)}",
        got=name,
        allowed=", ".join(domains),
        do="correct the name or take it out of the weights",
    )


def _letters(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum()) or name
