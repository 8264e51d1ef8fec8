"""Influence of clusters: rows with alike embeddings share the influence of the few of them whose gradients are taken.

Source: cluster-LESS of DataFlex (OpenDCAI/DataFlex), from its rule and parameters as described; there is no paper.
LESS: arXiv 2402.04333.
Differs from the source: clusters are made anew at each decision, from the embeddings as they are then; representatives
are drawn by the seed and the ids, so that the same rows in the same clusters are represented by the same ones. `mixed`
takes the nearest, the farthest and one at random in turn. Nearest and farthest are told from the mean of a cluster.
With `run`, influence is summed over its checkpoints, as LESS does.
Letters: n rows, C clusters, M target rows, d numbers of a sketch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.seeding import generator
from regimen.core.signal import Meter, Signal
from regimen.signals.clustering import METHODS, STANDINGS, Method, Standing, cluster, representatives
from regimen.signals.embedding import Embedding
from regimen.signals.influence import Influence, unit

_ROWS = 1024  # whose sketches are held at once
_STATES = Embedding()


@dataclass(frozen=True, kw_only=True)
class ClusteredInfluence(Influence):
    """Influence (n, M) float32 of each row's cluster on the target rows, which are the columns.

    embedding: vectors that are clustered after they are given length 1.
    method: `kmeans`, `spherical`, `kcenter` or `random`. rounds: of k-means, at most.
    cluster_size: rows per cluster on average; 1 takes each row for itself.
    representatives: rows of a cluster whose gradients are taken; standing: which, `random`, `nearest`, `farthest` or
        `mixed`.
    seed: of the clusters and of random representatives.
    """

    by_row: ClassVar[bool] = False
    embedding: Signal = _STATES
    method: Method = "kmeans"
    rounds: int = 20
    cluster_size: int = 64
    representatives: int = 3
    standing: Standing = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise ConfigError("unknown way to cluster", got=f"method={self.method}", allowed=", ".join(METHODS))
        if self.standing not in STANDINGS:
            raise ConfigError(
                "unknown choice of representatives", got=f"standing={self.standing}", allowed=", ".join(STANDINGS)
            )
        if min(self.cluster_size, self.representatives, self.rounds) < 1:
            got = f"cluster_size={self.cluster_size}, representatives={self.representatives}, rounds={self.rounds}"
            raise ConfigError("the sizes of clusters and rounds are counts", got=got, allowed="1 or more")

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        """(n, M). Raises ConfigError where the pool has no target set."""
        ids, back = torch.unique(ids, return_inverse=True)  # (n,) in order, so that how they came does not matter
        label, chosen = self._clustered(meter, ids)  # (n,), (r,)
        groups = int(label.max()) + 1

        def represented(others: Tensor) -> Tensor:
            """(C, R): whether a cluster is represented by each of these rows."""
            found = (ids[chosen][:, None] == others).float()  # (r, R)
            return torch.zeros(groups, len(others)).index_add_(0, label[chosen], found) > 0

        total = torch.zeros(())
        for at, weight in self._visited(meter):
            along, sums = self.along(at), torch.zeros(groups, 0)
            for part in torch.split(chosen, _ROWS):
                updates = unit(at.sketches(ids[part], self.sketch))  # (r, d)
                sums = sums if sums.shape[1] else torch.zeros(groups, updates.shape[1])  # (C, d)
                sums.index_add_(0, label[part], updates)
            total = total + weight * along(unit(sums), represented)  # (C, M)
        return total[label][back]

    def made_of(self) -> tuple[Signal, ...]:
        return (self.embedding,)

    def passes(self) -> float:
        """Those of the embedding, and of gradients of the representatives."""
        return self.embedding.passes() + super().passes() * self._part

    def backwards(self) -> float:
        return super().backwards() * self._part

    @property
    def _part(self) -> float:
        """Of the rows that represent a cluster."""
        return min(self.representatives / self.cluster_size, 1.0)

    def models(self) -> tuple[str | None, ...]:
        return tuple(dict.fromkeys((*super().models(), *self.embedding.models())))

    def _clustered(self, meter: Meter, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Clusters (n,) of rows, and positions (r,) of their representatives."""
        draw = generator("clusters", self.seed, ids.numpy().tobytes())
        points = unit(meter.values(self.embedding, ids).float())  # (n, w)
        groups = -(-len(ids) // self.cluster_size)
        label = cluster(points, groups, method=self.method, rounds=self.rounds, generator=draw)
        return label, representatives(points, label, self.representatives, standing=self.standing, generator=draw)
