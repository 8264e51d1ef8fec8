"""Top-k: the rows with the highest scores, or the lowest.

Paper: the selection stage of DELT, arXiv 2506.21545, K = floor(r N); the last step of most score-based selectors.
Letters: n rows to choose from, M kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Selection
from regimen.selection.common import AmountSelector

_TIES = 0.1  # part of the kept rows from which on ties are told


@dataclass(frozen=True, kw_only=True)
class TopK(AmountSelector):
    """Rows ranked by polarity times score; equal scores are ranked by id, the lower first.

    by: the score.
    ratio, count, token_ratio: how many rows are kept, one of the three: floor(ratio * n), a number of rows, or the best
        until they hold this part of the target tokens of all n.
    polarity: 1 keeps the highest scores, -1 the lowest.
    """

    by: Signal
    polarity: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.polarity not in (1, -1):
            raise ConfigError("polarity says which scores are kept", got=self.polarity, allowed="1 (highest), -1")

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Ids (M,) int64, best first. Raises ConfigError for a NaN score or an amount that cannot be kept."""
        ids, by_id = seen.ids.sort()  # (n,)
        best = (self.polarity * seen.scores(self.by)[by_id]).argsort(descending=True, stable=True)  # (n,)
        kept = self.kept(seen.tokens[by_id][best])
        return ids[best[:kept]]  # (M,)

    def notes(self, state: Any, decision: Selection, seen: Observation) -> list[str]:
        """A warning where ids decided instead of scores, since many rows have the score at the border."""
        scores = seen.values[self.by]  # (n,)
        kept = torch.isin(seen.ids, decision.ids)  # (n,)
        border = (self.polarity * scores[kept]).min()
        ties = self.polarity * scores == border
        cut = int((ties & kept).sum())
        if not bool((ties & ~kept).any()) or cut <= _TIES * len(decision.ids):
            return []
        return [
            f"{cut} of the {len(decision.ids)} kept rows have the same {type(self.by).__name__} as rows that were left "
            "out, and were kept for their lower ids: the scores hardly tell these rows apart"
        ]

    def row_scores(self, state: Any, seen: Observation) -> Tensor:
        """Polarity times score, (n,) float64."""
        return self.polarity * seen.values[self.by].double()  # (n,)
