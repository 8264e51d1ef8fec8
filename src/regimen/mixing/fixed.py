"""Fixed mixture: the shares that the user or a published table gives.

Letters: K domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regimen.core.checks import check_one_of
from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.strategy import Empty, Mixer, Observation
from regimen.mixing.common import by_domain, finite

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
        check_one_of("others, which says what unnamed domains get", self.others, ("refuse", "zero"))
        checked = checked_weights(self.weights, normalise=self.normalise, owner="strategies.fixed")
        object.__setattr__(self, "weights", checked)

    def init(self, index: PoolIndex) -> Empty:
        """No state; domains that do not fit are refused here, before the first step."""
        self.shares(index)
        return Empty()

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Shares (K,) float64. Raises ConfigError as `shares` does."""
        return self.shares(seen.index)

    def shares(self, index: PoolIndex) -> Tensor:
        """Shares (K,) float64 that sum to 1, in the order of `index.domains`. Raises ConfigError as `named_shares`."""
        assert self.weights is not None
        return named_shares(self.weights, index.domains, others=self.others, owner="strategies.fixed")


def checked_weights(weights: Mapping[str, float], *, normalise: bool, owner: str) -> dict[str, float]:
    """Weights of a mixture by name, as numbers. owner: the dotted setting that has the field `normalise`.

    Raises ConfigError for a weight that is no share, and for a sum of 0 or, unless `normalise`, off 1.
    """
    if not isinstance(weights, Mapping):
        raise ConfigError(
            "the weights of a mixture go by domain name",
            got=f"{type(weights).__name__} of {len(weights)}",
            do=f"give {owner}.weights a mapping; a set of runs gives a list: refer to a fit of them",
        )
    checked = {str(name): _share(name, weight) for name, weight in weights.items()}
    total = sum(checked.values())
    if total == 0 or (not normalise and abs(total - 1) > TOLERANCE):
        raise ConfigError(
            f"the weights of a mixture sum to {total:g}",
            got=checked,
            allowed=f"a sum of 1, give or take {TOLERANCE:g}; with normalise: true any sum above 0",
            do=f"correct the weights, or set {owner}.normalise=true",
        )
    return checked


def named_shares(weights: Mapping[str, float], domains: tuple[str, ...], *, others: str, owner: str) -> Tensor:
    """Shares (K,) float64 that sum to 1, in the order of `domains`, from checked weights by name.

    others: `refuse` or `zero`, for domains that are not named. owner: the dotted setting that has the field `others`.

    Raises:
        ConfigError: a name that means no domain or several, two names for one domain, a domain without a name.
    """
    named = by_domain(weights, domains)
    missing = [domain for domain in domains if domain not in named]
    if missing and others == "refuse":
        raise ConfigError(
            f"the mixture does not name {len(missing)} of {len(domains)} domains of the pool",
            got=", ".join(missing),
            do=f"give each a weight, 0 included, or set {owner}.others=zero",
        )
    shares = torch.tensor([named.get(domain, 0.0) for domain in domains], dtype=torch.float64)  # (K,)
    return shares / shares.sum()


def _share(name: object, weight: object) -> float:
    share = finite(weight)
    if not share >= 0:
        raise ConfigError(f"the weight of {name!r} is not a share", got=weight, allowed="a number of 0 or more")
    return share
