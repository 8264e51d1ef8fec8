"""What mixers share: values that are given by domain name, mean losses of domains, shares from exponents.

Letters: n rows of the batch, K domains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from regimen.core.errors import ConfigError, closest
from regimen.core.index import PoolIndex
from regimen.core.strategy import Observation
from regimen.signals.loss import Loss

V = TypeVar("V")
LOSS = Loss()
INITIAL = ("natural", "uniform")


def domain_losses(seen: Observation) -> tuple[Tensor, Tensor]:
    """Mean training loss (K,) of the target tokens of each domain in the batch, and which domains have one (K,) bool.

    A domain has none where it is absent, has no target tokens, or has a loss that is not a number.
    """
    tokens = seen.tokens.double()
    columns = torch.stack([seen.values[LOSS] * tokens, tokens])  # (2, n)
    sums = torch.zeros(2, len(seen.index.domains), dtype=torch.float64).index_add_(1, seen.domain, columns)  # (2, K)
    loss = sums[0] / sums[1].clamp(min=1)  # (K,)
    return loss, (sums[1] > 0) & loss.isfinite()


def initial_shares(initial: str, index: PoolIndex) -> Tensor:
    """Shares (K,) float64: `natural`, or `uniform` over the domains that have tokens."""
    natural = index.natural()
    return natural if initial == "natural" else exponential_shares(torch.zeros_like(natural), index)


def exponential_shares(exponents: Tensor, index: PoolIndex) -> Tensor:
    """Shares (K,) float64 in proportion to exp(exponents (K,)), which may be large; 0 for a domain without tokens."""
    held = index.domain_tokens() > 0  # (K,)
    shares: Tensor = torch.where(held, exponents.double(), -torch.inf).softmax(0)
    return shares


def finite(value: object) -> float:
    """The number that a user gave; NaN where it is none or not finite."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def losses_by_name(given: object, *, where: str) -> dict[str, float]:
    """Losses in nats per token by domain name, as the user gave them. Raises ConfigError."""
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{where} maps domains to losses", got=given, do=f"e.g. '{where}={{web: 2.9, code: 1.4}}'")
    losses = {str(name): finite(loss) for name, loss in given.items()}
    for name, loss in losses.items():
        if not loss >= 0:
            raise ConfigError(
                f"{where}.{name} is not a loss", got=given.get(name), allowed="nats per token, a number of 0 or more"
            )
    return losses


def by_domain(given: Mapping[str, V], domains: tuple[str, ...]) -> dict[str, V]:
    """What was given, under the names of the domains that the given names mean.

    Raises ConfigError for a name that means no domain or several, and for two names of one domain.
    """
    named: dict[str, str] = {}  # domain: the name that was given for it
    for name in given:
        domain = domain_named(name, domains)
        if domain in named:
            raise ConfigError("two values are for one domain", got=f"{named[domain]!r} and {name!r} for {domain!r}")
        named[domain] = name
    return {domain: given[name] for domain, name in named.items()}


def for_every_domain(given: Mapping[str, float], domains: tuple[str, ...], *, where: str) -> Tensor:
    """Values (K,) float64 in the order of `domains`. Raises ConfigError as `by_domain`, and where one lacks."""
    values = by_domain(given, domains)
    missing = [domain for domain in domains if domain not in values]
    if missing:
        raise ConfigError(
            f"{where} does not name {len(missing)} of {len(domains)} domains of the pool",
            got=", ".join(missing),
            do=f"give each a value, e.g. {where}.{missing[0]}=...",
        )
    return torch.tensor([values[domain] for domain in domains], dtype=torch.float64)  # (K,)


def domain_named(name: str, domains: tuple[str, ...]) -> str:
    """The domain that a name means: of that name, or the only one with the same letters and digits in any case."""
    if name in domains:
        return name
    alike = [domain for domain in domains if _letters(domain) == _letters(name)]
    if len(alike) == 1:
        return alike[0]
    if alike:
        raise ConfigError(f"{name!r} could mean several domains", got=", ".join(alike), do="type the name as it is")
    raise ConfigError(
        f"the settings name a domain that the pool does not have{closest(name, domains)}",
        got=name,
        allowed=", ".join(domains),
        do="correct the name or take it out",
    )


def _letters(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum()) or name
