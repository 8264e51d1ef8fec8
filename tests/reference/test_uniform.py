"""Uniform: 1/K, whatever the sizes and lengths."""

from __future__ import annotations

import pytest

from regimen.mixing.uniform import Uniform
from tests.reference.mixtures import shares_of
from tests.reference.observations import index_of


@pytest.mark.parametrize("rows", [[5], [1000, 1], [7, 3, 2, 2, 9, 1, 4]])
def test_every_domain_gets_the_same(rows):
    shares = shares_of(Uniform(), index_of(rows, list(range(1, len(rows) + 1))))
    assert shares.tolist() == pytest.approx([1 / len(rows)] * len(rows), abs=1e-15)
