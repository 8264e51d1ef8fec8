"""Shapley values by removal: what a set of players is worth less, block by block, as it is taken apart at random.

Paper: SHED, arXiv 2405.00705. In a pass all players are in at first; random blocks of them leave one after
another until none is left, and each member of a block gets what the set lost with it. Values are means over passes.
Differs from the paper's code: a loss is divided by the size of its block, and passes are averaged, not summed, so that
values add up to what all players are worth above none, whatever the passes; a value of 0 is a value; the last block is
measured against the empty set.
A block's members share alike what it lost, so that with larger blocks values shrink towards their mean; ranks do not.
Letters: C players, P passes, G blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regimen.core.seeding import generator


def removals(players: int, *, blocks: int, number: int, seed: int) -> list[Tensor]:
    """The players, C/G or one more at a time, in the order in which pass `number` takes them away: G of (C/G,) int64.

    blocks: G, at most C.
    """
    order = torch.randperm(players, generator=generator(seed, "removal", number))
    return list(order.tensor_split(blocks))


def group_shapley(passes: Sequence[Sequence[Tensor]], worth: Tensor) -> Tensor:
    """Values (C,) float64. passes: P of G blocks; worth: (P, G + 1) of what is left after 0 to G blocks of a pass."""
    players = sum(len(block) for block in passes[0])
    values = torch.zeros(players, dtype=torch.float64)
    for blocks, left in zip(passes, worth.double(), strict=True):
        for block, lost in zip(blocks, left[:-1] - left[1:], strict=True):
            values[block] += lost / len(block) / len(passes)
    return values


def quality_ordered(values: Tensor, label: Tensor) -> Tensor:
    """Positions (n,) of the members of clusters, whole clusters in the order of their values (C,), highest first.

    label: (n,) cluster of each. Ties go to the lower cluster, members to the lower position. SHED's QOCS.
    """
    rank = torch.empty_like(label[: len(values)])
    rank[values.argsort(descending=True, stable=True)] = torch.arange(len(values))
    return rank[label].argsort(stable=True)


def quality_weighted(values: Tensor, label: Tensor, *, factor: float, rng: torch.Generator) -> Tensor:
    """Positions (n,) in the order drawn: a cluster from softmax(factor * values), then one of its members that is left.

    Clusters that are used up leave the draw. SHED's QWCS. factor: 0 draws clusters uniformly; a large one draws whole
    clusters in the order of their values.
    """
    mixed = torch.randperm(len(label), generator=rng)
    mixed = mixed[label[mixed].argsort(stable=True)]  # (n,) by cluster, at random within
    # Each cluster sends members at exponential intervals, the faster the likelier it is: who comes next is its draw.
    wait = torch.empty(len(label), dtype=torch.float64).exponential_(generator=rng)
    sizes = torch.bincount(label, minlength=len(values)).tolist()
    arrival = torch.cat([part.cumsum(0) for part in torch.split(wait, sizes)])  # (n,)
    return mixed[(arrival.log() - factor * values[label[mixed]]).argsort(stable=True)]
