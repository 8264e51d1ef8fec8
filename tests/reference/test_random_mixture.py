"""Random mixture: on the simplex, by the generator alone, with the moments of a symmetric Dirichlet distribution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regimen.mixing.random_mixture import RandomMixture
from tests.reference.mixtures import shares_of
from tests.reference.observations import index_of


@given(st.sampled_from([1e-3, 0.1, 1.0, 50.0, 1e6]), st.integers(1, 12), st.integers(0, 1000))
def test_on_the_simplex_and_repeatable(concentration, k, seed):
    mixer = RandomMixture(concentration=concentration)
    shares = shares_of(mixer, index_of([2] * k), seed=seed)
    assert bool((shares >= 0).all())
    assert float(shares.sum()) == pytest.approx(1)
    assert torch.equal(shares, shares_of(mixer, index_of([9] * k), seed=seed))


def test_seeds_differ():
    assert not torch.equal(
        shares_of(RandomMixture(), index_of([1, 1]), seed=1), shares_of(RandomMixture(), index_of([1, 1]), seed=2)
    )


@pytest.mark.parametrize("concentration", [0.3, 1.0, 4.0])
def test_mean_and_variance(concentration):
    k, draws = 4, 2000
    mixer, index = RandomMixture(concentration=concentration), index_of([1] * 4)
    drawn = torch.stack([shares_of(mixer, index, seed=seed) for seed in range(draws)])  # (draws, K)
    variance = (1 / k) * (1 - 1 / k) / (k * concentration + 1)
    error = 5 * (variance / draws) ** 0.5
    assert float((drawn.mean(0) - 1 / k).abs().max()) < error
    assert drawn.var(0).tolist() == pytest.approx([variance] * k, rel=0.25)
