"""Random mixture: shares drawn from a symmetric Dirichlet distribution, a baseline for every search over mixtures.

Source: how proxy mixtures are commonly sampled. RegMix, arXiv 2407.01492, centres its Dirichlet on tempered natural
shares; this one is symmetric.
Letters: K domains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.strategy import Mixer, Observation


@dataclass(frozen=True, kw_only=True)
class RandomMixture(Mixer):
    """A new draw at each decision, by the run's seed and the step.

    concentration: of each domain, above 0. 1 draws uniformly from the simplex, less favours its corners, more its
        middle.
    """

    concentration: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.concentration < float("inf"):
            raise ConfigError(
                "concentration is that of a Dirichlet distribution", got=self.concentration, allowed="> 0"
            )

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Shares (K,) float64."""
        # NumPy's sampler stays on the simplex where a small concentration underflows every gamma variate to 0.
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=seen.generator)))
        return torch.from_numpy(rng.dirichlet([self.concentration] * len(seen.index.domains)))  # (K,)
