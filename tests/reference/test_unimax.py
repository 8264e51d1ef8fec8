"""UniMax (arXiv 2304.09151): goldens for sizes 1000, 100 and 10, the cap, and the shortfall."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regimen.core.draw import row_probabilities
from regimen.mixing.unimax import UniMax, share_out
from tests.reference.mixtures import shares_of
from tests.reference.observations import index_of, seeing

SIZES = torch.tensor([1000.0, 100.0, 10.0])


@pytest.mark.parametrize(
    ("budget", "epochs", "expected", "unspent"),
    [
        (1000, 2, (0.78, 0.20, 0.02), 0),
        (1000, 1, (0.89, 0.10, 0.01), 0),
        (3000, 2, (2000 / 2220, 200 / 2220, 20 / 2220), 780),
    ],
)
def test_goldens(budget, epochs, expected, unspent):
    shares, left = share_out(SIZES, budget, epochs=epochs)
    assert shares.tolist() == pytest.approx(expected, abs=1e-12)
    assert left == pytest.approx(unspent, abs=1e-9)


def test_rows_of_one_length_are_the_paper_s_algorithm():
    for length in (1, 7, 512):
        index = index_of([1000, 100, 10], length)
        assert shares_of(UniMax(epochs=2), index, horizon=1000).tolist() == pytest.approx([0.78, 0.20, 0.02])


sizes_of = st.lists(st.integers(1, 5000), min_size=1, max_size=8)


@given(sizes_of, st.integers(1, 20000), st.floats(0.25, 8), st.randoms())
def test_cap_equality_and_permutation(sizes, budget, epochs, random):
    tokens = torch.tensor(sizes, dtype=torch.float64)
    shares, unspent = share_out(tokens, budget, epochs=epochs)
    taken = shares * (budget - unspent)
    assert float(shares.sum()) == pytest.approx(1)
    assert bool((taken <= epochs * tokens * (1 + 1e-9)).all())
    free = taken < epochs * tokens * (1 - 1e-9)
    if bool(free.any()):
        assert unspent == pytest.approx(0, abs=1e-6)
        assert taken[free].tolist() == pytest.approx([float(taken.max())] * int(free.sum()))
    order = list(range(len(sizes)))
    random.shuffle(order)
    assert torch.allclose(share_out(tokens[order], budget, epochs=epochs)[0], shares[order])


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 400)), min_size=1, max_size=6), st.integers(1, 2000))
def test_ragged_rows_keep_to_the_cap_when_they_are_served(domains, horizon):
    index = index_of([rows for rows, _ in domains], [length for _, length in domains])
    shares, unspent = share_out(index.domain_tokens(), horizon, epochs=2.0, row_tokens=index.mean_tokens())
    served = row_probabilities(shares, index.mean_tokens()) * (horizon - unspent)  # (K,) rows
    assert bool((served <= 2.0 * index.sizes.double() * (1 + 1e-9) + 1e-9).all())


def test_a_domain_without_rows_gets_nothing():
    assert shares_of(UniMax(epochs=1), index_of([10, 0, 10]), horizon=10).tolist() == pytest.approx([0.5, 0, 0.5])


def test_the_shortfall_is_told():
    index = index_of([1000, 100, 10])
    short = seeing(index=index, horizon=3000)
    mixer = UniMax(epochs=2)
    (note,) = mixer.notes(mixer.init(index), mixer.decide(mixer.init(index), short), short)
    assert "780 of the 3000 rows" in note
    assert "2.7 times" in note
    enough = seeing(index=index, horizon=1000)
    assert mixer.notes(mixer.init(index), mixer.decide(mixer.init(index), enough), enough) == []
