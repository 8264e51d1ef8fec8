"""Similarity of rows to the rows of the target set, from any signal of vectors: what most targeted selectors rank by.

Differs from the papers: nothing; cosines, RDS+, arXiv 2503.01807, and NEAR of DataFlex, whose L2 distances of unit
vectors rank alike.
Letters: n rows, M target rows, d dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Meter, Signal
from regimen.signals.influence import unit

_ROWS = 1024  # whose vectors are held at once


@dataclass(frozen=True, kw_only=True)
class Similarity(Signal):
    """Similarities (n, M) float32 of rows to the target rows, which are the columns.

    of: vectors of the rows. to: vectors of the target rows; null for the same signal.
    metric: `cosine`, which is 0 for a vector of zeros, or `inner` for the inner product.
    """

    of: Signal
    to: Signal | None = None
    metric: Literal["cosine", "inner"] = "cosine"

    def __post_init__(self) -> None:
        if self.metric not in ("cosine", "inner"):
            raise ConfigError("unknown similarity of vectors", got=f"metric={self.metric}", allowed="cosine, inner")
        # A row's similarities depend on no other row exactly if its vector does not.
        object.__setattr__(self, "by_row", self.of.by_row)

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        """(n, M). Raises ConfigError where the pool has no target set, or vectors differ in length.

        Where vectors depend on no other row, never more than some of them are held.
        """
        wanted = meter.once(self, partial(self._wanted, meter))  # (M, d)
        parts = torch.split(ids, _ROWS) if self.by_row else (ids,)
        return torch.cat([self._compared(self._scaled(self.of.measure(meter, part)), wanted) for part in parts])

    def passes(self) -> float:
        return self.of.passes()

    def models(self) -> tuple[str | None, ...]:
        used = (*self.of.models(), *(self.to.models() if self.to is not None else ()))
        return tuple(dict.fromkeys(used))

    def aims(self) -> bool:
        return True

    def _wanted(self, meter: Meter) -> Tensor:
        """What rows are compared with, (M, d)."""
        target = meter.target
        return self._scaled((self.to or self.of).measure(target, torch.arange(target.index.rows)))

    def _scaled(self, vectors: Tensor) -> Tensor:
        return unit(vectors.float()) if self.metric == "cosine" else vectors.float()

    def _compared(self, vectors: Tensor, wanted: Tensor) -> Tensor:
        if vectors.shape[1] != wanted.shape[1]:
            raise ConfigError(
                "vectors of rows and of target rows differ in length",
                got=f"{vectors.shape[1]} numbers of {self.of}, {wanted.shape[1]} of {self.to or self.of}",
                do="give `of` and `to` the same dimensions, or set to=null",
            )
        return vectors @ wanted.T  # (n, M)
