"""Groups of alike rows, and the rows that stand for a group. Every draw comes from the generator that is given.

Papers: k-means++, Arthur and Vassilvitskii 2007; Lloyd's rounds, 1982; spherical k-means, Dhillon and Modha 2001;
k-center by farthest-first traversal, Gonzalez 1985.
Differs from the papers: a centre that loses all its rows stays where it is, and its group is dropped in the end, so
that there can be fewer groups than were asked for, as where fewer rows are distinct.
Letters: n rows, d dimensions, C groups.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from regimen.signals.influence import group_means, unit

Method = Literal["kmeans", "spherical", "kcenter", "random"]
METHODS: tuple[Method, ...] = ("kmeans", "spherical", "kcenter", "random")
Standing = Literal["random", "nearest", "farthest", "mixed"]
STANDINGS: tuple[Standing, ...] = ("random", "nearest", "farthest", "mixed")

_PAIRS = 2**24  # of rows and centres that are compared at once
_ROWS = 4096


def cluster(points: Tensor, groups: int, *, method: Method, rounds: int, generator: torch.Generator) -> Tensor:
    """Group numbers (n,) int64 of points (n, d), 0 to C - 1, each of which some row has; C is at most `groups`.

    rounds: of k-means, at most. As many groups as rows, or more, leave each row alone.
    """
    n = len(points)
    if groups >= n:
        return torch.arange(n)
    if method == "random":
        label = torch.empty(n, dtype=torch.int64)
        label[torch.randperm(n, generator=generator)] = torch.arange(n) * groups // n  # sizes differ by 1 at most
        return label
    label, centres = far_apart(points, groups, farthest=method == "kcenter", generator=generator)
    if method != "kcenter":
        label = _rounds(points, points[centres], spherical=method == "spherical", rounds=rounds)
    found: Tensor = torch.unique(label, return_inverse=True)[1]
    return found


def representatives(
    points: Tensor, label: Tensor, count: int, *, standing: Standing, generator: torch.Generator
) -> Tensor:
    """Ascending positions of the rows that stand for their groups, `count` of each, or all of a smaller one.

    standing: at random, nearest to the mean of the group, farthest from it, or `mixed`: nearest, farthest and at random
    in turn. Ties go to the lower position.
    """
    means = group_means(points, label, int(label.max()) + 1)  # (C, d)
    places = torch.split(torch.arange(len(points)), _ROWS)
    distance = torch.cat([(points[part] - means[label[part]]).square().sum(1) for part in places])  # (n,)
    noise = torch.rand(len(points), generator=generator, dtype=torch.float64)  # (n,)
    keys = {"random": [noise], "nearest": [distance], "farthest": [-distance], "mixed": [distance, -distance, noise]}
    first = torch.bincount(label).cumsum(0).roll(1)  # (C,)
    first[0] = 0
    taken = torch.zeros(len(points), dtype=torch.bool)
    for turn in range(count):
        key = keys[standing][turn % len(keys[standing])].masked_fill(taken, torch.inf)  # (n,)
        order = key.argsort(stable=True)
        order = order[label[order].argsort(stable=True)]  # by group, then by key
        taken[order[first]] = True  # in a group without rows left, one that was taken before
    return taken.nonzero()[:, 0]


def far_apart(points: Tensor, groups: int, *, farthest: bool, generator: torch.Generator) -> tuple[Tensor, list[int]]:
    """Centres far from each other, at most `groups` distinct ones, and the nearest centre's number (n,) of each row.

    Each next centre is the row farthest from those before it, or drawn in proportion to its squared distance from them.
    """
    centres = [int(torch.randint(len(points), (1,), generator=generator))]
    label = torch.zeros(len(points), dtype=torch.int64)
    closest = _squares(points, points[centres[0]])  # (n,)
    while len(centres) < groups and float(closest.max()) > 0:
        if farthest:
            centres.append(int(closest.argmax()))
        else:
            sums = closest.cumsum(0)
            at = torch.rand(1, generator=generator, dtype=torch.float64) * sums[-1]
            # The last row with a distance bounds it, for the product may round up to the sum.
            centres.append(min(int(torch.searchsorted(sums, at, right=True)), int(closest.nonzero()[-1])))
        far = _squares(points, points[centres[-1]])
        label[far < closest] = len(centres) - 1
        closest = torch.minimum(closest, far)
    return label, centres


def _rounds(points: Tensor, centres: Tensor, *, spherical: bool, rounds: int) -> Tensor:
    """Numbers (n,) of the nearest centre after at most `rounds` moves of the centres (C, d)."""
    label = _nearest(points, centres, spherical=spherical)
    for _ in range(rounds):
        means = group_means(points, label, len(centres))  # (C, d)
        means = unit(means) if spherical else means
        empty = torch.bincount(label, minlength=len(centres)) == 0
        centres = torch.where(empty[:, None], centres, means)
        before, label = label, _nearest(points, centres, spherical=spherical)
        if torch.equal(before, label):
            break
    return label


def _nearest(points: Tensor, centres: Tensor, *, spherical: bool) -> Tensor:
    """Numbers (n,) of the centre (C, d) with the smallest distance, or with the largest inner product."""
    offset = 0 if spherical else centres.square().sum(1) / 2  # (C,)
    parts = torch.split(points, max(_PAIRS // len(centres), 1))
    return torch.cat([(part @ centres.T - offset).argmax(1) for part in parts])


def _squares(points: Tensor, centre: Tensor) -> Tensor:
    """Squared distances (n,) float64 of points (n, d) from one of them, exactly 0 for rows that equal it."""
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(points, centre[None], compute_mode=mode)[:, 0].double().square()
