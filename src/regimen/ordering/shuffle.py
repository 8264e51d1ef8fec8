"""Shuffle: rows in a seeded random order, the baseline of every ordering.

Letters: n rows of the group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regimen.core.ranks import stable_rank
from regimen.core.strategy import Observation, Orderer


@dataclass(frozen=True, kw_only=True)
class Shuffle(Orderer):
    """A uniformly random order, a function of the generator and the set of ids alone."""

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Sort keys (n,) float64 in [0, 1)."""
        noise = torch.rand(len(seen.ids), generator=seen.generator, dtype=torch.float64)  # (n,)
        return noise[stable_rank(seen.ids, ties=seen.ids)]  # (n,)
