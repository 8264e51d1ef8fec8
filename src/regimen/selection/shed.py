"""SHED: clusters of rows are chosen by the Shapley value of the row that stands for each, from many short runs.

Paper: SHED, arXiv 2405.00705: k-means on sentence embeddings, the row nearest each centre as its
proxy, Shapley values of the proxies from models trained on what is left as blocks of them are removed, and rows of the
best clusters (QOCS) or drawn by value (QWCS).
Differs from the paper: a model is worth minus its mean validation loss over domains, less noisy than accuracy on a
small set; each is trained for the same steps, whatever its rows; the last block is compared with the untrained model,
where the code compares it with an accuracy of 0; rows are known by their ids, so that doubles do not merge. The paper
removes 60 of 3000 proxies at a time, 20 times over, which takes 1000 runs.
Every run finds the same clusters: they are a function of the rows' vectors, `clusters`, `rounds` and `seed`.
Letters: n rows to choose from, C clusters, G blocks, P passes, M kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.seeding import generator
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Selector
from regimen.selection.common import AmountSelector
from regimen.selection.shapley import group_shapley, quality_ordered, quality_weighted, removals
from regimen.signals.clustering import cluster, representatives

Losses = Mapping[str, float]


class Clusters(NamedTuple):
    """ids: (n,) int64 ascending; label: (n,) cluster of each; proxies: (C,) ids of the rows that stand for them."""

    ids: Tensor
    label: Tensor
    proxies: Tensor


@dataclass(frozen=True, kw_only=True)
class Clustered(Selector):
    """The clusters of a pool, and the order in which their proxies are removed.

    by: a vector per row. clusters: how many at most. rounds: of k-means.
    blocks: G, how many are removed one after another; at least 2. seed: of clusters and removals, not the run's.
    """

    by: Signal
    clusters: int = 64
    rounds: int = 50
    blocks: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates is not None:
            raise ConfigError("clusters are of the whole pool", got=f"candidates={self.candidates}", allowed="null")
        if self.rounds < 1:
            raise ConfigError("rounds of k-means", got=self.rounds, allowed="1 or more")
        if not 2 <= self.blocks <= self.clusters:
            raise ConfigError(
                "blocks part the clusters",
                got=f"blocks={self.blocks}, clusters={self.clusters}",
                allowed="2 to clusters",
            )

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def clustered(self, seen: Observation) -> Clusters:
        """Raises ConfigError where distinct rows make fewer clusters than blocks."""
        ids, by_id = seen.ids.sort()  # (n,)
        points = seen.values[self.by][by_id].double()  # (n, d)
        rng = generator(self.seed, "clusters")
        label = cluster(points, self.clusters, method="kmeans", rounds=self.rounds, generator=rng)  # (n,)
        places = representatives(points, label, 1, standing="nearest", generator=rng)  # (C,)
        places = places[label[places].argsort()]  # in the order of clusters
        if len(places) < self.blocks:
            raise ConfigError(
                "the rows make fewer clusters than blocks", got=f"{len(places)} clusters", do="lower blocks"
            )
        return Clusters(ids, label, ids[places])

    def removed(self, clusters: Clusters, number: int) -> list[Tensor]:
        """The clusters that pass `number` removes, block by block."""
        return removals(len(clusters.proxies), blocks=self.blocks, number=number, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class ShedSubset(Clustered):
    """Keeps the proxies that one member of the set of runs is trained on.

    member: 0 has all; 1 to G - 1 what the first pass leaves after so many blocks, the next G - 1 the second, and so on.
    """

    member: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.member < 0:
            raise ConfigError("member is the number of a run of the set", got=self.member, allowed="0 or more")

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Ids (C or fewer,) int64."""
        found = self.clustered(seen)
        if self.member == 0:
            return found.proxies
        number, blocks = divmod(self.member - 1, self.blocks - 1)
        left = torch.cat(self.removed(found, number)[blocks + 1 :])
        return found.proxies[left]


@dataclass(frozen=True, kw_only=True)
class Shed(AmountSelector, Clustered):
    """Keeps rows by the values of their clusters.

    utilities: validation losses by domain of each run of the set, 1 + P (G - 1) of them, in the order of its members.
    empty: those of the untrained model.
    rule: `qocs` takes whole clusters, the best first; `qwcs` draws clusters from softmax(factor * value).
    factor: 0 or more. The values are differences of losses per row removed, so that one that matters is large.
    ratio, count, token_ratio: how many rows are kept, one of the three, as in top-k.
    """

    utilities: Sequence[Losses] | Losses | None = None
    empty: Losses | None = None
    rule: Literal["qocs", "qwcs"] = "qocs"
    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.utilities is None or self.empty is None:
            raise ConfigError(
                "SHED has no runs to value clusters by",
                got=f"utilities={self.utilities}, empty={self.empty}",
                do="leave both as method=shed has them, which trains the runs first",
            )
        if self.rule not in ("qocs", "qwcs"):
            raise ConfigError("unknown rule", got=f"rule={self.rule}", allowed="qocs, qwcs")
        if not 0 <= self.factor < math.inf:
            raise ConfigError("factor multiplies the values", got=self.factor, allowed="0 or more")
        if not isinstance(self.utilities, Mapping):  # one stands for all before the set has run
            self._passes()

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Ids (M,) int64, best first. Raises ConfigError for a number of runs, or losses, that give no values."""
        found = self.clustered(seen)
        values = self.values(found)  # (C,)
        if self.rule == "qocs":
            order = quality_ordered(values, found.label)  # (n,)
        else:
            order = quality_weighted(values, found.label, factor=self.factor, rng=seen.generator)  # (n,)
        by_id = seen.ids.argsort()
        kept = self.kept(seen.tokens[by_id][order])
        return found.ids[order[:kept]]  # (M,)

    def values(self, clusters: Clusters) -> Tensor:
        """Shapley values (C,) of the clusters, in nats of the mean validation loss."""
        passes, number = self._passes(), self.blocks - 1
        assert isinstance(self.utilities, Sequence) and self.empty is not None
        worth = torch.tensor([_worth(losses) for losses in self.utilities], dtype=torch.float64)  # (1 + P (G - 1),)
        whole, none = worth[0].expand(passes, 1), torch.full((passes, 1), _worth(self.empty), dtype=torch.float64)
        table = torch.cat([whole, worth[1:].view(passes, number), none], 1)  # (P, G + 1)
        return group_shapley([self.removed(clusters, p) for p in range(passes)], table)

    def _passes(self) -> int:
        """P. Raises ConfigError where the runs are no whole number of passes."""
        runs = len(self.utilities) if isinstance(self.utilities, Sequence) else 1
        passes, left = divmod(runs - 1, self.blocks - 1)
        if left or passes < 1:
            counts = ", ".join(str(1 + p * (self.blocks - 1)) for p in (1, 2, 3))
            raise ConfigError(
                "the runs of the set are no whole number of passes",
                got=f"{runs} runs, blocks={self.blocks}",
                allowed=f"{counts}, ... runs: one of all proxies, and blocks - 1 per pass",
                do="set stages.subsets.count to one of these",
            )
        return passes


def _worth(losses: Losses) -> float:
    """Minus the mean over domains. Raises ConfigError for a loss that is no number."""
    mean = sum(losses.values()) / max(len(losses), 1)
    if not losses or not math.isfinite(mean):
        raise ConfigError("a run of the set has no loss that is a number", got=dict(losses), do="lower optimizer.lr")
    return -mean
