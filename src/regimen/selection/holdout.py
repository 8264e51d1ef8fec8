"""Holdout: the rows that are set aside for another model, or all others. Which ones is a function of id and seed alone.

Letters: n rows to choose from, M kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.seeding import seed_of
from regimen.core.strategy import Observation, Selector


@dataclass(frozen=True, kw_only=True)
class Holdout(Selector):
    """Keeps the rows that are held out, about `fraction` of them, or the rest.

    fraction: above 0 and below 1. seed: of the division; not the run's, so that runs of any seed agree on it.
    part: `held_out` or `rest`.
    """

    fraction: float = 0.1
    seed: int = 0
    part: Literal["held_out", "rest"] = "held_out"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.fraction)
        if self.part not in ("held_out", "rest"):
            raise ConfigError("unknown part of the rows", got=f"part={self.part}", allowed="held_out, rest")

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Ids (M,) int64."""
        inside = held_out(seen.ids, fraction=self.fraction, seed=self.seed)  # (n,)
        return seen.ids[inside if self.part == "held_out" else ~inside]  # (M,)


def held_out(ids: Tensor, *, fraction: float, seed: int) -> Tensor:
    """(n,) bool: whether each of the rows `ids` (n,) is held out; each with probability `fraction`, independently."""
    x = ids.numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed_of("holdout", seed))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # the finaliser of SplitMix64
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    uniform = ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53  # (n,) in [0, 1)
    return torch.from_numpy(uniform < fraction)


def check_fraction(fraction: float) -> None:
    """Raises ConfigError for a part of the rows that leaves none on one side."""
    if not 0 < fraction < 1:
        raise ConfigError("fraction is the part of the rows that is held out", got=fraction, allowed="0 < fraction < 1")
