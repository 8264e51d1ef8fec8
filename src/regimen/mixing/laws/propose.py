"""The mixture that a fitted law proposes: exact where the law has an optimum, by simulation where it has none.

Letters: K domains, m simulated mixtures.
Source of the simulation: RegMix's notebook (Liu et al., arXiv 2407.01492): 100,000 draws of a Dirichlet around the
token shares, and the mean of the 128 with the lowest predicted loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from regimen.core.errors import ConfigError
from regimen.mixing.laws.constraints import Constraints, obeys
from regimen.mixing.laws.law import Fitted, positive, whole
from regimen.mixing.laws.sampler import dirichlet
from regimen.mixing.laws.simplex import kl, within
from regimen.mixing.laws.table import Array

__all__ = ["Constraints", "Simulation", "propose"]


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """draws of Dirichlet(strength * prior); the mean of the `top` best is proposed."""

    draws: int = 100_000
    top: int = 128
    strength: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        whole(self, draws=self.draws, top=self.top)
        whole(self, least=0, seed=self.seed)
        positive(self, strength=self.strength)
        if self.top > self.draws:
            raise ConfigError("more of the best than draws", got=f"top={self.top}", allowed=f"at most {self.draws}")


def propose(fitted: Fitted, constraints: Constraints | None = None, simulation: Simulation | None = None) -> Array:
    """The proposed mixture (K,), which sums to 1 and obeys the constraints.

    Raises ConfigError where no mixture obeys them.
    """
    constraints = constraints or Constraints()
    lower, upper = constraints.bounds(fitted.domains)
    exact = fitted.optimum(constraints)
    mixture = _simulated(fitted, constraints, simulation or Simulation()) if exact is None else exact
    assert obeys(mixture, lower, upper), "proposers keep to the bounds"
    return mixture


def _simulated(fitted: Fitted, constraints: Constraints, simulation: Simulation) -> Array:
    lower, upper, weight, natural = fitted.limits(constraints)
    k = len(fitted.domains)
    prior = np.full(k, 1 / k) if fitted.natural is None else fitted.natural  # (K,)
    rng = np.random.default_rng(simulation.seed)
    drawn = dirichlet(np.tile(simulation.strength * prior, (simulation.draws, 1)), rng)  # (m, K)
    outside = ((drawn < lower) | (drawn > upper)).any(1)
    if outside.any():
        drawn[outside] = within(drawn[outside], lower, upper)
    score = fitted.predict(drawn)  # (m,)
    if weight:
        score = score + weight * kl(drawn, natural)
    best = np.argsort(score, kind="stable")[: simulation.top]
    mean: Array = np.clip(drawn[best].mean(0), lower, upper)  # bounds are convex: only rounding is clipped
    return within(mean[None], lower, upper)[0] if abs(mean.sum() - 1) > 1e-12 else mean
