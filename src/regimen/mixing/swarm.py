"""Swarm: one mixture out of a set of mixtures, e.g. for the runs that a mixing law is fitted to. One run per member.

Papers: RegMix, arXiv 2407.01492, section 3 (`regmix`); CLIMB, arXiv 2504.13161 (`near`: RegMix in rounds).
Differs from the papers: `regmix` says what it changes in regimen.mixing.laws.sampler; CLIMB prunes what its predictor
ranks highest out of many candidates, `near` draws around one mixture that is given.
Letters: K domains, C members of the set, p the natural shares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.strategy import Empty, Mixer, Observation
from regimen.mixing.fixed import TOLERANCE, FixedMixture
from regimen.mixing.laws.sampler import dirichlet, sample_mixtures

SAMPLERS = ("regmix", "dirichlet", "one_hot", "leave_one_out", "near")
ONE_PER_DOMAIN = ("one_hot", "leave_one_out")


@dataclass(frozen=True, kw_only=True)
class SwarmMixture(Mixer):
    """Member `member` of a set that depends on the pool's natural shares p and on these fields, not on the run's seed.

    sampler: `regmix`: Dirichlet around sqrt(p) at fifteen strengths, sparse. `dirichlet`: Dirichlet(concentration * p),
        with mean p. `near`: Dirichlet(concentration * around). `one_hot`: member i draws only domain i.
        `leave_one_out`: member i has the natural shares without domain i.
    count: members of the set; `one_hot` and `leave_one_out` have one per domain whatever it is. Another count is
        another set.
    member: which one, from 0.
    seed: of the set.
    concentration: larger is nearer to the mean; a share s has variance s (1 - s) / (concentration + 1).
    around: share by domain name, for `near`; a domain that it does not name, or gives 0, gets 0.
    min_share: least share of every domain that has tokens, for laws that diverge at 0. The rest, 1 less K of these, is
        split as the sampler says.
    """

    sampler: Literal["regmix", "dirichlet", "one_hot", "leave_one_out", "near"] = "regmix"
    count: int = 512
    member: int = 0
    seed: int = 0
    concentration: float = 10.0
    around: Mapping[str, float] | None = None
    min_share: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler not in SAMPLERS:
            raise ConfigError("unknown sampler of mixtures", got=f"sampler={self.sampler}", allowed=", ".join(SAMPLERS))
        if self.count < 1:
            raise ConfigError("count is the number of members", got=self.count, allowed="1 or more")
        if self.member < 0 or (self.sampler not in ONE_PER_DOMAIN and self.member >= self.count):
            raise self._no_member(self.count)
        if self.seed < 0:
            raise ConfigError("seed is that of the set", got=self.seed, allowed="0 or more")
        if not 0 < self.concentration < math.inf:
            raise ConfigError("concentration is a Dirichlet's", got=self.concentration, allowed="above 0")
        if not 0 <= self.min_share < 1:
            raise ConfigError("min_share is a share", got=self.min_share, allowed="0 or more, at most 1 / domains")
        self._check_around()

    def _check_around(self) -> None:
        if (self.sampler == "near") != (self.around is not None):
            raise ConfigError(
                "`around` is the mixture that sampler=near draws around",
                got=f"sampler={self.sampler}, around={self.around}",
                do="set both, e.g. sampler: near, around: {web: 0.7, code: 0.3}, or neither",
            )
        if self.around is not None:
            given = FixedMixture(weights=self.around, normalise=True).weights  # refuses what is no share
            assert given is not None
            if abs(sum(given.values()) - 1) > TOLERANCE:
                raise ConfigError("`around` is no mixture", got=dict(given), allowed=f"sum 1 +- {TOLERANCE:g}")

    def init(self, index: PoolIndex) -> Empty:
        """No state; a member or a domain that is not there is refused here, before the first step."""
        self.shares(index)
        return Empty()

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Shares (K,) float64. Raises ConfigError as `shares` does."""
        return self.shares(seen.index)

    def shares(self, index: PoolIndex) -> Tensor:
        """Shares (K,) float64 that sum to 1; 0 for a domain without tokens.

        Raises:
            ConfigError: a member that the set lacks, one that is about an empty domain, a name in `around` that the
                pool lacks, a least share that is too large, a natural mixture that RegMix's sampler has no `count` of.
        """
        natural = index.natural()  # (K,)
        drawn = self._one_domain(index) if self.sampler in ONE_PER_DOMAIN else self._sampled(index)  # (K,)
        present = (natural > 0).double()  # (K,)
        spare = 1 - self.min_share * float(present.sum())
        if spare < 0:
            raise ConfigError(
                f"{int(present.sum())} domains cannot have this share each",
                got=f"min_share={self.min_share}",
                allowed=f"at most {1 / float(present.sum()):g}",
            )
        return self.min_share * present + spare * drawn

    def _sampled(self, index: PoolIndex) -> Tensor:
        natural = index.natural()  # (K,)
        if self.sampler == "regmix":
            members = sample_mixtures(natural.numpy(), self.count, seed=self.seed)  # (C, K)
        else:
            centre = natural if self.around is None else self._centre(index)  # (K,)
            alpha = np.tile(self.concentration * centre.numpy(), (self.count, 1))  # (C, K)
            members = dirichlet(alpha, np.random.default_rng(self.seed))
        return torch.from_numpy(members[self.member])

    def _centre(self, index: PoolIndex) -> Tensor:
        centre = FixedMixture(weights=self.around, normalise=True, others="zero").shares(index)  # (K,)
        empty = (index.natural() == 0) & (centre > 0)
        if bool(empty.any()):
            names = [index.domains[k] for k in empty.nonzero()[:, 0].tolist()]
            raise ConfigError("`around` gives shares to domains without tokens", got=names, do="take them out")
        return centre

    def _one_domain(self, index: PoolIndex) -> Tensor:
        natural = index.natural()  # (K,)
        if self.member >= len(natural):
            raise self._no_member(len(natural))
        if float(natural[self.member]) == 0 or (self.sampler == "leave_one_out" and float(natural[self.member]) == 1):
            raise ConfigError(
                f"member {self.member} is about domain {index.domains[self.member]!r}, which has no tokens, or all",
                got=f"sampler={self.sampler}, member={self.member}",
                do="leave this member out",
            )
        alone = torch.zeros_like(natural)
        alone[self.member] = 1
        if self.sampler == "one_hot":
            return alone
        others = natural * (1 - alone)  # (K,)
        return others / others.sum()

    def _no_member(self, members: int) -> ConfigError:
        return ConfigError(
            "the set has no such member",
            got=f"member={self.member}",
            allowed=f"0 to {members - 1}: sampler={self.sampler} has {members} members",
        )
