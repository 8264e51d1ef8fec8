"""Random selection: the amount, the generator, and equal chances."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.selection.random import RandomSelection
from tests.reference.selections import check_selector, kept


@given(st.integers(1, 40), st.data(), st.integers(0, 5))
def test_properties(n, data, seed):
    count = data.draw(st.integers(1, n))
    check_selector(RandomSelection(ratio=None, count=count), [0.0] * n, count, seed)


@pytest.mark.parametrize(
    ("ratio", "n", "size"), [(0.5, 7, 3), (1.0, 7, 7), (0.29, 100, 29), (0.1, 30, 3), (0.57, 100, 57)]
)
def test_the_ratio_is_the_decimal_that_was_typed(ratio, n, size):
    assert len(kept(RandomSelection(ratio=ratio), [0.0] * n)) == size


def test_every_row_has_the_same_chance():
    selector, draws = RandomSelection(ratio=0.3), 2000
    hits = torch.zeros(10)
    for seed in range(draws):
        hits[kept(selector, [0.0] * 10, seed=seed)] += 1
    assert float((hits / draws - 0.3).abs().max()) < 5 * (0.3 * 0.7 / draws) ** 0.5


def test_amounts_that_cannot_be_kept():
    with pytest.raises(ConfigError, match="keeps no row"):
        kept(RandomSelection(ratio=0.1), [0.0] * 9)
    with pytest.raises(ConfigError, match="1 to 9"):
        kept(RandomSelection(ratio=None, count=10), [0.0] * 9)


def test_needs_no_signal():
    assert RandomSelection().needs() == ()
