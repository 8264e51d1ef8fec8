"""Selection as transport from queries to candidates: TSDS, and unbalanced optimal transport.

Papers: TSDS, arXiv 2410.11303, KNN-Uniform (density 1) and KNN-KDE; unbalanced transport as a selection rule: the code
of arXiv 2602.14696 (entropic transport with KL marginals, arXiv 1607.05816).
Differs from the papers: TSDS's code stops at the last but one neighbour of a query; here the cap can grow until the
first query runs out of neighbours, which reaches the optimum of the linear programme. Breakpoints are sorted instead of
kept in a heap. Densities are summed over all candidates.
Letters: N candidates, M queries, R neighbours per query, d dimensions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 2**24  # pairs of rows that are compared at once


class Assignment(NamedTuple):
    """What TSDS decides. probability: (N,) float64, sum 1; neighbourhood: density-weighted neighbours per query, s."""

    probability: Tensor
    neighbourhood: float


def kernel_density(embeddings: Tensor, *, width: float) -> Tensor:
    """Densities (N,) float64, at least 1: sum over rows, itself included, of max(0, 1 - distance^2 / width^2).

    embeddings: (N, d). A group of m equal rows that has no other row within `width` has density m.
    """
    points = embeddings.double()
    parts = points.tensor_split(max(len(points) ** 2 // _CHUNK, 1))
    mode = "donot_use_mm_for_euclid_dist"  # exact for rows that are equal
    return torch.cat(
        [(1 - (torch.cdist(part, points, compute_mode=mode) / width) ** 2).clamp(min=0).sum(1) for part in parts]
    )  # (N,)


def tsds(neighbours: Tensor, distances: Tensor, density: Tensor, *, alpha: float, scale: float) -> Assignment:
    """The assignment of queries to their neighbours that trades distance against spread.

    Minimises alpha / scale * sum_qk g_qk d_qk + (1 - alpha) * M * max_qk rho_k g_qk over g >= 0, each row's sum 1 / M.
    neighbours: (M, R) int64 candidates, nearest first; distances: (M, R) ascending; density: (N,), 1 for KNN-Uniform.
    """
    share = 1 / density.double()[neighbours]  # (M, R)
    far, reach = distances.double(), share.cumsum(1)  # (M, R)
    # A cap of 1 / s lets a query fill neighbours up to reach = s. The slope of the cost rises where one is full.
    rises = ((far[:, 1:] - far[:, :-1]) * reach[:, :-1]).reshape(-1)  # (M * (R-1),)
    stops, order = reach[:, :-1].reshape(-1).sort(stable=True)  # (M * (R-1),)
    enough = (alpha / scale * rises[order].cumsum(0) >= (1 - alpha) * len(neighbours)).nonzero()  # (., 1)
    exhausted = float(reach[:, -1].min())
    s = min(float(stops[enough[0]]), exhausted) if len(enough) else exhausted
    filled = (reach / s).clamp(max=1)  # (M, R)
    given = filled.diff(dim=1, prepend=torch.zeros_like(filled[:, :1])) / len(neighbours)  # (M, R)
    probability = torch.zeros(len(density), dtype=torch.float64)  # (N,)
    return Assignment(probability.index_add_(0, neighbours.reshape(-1), given.reshape(-1)), s)


def unbalanced_transport(
    cost: Tensor, *, epsilon: float = 0.01, penalty: float = 1e-4, tolerance: float = 1e-12, rounds: int = 10_000
) -> Tensor:
    """Mass (N,) float64, sum 1, that each candidate gets from M queries of mass 1 / M each.

    Minimises sum P C + epsilon KL(P | uniform) + penalty KL(mass of candidates | uniform), P (N, M), the queries' mass
    fixed, by Sinkhorn's steps on logarithms. cost: (N, M), (1 - cosine) / 2 in the source.
    """
    n, m = cost.shape
    bend = penalty / (penalty + epsilon)
    scaled = -cost.double() / epsilon  # (N, M)
    rows, columns = torch.zeros(n, dtype=torch.float64), torch.zeros(m, dtype=torch.float64)  # potentials / epsilon
    for _ in range(rounds):
        columns = math.log(n) - (scaled + rows[:, None]).logsumexp(0)  # (M,)
        before, rows = rows, bend * (math.log(m) - (scaled + columns).logsumexp(1))  # (N,)
        if float((rows - before).abs().max()) < tolerance:
            break
    columns = math.log(n) - (scaled + rows[:, None]).logsumexp(0)  # (M,)
    return (scaled + rows[:, None] + columns).exp().sum(1) / (n * m)  # (N,)
