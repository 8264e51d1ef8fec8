"""Random selection: a uniform subset of the rows, the baseline of every selector.

Letters: n rows to choose from, M kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regimen.core.strategy import Observation, Selector
from regimen.selection.common import amount, require_amount


@dataclass(frozen=True, kw_only=True)
class RandomSelection(Selector):
    """A subset drawn without replacement, a function of the generator and the set of ids alone.

    ratio, count: how many rows are kept, one of the two: floor(ratio * n), or a number of rows.
    """

    ratio: float | None = 0.5
    count: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_amount(self.ratio, self.count)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Ids (M,) int64. Raises ConfigError where no row would be kept or `count` is more than n."""
        kept = amount(len(seen.ids), self.ratio, self.count)
        order = torch.randperm(len(seen.ids), generator=seen.generator)  # (n,)
        return seen.ids.sort().values[order[:kept]]  # (M,)
