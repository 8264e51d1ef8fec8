"""Distilled influence: gradients of some random landmarks, from which a kernel ridge regression on embeddings tells the
influence of every other row.

Paper: Influence distillation, arXiv 2505.19051, and its code.
Differs from the paper: the second moments that scale gradients (`sketch.adam: scaled`) are not corrected for the bias
of young ones, which a cosine does not see; gradients are folded with random signs, not Hadamard-projected; embeddings
are pooled hidden states (`embedding`), not Jacobian-vector products of the first blocks. What is known of landmarks
exactly is smoothed like all else, so that no row is the better ranked for having been one.
Letters: n rows, L landmarks, M target rows, w width of an embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.measuring import Sketch
from regimen.core.seeding import generator
from regimen.core.signal import Meter, Signal
from regimen.signals.embedding import Embedding
from regimen.signals.influence import Influence

_ROWS = 1024  # whose embeddings are held at once
_STATES = Embedding()
_PLAIN = Sketch()
_EXPECTED = 0.1  # part of the rows that are landmarks, before their number is known


@dataclass(frozen=True, kw_only=True)
class DistilledInfluence(Influence):
    """Influence (n, M) float32 of rows on the target rows, which are the columns, regressed from landmarks.

    embedding: vectors that the kernel exp(-distance^2 / (2 bandwidth^2)) compares.
    landmarks: rows, drawn at random, whose gradients are taken; more than there are takes all.
    bandwidth: null for the median distance between landmarks.
    damping: what is added to the kernel's diagonal, in parts of its mean.
    seed: of the landmarks.
    """

    by_row: ClassVar[bool] = False
    sketch: Sketch = _PLAIN
    embedding: Signal = _STATES
    landmarks: int = 4096
    bandwidth: float | None = None
    damping: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.landmarks < 1:
            raise ConfigError("landmarks counts rows", got=self.landmarks, allowed="1 or more")
        if self.bandwidth is not None and not 0 < self.bandwidth < float("inf"):
            raise ConfigError("bandwidth is a distance", got=self.bandwidth, allowed="above 0, or null for the median")
        if not 0 < self.damping < float("inf"):
            raise ConfigError("damping is a part of the kernel's diagonal", got=self.damping, allowed="above 0")

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        """(n, M). Raises ConfigError where the pool has no target set."""
        rows = torch.unique(ids)  # (n,) in order, so that how they came does not matter
        draw = generator("landmarks", self.seed, rows.numpy().tobytes())
        known = rows[torch.randperm(len(rows), generator=draw)[: self.landmarks].sort().values]  # (L,)
        exact = super().measure(meter, known)  # (L, M)
        points = meter.values(self.embedding, known).double()  # (L, w)
        width = median_distance(points) if self.bandwidth is None else self.bandwidth
        weights = ridge(rbf(points, points, width=width), exact.double(), damping=self.damping)  # (L, M)
        parts = torch.split(ids, _ROWS) if self.embedding.by_row else (ids,)
        found = [
            rbf(meter.values(self.embedding, part).double(), points, width=width) @ weights for part in parts
        ]  # (., M)
        return torch.cat(found).float()

    def made_of(self) -> tuple[Signal, ...]:
        return (self.embedding,)

    def passes(self) -> float:
        """Those of the embedding, and of gradients of landmarks, taken for a tenth of the rows."""
        return self.embedding.passes() + _EXPECTED * super().passes()

    def backwards(self) -> float:
        return _EXPECTED * super().backwards()

    def models(self) -> tuple[str | None, ...]:
        return tuple(dict.fromkeys((*super().models(), *self.embedding.models())))


def rbf(a: Tensor, b: Tensor, *, width: float) -> Tensor:
    """The kernel exp(-distance^2 / (2 width^2)), (n, L), of points (n, w) and (L, w)."""
    return (-(torch.cdist(a, b) / width).square() / 2).exp()


def median_distance(points: Tensor) -> float:
    """The median distance between two points of (L, w) that differ; 1 where none do."""
    distances = torch.nn.functional.pdist(points)  # (L * (L-1) / 2,)
    apart = distances[distances > 0]
    return float(apart.median()) if len(apart) else 1.0


def ridge(kernel: Tensor, values: Tensor, *, damping: float) -> Tensor:
    """Weights (L, M) of kernel ridge regression: (K + damping * mean(diag K) I)^-1 values, (L, L) and (L, M)."""
    damped = kernel + damping * kernel.diagonal().mean() * torch.eye(len(kernel), dtype=kernel.dtype)  # (L, L)
    solved: Tensor = torch.linalg.solve(damped, values)
    return solved
