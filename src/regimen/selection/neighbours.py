"""Nearest candidates of each query: exactly, or in large pools by an inverted file of FAISS.

Source: the search of TSDS and of NEAR in DataFlex: IVF-Flat with sqrt(N) / 2 lists, of which 10 are probed.
Differs from the source: below 50,000 candidates the search is exact; a query whose probed lists hold too few
candidates is searched again with twice as many lists, until it has all its neighbours.
Letters: N candidates, M queries, R neighbours per query, d dimensions.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from regimen.core.errors import ConfigError

Search = Literal["auto", "exact", "faiss"]

_EXACT = 50_000  # candidates from which on `auto` asks FAISS
_PAIRS = 2**24  # that are compared at once
_PROBES = 10


class Neighbours(NamedTuple):
    """positions: (M, R) int64 of the nearest candidates, nearest first; distances: (M, R) float64, L2."""

    positions: Tensor
    distances: Tensor


def nearest(queries: Tensor, candidates: Tensor, count: int, *, search: Search = "auto") -> Neighbours:
    """The `count` candidates (N, d) nearest to each query (M, d).

    Raises ConfigError for more neighbours than candidates, or where FAISS is needed and missing.
    """
    if count > len(candidates):
        raise ConfigError("more neighbours than candidates", got=count, allowed=f"1 to {len(candidates)}")
    if by_faiss(len(candidates), search):
        return _approximately(queries, candidates, count)
    return _exactly(queries, candidates, count)


def by_faiss(rows: int, search: Search) -> bool:
    """Whether so many candidates are searched by FAISS."""
    return search == "faiss" or (search == "auto" and rows >= _EXACT)


def best_rows(similarity: Tensor, count: int) -> Tensor:
    """Positions (M, R) of the rows with the highest values in each column of (N, M), ties to the lower position."""
    columns = torch.split(similarity, max(_PAIRS // len(similarity), 1), dim=1)
    ranked = [part.argsort(dim=0, descending=True, stable=True)[:count].T for part in columns]  # (., R)
    return torch.cat(ranked)  # (M, R)


def _exactly(queries: Tensor, candidates: Tensor, count: int) -> Neighbours:
    """By all distances; ties go to the lower position, and equal rows are exactly as far."""
    points = candidates.double()  # (N, d)
    positions, distances = [], []
    for part in torch.split(queries.double(), max(_PAIRS // len(points), 1)):
        far = torch.cdist(part, points, compute_mode="donot_use_mm_for_euclid_dist")  # (m, N)
        order = far.argsort(dim=1, stable=True)[:, :count]  # (m, R)
        positions.append(order)
        distances.append(far.gather(1, order))
    return Neighbours(torch.cat(positions), torch.cat(distances))


def _approximately(queries: Tensor, candidates: Tensor, count: int) -> Neighbours:
    points, wanted = (t.float().contiguous().numpy() for t in (candidates, queries))  # (N, d), (M, d)
    index = _inverted_file(points)
    positions = torch.full((len(wanted), count), -1)  # (M, R)
    squares = torch.zeros(len(wanted), count)  # (M, R)
    short, probes = torch.arange(len(wanted)), _PROBES
    while len(short):  # ends: with every list probed, no query is short
        index.nprobe = probes
        found, places = index.search(wanted[short.numpy()], count)  # squared distances; -1 where lists held too few
        positions[short], squares[short] = torch.from_numpy(places), torch.from_numpy(found)
        short, probes = short[(positions[short] < 0).any(1)], 2 * probes
    return Neighbours(positions, squares.double().clamp(min=0).sqrt())


def _inverted_file(points: Any) -> Any:
    """FAISS's IVF-Flat index of points (N, d) float32."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            f"FAISS finds neighbours among {len(points)} rows, and it is not installed",
            do="pip install 'regimen[neighbours]', set search=exact to compare all pairs, or set candidates",
        ) from error
    n, d = points.shape
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(d), d, max(math.isqrt(n) // 2, 1))
    index.train(points)
    index.add(points)
    return index
