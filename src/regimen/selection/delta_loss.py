"""Delta loss: rows whose loss has fallen most come first, then a window that slides to those that fell less.

Source: the delta-loss selector of DataFlex (OpenDCAI/DataFlex), from its rule and parameters as described; there is no
paper. The first decision keeps the loss of each row as its first loss and draws uniformly. Later ones sort rows by
first loss minus loss, highest first, and put a window of `window` of them at sigmoid(slope (p - 1/2)) of the way, p the
part of the run that is done. What has become worse is cut off the window. Rows are drawn without replacement.
Differs from the source: p is the step over all steps, where the source counts decisions and divides by one less, which
fails for a single one; a window that is cut away whole leaves a uniform draw, as there, but says so; with `candidates`,
a row's first loss is that of the first decision that saw it, and a row seen for the first time is outside the window.
Letters: N rows of the pool, n rows to choose from, m of them with a first loss, M kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Selection, Selector
from regimen.selection.common import amount, check_amount
from regimen.selection.rules import gumbel_top_k


class DeltaState(NamedTuple):
    """first: (N,) float64 loss of each row when it was first seen, NaN before."""

    first: Tensor


@dataclass(frozen=True, kw_only=True)
class DeltaLoss(Selector):
    """Rows inside the window have weight 1, others `outside`.

    by: the loss.
    window: the part of the rows that it holds. slope: of the sigmoid; 0 leaves the window in the middle.
    outside: at least 0 and at most 1, which is a uniform draw.
    ratio, count: how many rows are kept, at most one of the two. Without them, as many as will be served until the next
        decision. Never more than there are to choose from.
    """

    by: Signal
    window: float = 0.2
    slope: float = 10.0
    outside: float = 0.025
    ratio: float | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_amount(self.ratio, self.count)
        if not 0 < self.window <= 1:
            raise ConfigError("window is a part of the rows", got=self.window, allowed="0 < window <= 1")
        if not 0 <= self.slope < math.inf:
            raise ConfigError("slope is that of a sigmoid", got=self.slope, allowed="0 or more")
        if not 0 <= self.outside <= 1:
            raise ConfigError("outside is a weight next to 1", got=self.outside, allowed="0 <= outside <= 1")

    def init(self, index: PoolIndex) -> DeltaState:
        return DeltaState(torch.full((index.rows,), torch.nan, dtype=torch.float64))

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: DeltaState, seen: Observation) -> Tensor:
        """Ids (M,) int64. Raises ConfigError for a loss that is NaN or a ratio that keeps no row."""
        ids = seen.ids.sort().values  # (n,)
        inside = self._inside(state, seen)  # (n,)
        uniform = not bool(inside.any())
        weights = torch.where(inside | uniform, 1.0, self.outside).double()  # (n,)
        logits = weights.clamp(min=1e-300).log()  # (n,); a weight of 0 is drawn last, and still at random
        return ids[gumbel_top_k(logits, self._kept(seen), generator=seen.generator)]  # (M,)

    def advance(self, state: DeltaState, decision: Selection, seen: Observation) -> DeltaState:
        """First losses of the rows that had none."""
        first = state.first.clone()
        new = seen.ids[first[seen.ids].isnan()]  # (n - m,)
        first[new] = seen.scores(self.by)[torch.isin(seen.ids, new)]
        return DeltaState(first)

    def notes(self, state: DeltaState, decision: Selection, seen: Observation) -> list[str]:
        """Warnings where the draw was uniform although losses could be compared, and where every row was kept."""
        told = []
        if bool(state.first[seen.ids].isfinite().any()) and not bool(self._inside(state, seen).any()):
            told.append(
                f"delta_loss drew uniformly at step {seen.step}: too few losses have fallen to reach its window; raise "
                "strategies.delta_loss.window, or let it decide later"
            )
        if len(decision.ids) == len(seen.ids):
            told.append(
                f"delta_loss kept all {len(seen.ids)} rows it could choose from, so it selected nothing: "
                "decide more often (when.steps), or set ratio"
            )
        return told

    def _kept(self, seen: Observation) -> int:
        n = len(seen.ids)
        if self.ratio is not None:
            return amount(n, self.ratio, None)
        return min(n, self.count if self.count is not None else seen.horizon)

    def _inside(self, state: DeltaState, seen: Observation) -> Tensor:
        """(n,) bool in the order of ids: rows in the window."""
        ids, by_id = seen.ids.sort()
        falls = state.first[ids] - seen.scores(self.by)[by_id]  # (n,), NaN for a row seen for the first time
        known = falls.isfinite().nonzero()[:, 0]  # (m,)
        inside = torch.zeros(len(ids), dtype=torch.bool)
        inside[known] = in_window(falls[known], seen.progress, window=self.window, slope=self.slope)
        return inside


def in_window(falls: Tensor, progress: float, *, window: float, slope: float) -> Tensor:
    """(m,) bool: rows in the window, of their falls in loss (m,). Ties go to the lower position.

    Ranks from floor(sigmoid(slope (progress - 1/2)) (1 - window) m), floor(window m) of them but one at least, without
    negative falls.
    """
    m = len(falls)
    start = int((1 - window) * m / (1 + math.exp(-slope * (progress - 0.5))))
    end = min(start + max(int(window * m), 1), int((falls >= 0).sum()))
    inside = torch.zeros(m, dtype=torch.bool)
    inside[falls.argsort(descending=True, stable=True)[start : max(start, end)]] = True
    return inside
