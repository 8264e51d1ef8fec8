"""Temperature: goldens for sizes 1000, 100 and 10, recomputed from p^(1/tau)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regimen.mixing.temperature import Temperature, tempered
from tests.reference.mixtures import shares_of
from tests.reference.observations import index_of

GOLDENS = {
    1.0: (0.900901, 0.090090, 0.009009),
    2.0: (0.706101, 0.223289, 0.070610),
    3.33: (0.570880, 0.285920, 0.143200),
}


@pytest.mark.parametrize(("tau", "expected"), GOLDENS.items())
def test_goldens(tau, expected):
    assert shares_of(Temperature(tau=tau), index_of([1000, 100, 10])).tolist() == pytest.approx(expected, abs=1e-6)


def test_limits():
    index = index_of([1000, 100, 10])
    assert shares_of(Temperature(tau=float("inf")), index).tolist() == pytest.approx([1 / 3] * 3)
    assert shares_of(Temperature(tau=100.0), index).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
    assert shares_of(Temperature(tau=1e-4), index).tolist() == pytest.approx([1, 0, 0])


def test_counts_tokens_not_rows():
    by_rows = shares_of(Temperature(tau=2.0), index_of([1000, 100, 10]))
    by_tokens = shares_of(Temperature(tau=2.0), index_of([10, 10, 10], [100, 10, 1]))
    assert torch.allclose(by_rows, by_tokens)


def test_a_domain_without_tokens_gets_nothing():
    for tau in (1.0, 3.0, float("inf")):
        shares = shares_of(Temperature(tau=tau), index_of([5, 0, 5]))
        assert shares.tolist() == pytest.approx([0.5, 0, 0.5])


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=8), st.floats(0.1, 50), st.randoms())
def test_permutation_equivariant_and_order_preserving(sizes, tau, random):
    natural = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    shares = tempered(natural, tau)
    assert float(shares.sum()) == pytest.approx(1)
    order = list(range(len(sizes)))
    random.shuffle(order)
    assert torch.allclose(tempered(natural[order], tau), shares[order])
    by_size = natural.argsort(stable=True)
    assert bool((shares[by_size].diff() >= -1e-12).all())
