"""Random selection: a uniform subset of the rows, the baseline of every selector.

Letters: n rows to choose from, M kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regimen.core.strategy import Observation
from regimen.selection.common import AmountSelector


@dataclass(frozen=True, kw_only=True)
class RandomSelection(AmountSelector):
    """A subset drawn without replacement, a function of the generator and the set of ids alone.

    ratio, count, token_ratio: how many rows are kept, one of the three: floor(ratio * n), a number of rows, or the
        first drawn until they hold this part of the target tokens of all n.
    """

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Ids (M,) int64. Raises ConfigError where no row would be kept or `count` is more than n."""
        ids, by_id = seen.ids.sort()  # (n,)
        order = torch.randperm(len(ids), generator=seen.generator)  # (n,)
        kept = self.kept(seen.tokens[by_id][order])
        return ids[order[:kept]]  # (M,)
