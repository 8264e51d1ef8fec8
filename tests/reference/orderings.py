"""What every ordering must satisfy, and the list-building versions that the formulas are compared with."""

from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.core.strategy import Orderer
from tests.reference.observations import seeing

NAN = float("nan")
SCORES = st.lists(st.sampled_from([-2.0, -0.0, 0.0, 0.5, 1.0, 3.0, float("inf")]), max_size=40)


def served(orderer: Orderer, scores: list[float], *, ids: list[int] | None = None, seed: int = 0) -> list[int]:
    """Ids in the order of service."""
    seen = seeing(scores, ids=ids, seed=seed)
    return orderer.checked(orderer.decide(orderer.init(seen.index), seen), seen).tolist()


def ascending(scores: list[float], ids: list[int]) -> list[int]:
    """Ids by (score, id), the slow and certain way."""
    return [i for _, i in sorted(zip(scores, ids, strict=True))]


def folded(rows: list[int], folds: int) -> list[int]:
    """Folding by building its passes."""
    return [row for layer in range(folds) for row in rows[layer::folds]]


def zigzagged(rows: list[int], folds: int) -> list[int]:
    """Zigzag by building its passes."""
    return [row for layer in range(folds) for row in rows[layer::folds][:: -1 if layer % 2 else 1]]


def windowed(rows: list[int], sections: int, radius: float, order) -> list[int]:
    """Rows with `order` applied to the slice around each border."""
    n, out, end = len(rows), [], 0
    for j in range(1, sections):
        start, stop = (
            max(end, round(j * n / sections) - round(radius * n)),
            min(n, round(j * n / sections) + round(radius * n)),
        )
        out += rows[end:start] + order(rows[start:stop])
        end = max(start, stop)
    return out + rows[end:]


def check_ordering(orderer: Orderer, scores: list[float], seed: int) -> None:
    """A permutation, repeatable, the same whatever order the rows are given in."""
    ids = [3 * i + 1 for i in range(len(scores))]
    order = served(orderer, scores, ids=ids, seed=seed)
    assert sorted(order) == ids
    assert served(orderer, scores, ids=ids, seed=seed) == order
    mixed = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed)).tolist()
    assert served(orderer, [scores[i] for i in mixed], ids=[ids[i] for i in mixed], seed=seed) == order


def check_edges(orderer: Orderer, *, scored: bool = True) -> None:
    """Groups of no row and of one; a NaN score is refused."""
    assert served(orderer, []) == []
    assert served(orderer, [2.5]) == [0]
    assert orderer.needs() == ((orderer.by,) if scored else ())  # type: ignore[attr-defined]
    if scored:
        with pytest.raises(ConfigError, match="NaN for 1 of 2 rows"):
            served(orderer, [NAN, 1.0])
