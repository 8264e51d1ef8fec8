"""Nearest candidates: exactly against a plain loop, by FAISS against the exact search, and columns' best rows."""

from __future__ import annotations

import builtins
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.core.seeding import generator
from regimen.selection import neighbours
from regimen.selection.neighbours import best_rows, nearest

GRID = st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=12)


def cloud(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=generator(seed))


@given(GRID, GRID, st.data())
def test_equals_sorting_pairs(queries, candidates, data):
    """Points of a grid: many equal distances, which go to the lower position."""
    k = data.draw(st.integers(1, len(candidates)))
    found = nearest(torch.tensor(queries).float(), torch.tensor(candidates).float(), k)
    for i, (x, y) in enumerate(queries):
        squares = [(x - a) ** 2 + (y - b) ** 2 for a, b in candidates]
        expected = sorted(range(len(candidates)), key=lambda j: (squares[j], j))[:k]
        assert found.positions[i].tolist() == expected
        assert found.distances[i].tolist() == pytest.approx([math.sqrt(squares[j]) for j in expected])


def test_parts_change_nothing(monkeypatch):
    queries, points = cloud(9, 4, 1), cloud(40, 4, 2)
    whole, columns = nearest(queries, points, 7), best_rows(points @ queries.T, 7)
    monkeypatch.setattr(neighbours, "_PAIRS", 90)  # two queries at once
    parts = nearest(queries, points, 7)
    assert torch.equal(parts.positions, whole.positions) and torch.equal(parts.distances, whole.distances)
    assert torch.equal(best_rows(points @ queries.T, 7), columns)


@given(st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), min_size=1, max_size=10), st.data())
def test_best_rows_of_each_column(rows, data):
    k = data.draw(st.integers(1, len(rows)))
    for column, found in enumerate(best_rows(torch.tensor(rows).float(), k).tolist()):
        assert found == sorted(range(len(rows)), key=lambda i: (-rows[i][column], i))[:k]


def test_faiss_with_every_list_probed_is_exact(monkeypatch):
    pytest.importorskip("faiss", reason="pip install 'regimen[neighbours]'")
    monkeypatch.setattr(neighbours, "_PROBES", 1000)
    queries, points = cloud(20, 8, 3), cloud(3000, 8, 4)
    found, exact = nearest(queries, points, 25, search="faiss"), nearest(queries, points, 25, search="exact")
    assert torch.equal(found.positions, exact.positions)
    assert torch.allclose(found.distances, exact.distances, atol=1e-5), "not squared"


def test_faiss_finds_most_neighbours_and_leaves_no_gap():
    """27 lists of about 111 rows: ten hold fewer than the 2,000 that are asked for, so that more are probed."""
    pytest.importorskip("faiss", reason="pip install 'regimen[neighbours]'")
    queries, points = cloud(12, 4, 5), cloud(3000, 4, 6)
    near, exact = (nearest(queries, points, 50, search=search).positions.tolist() for search in ("faiss", "exact"))
    hits = [len(set(a) & set(b)) for a, b in zip(near, exact, strict=True)]
    assert sum(hits) > 0.95 * 12 * 50
    many = nearest(queries, points, 2000, search="faiss")
    assert int(many.positions.min()) >= 0
    assert all(len(set(row)) == 2000 for row in many.positions.tolist())
    assert bool((many.distances.diff(dim=1) >= 0).all())
    far = (queries[:, None] - points[many.positions]).norm(dim=2).double()
    assert torch.allclose(many.distances, far, atol=1e-5)
    whole = nearest(queries, points, 3000, search="faiss")
    assert torch.equal(whole.positions.sort(1).values, torch.arange(3000).expand(12, -1))


def test_few_candidates_do_not_break_the_inverted_file():
    pytest.importorskip("faiss", reason="pip install 'regimen[neighbours]'")
    found = nearest(torch.zeros(2, 1), torch.tensor([[3.0], [1.0], [2.0]]), 2, search="faiss")
    assert found.positions.tolist() == [[1, 2]] * 2 and found.distances.tolist() == [[1.0, 2.0]] * 2


def test_auto_asks_faiss_in_large_pools_alone(monkeypatch):
    real = builtins.__import__

    def without_faiss(name, *args, **kwargs):
        if name == "faiss":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_faiss)
    monkeypatch.setattr(neighbours, "_EXACT", 100)
    queries = cloud(3, 2, 7)
    assert nearest(queries, cloud(99, 2, 8), 4).positions.shape == (3, 4)
    for search, rows in (("auto", 100), ("faiss", 10)):
        with pytest.raises(ConfigError, match=r"pip install 'regimen\[neighbours\]'"):
            nearest(queries, cloud(rows, 2, 8), 4, search=search)
    assert nearest(queries, cloud(100, 2, 8), 4, search="exact").positions.shape == (3, 4)


def test_more_neighbours_than_candidates():
    with pytest.raises(ConfigError, match="1 to 3"):
        nearest(torch.zeros(1, 2), torch.zeros(3, 2), 4)
