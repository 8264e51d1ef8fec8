"""Top-k: the rows with the highest scores, or the lowest.

Paper: the selection stage of DELT, arXiv 2506.21545, K = floor(r N); the last step of most score-based selectors.
Letters: n rows to choose from, M kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Selector
from regimen.selection.common import amount, require_amount


@dataclass(frozen=True, kw_only=True)
class TopK(Selector):
    """Rows ranked by polarity times score; equal scores are ranked by id, the lower first.

    by: the score.
    ratio, count: how many rows are kept, one of the two: floor(ratio * n), or a number of rows.
    polarity: 1 keeps the highest scores, -1 the lowest.
    """

    by: Signal
    ratio: float | None = 0.5
    count: int | None = None
    polarity: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_amount(self.ratio, self.count)
        if self.polarity not in (1, -1):
            raise ConfigError("polarity says which scores are kept", got=self.polarity, allowed="1 (highest), -1")

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Ids (M,) int64, best first. Raises ConfigError for a NaN score or an amount that cannot be kept."""
        kept = amount(len(seen.ids), self.ratio, self.count)
        ids, by_id = seen.ids.sort()  # (n,)
        best = (self.polarity * seen.scores(self.by)[by_id]).argsort(descending=True, stable=True)  # (n,)
        return ids[best[:kept]]  # (M,)
