"""Similarity of rows to the rows of the target set, from any signal of vectors: what most targeted selectors rank by.

Differs from the papers: nothing with `centre=false`; cosines, RDS+, arXiv 2503.01807, and NEAR of DataFlex, whose L2
distances of unit vectors rank alike. Hidden states of a language model lie in a narrow cone (arXiv 1909.00512), where
all are alike; less their mean, they are not.
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
    centre: whether the mean of the n rows is taken off all vectors first; they are then held at once.
    """

    of: Signal
    to: Signal | None = None
    metric: Literal["cosine", "inner"] = "cosine"
    centre: bool = False

    def __post_init__(self) -> None:
        if self.metric not in ("cosine", "inner"):
            raise ConfigError("unknown similarity of vectors", got=f"metric={self.metric}", allowed="cosine, inner")
        if self.centre and self.to is not None:
            raise ConfigError(
                "other vectors than those of the rows do not have their mean",
                got=f"centre=true, to={self.to}",
                do="set centre=false, or to=null",
            )
        # A row's similarities depend on no other row exactly if its vector does not, and no mean is taken off.
        object.__setattr__(self, "by_row", self.of.by_row and not self.centre)

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        """(n, M). Raises ConfigError where the pool has no target set, or vectors differ in length.

        Where vectors depend on no other row, and are not compact, never more than some of them are held.
        """
        wanted = meter.once(self, partial(self._wanted, meter))  # (M, d)
        if self.centre:
            vectors = meter.values(self.of, ids).float()  # (n, d)
            mean = vectors.mean(0)
            return self._compared(vectors - mean, self._scaled(wanted - mean))
        wanted, parts = self._scaled(wanted), torch.split(ids, _ROWS) if self.by_row else (ids,)
        return torch.cat([self._compared(meter.values(self.of, part).float(), wanted) for part in parts])

    def made_of(self) -> tuple[Signal, ...]:
        return (self.of,)

    def passes(self) -> float:
        return self.of.passes()

    def backwards(self) -> float:
        return self.of.backwards()

    def models(self) -> tuple[str | None, ...]:
        used = (*self.of.models(), *(self.to.models() if self.to is not None else ()))
        return tuple(dict.fromkeys(used))

    def aims(self) -> bool:
        return True

    def _wanted(self, meter: Meter) -> Tensor:
        """What rows are compared with, (M, d)."""
        target = meter.target
        return (self.to or self.of).measure(target, torch.arange(target.index.rows)).float()

    def _scaled(self, vectors: Tensor) -> Tensor:
        return unit(vectors) if self.metric == "cosine" else vectors

    def _compared(self, vectors: Tensor, wanted: Tensor) -> Tensor:
        """(n, M) of vectors (n, d) as measured, and wanted ones (M, d) that are scaled already."""
        if vectors.shape[1] != wanted.shape[1]:
            raise ConfigError(
                "vectors of rows and of target rows differ in length",
                got=f"{vectors.shape[1]} numbers of {self.of}, {wanted.shape[1]} of {self.to or self.of}",
                do="give `of` and `to` the same dimensions, or set to=null",
            )
        return self._scaled(vectors) @ wanted.T
