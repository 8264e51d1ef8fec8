"""Saw: sorted rows, with zigzag inside a window around each border between K sections.

Paper: SAW-K, the follow-up to DELT, arXiv 2605.30334.  Differs from the released code as `stair` does.
Letters: n rows of the group, K sections, L passes in a window, R its radius in rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regimen.ordering.stair import Stair
from regimen.ordering.zigzag import zigzag


@dataclass(frozen=True, kw_only=True)
class Saw(Stair):
    """Low to high, but the 2R rows around each of the K-1 borders are served in L passes up and down.

    by: the score to sort by.
    sections: K, at least 1 (1 is plain sorting).
    radius: R as a part of n; windows must not touch, so it stays below 1 / (2K).
    folds: L. With an even L, the default of the released code, a window ends with its lowest scores and the score jumps
        up after it; an odd L is continuous.
    """

    sections: int = 3
    radius: float = 0.075
    folds: int = 2

    def inside(self, rank: Tensor) -> Tensor:
        return zigzag(rank, self.folds)
