"""RegMix's sampler of mixtures (arXiv 2407.01492, section 3): its invariants, and the published mixtures' sparsity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.mixing.laws.sampler import STRENGTHS, dirichlet, one_hot, sample_mixtures
from tests.reference.laws import PRIOR, regmix

PILE = np.array(list(PRIOR.values()))


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=9), st.integers(0, 10**6), st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_invariants(prior, seed, count):
    mixtures = sample_mixtures(np.array(prior), count, seed=seed)
    assert mixtures.shape == (count, len(prior))
    assert np.abs(mixtures.sum(1) - 1).max() < 1e-12
    units = mixtures / 2e-4
    assert np.abs(units - units.round()).max() < 1e-6
    assert len(np.unique(mixtures, axis=0)) == count
    share = np.array(prior) / sum(prior)
    # Rounding and dropping tiny shares may lift a share a little above its bound.
    assert (mixtures <= np.minimum(15 * share, 1) * 1.01 + 4e-4).all()
    assert np.array_equal(mixtures, sample_mixtures(np.array(prior), count, seed=seed))


def test_another_seed_is_another_set():
    assert not np.array_equal(sample_mixtures(PILE, 8, seed=0), sample_mixtures(PILE, 8, seed=1))


def test_centred_as_the_published_mixtures():
    """They are denser than draws with the published strengths, and have the same bound: see the module's docstring."""
    drawn, published = sample_mixtures(PILE, 512, seed=0), regmix("train", "1m").mixtures
    assert (published == 0).mean() == pytest.approx(0.45, abs=0.01)
    assert (drawn < 5e-4).mean() == pytest.approx(0.65, abs=0.03)
    dense = sample_mixtures(PILE, 512, seed=0, strengths=3 * STRENGTHS)
    assert (dense < 5e-4).mean() == pytest.approx((published < 5e-4).mean(), abs=0.08)
    assert np.abs(dense.mean(0) - published.mean(0)).max() < 0.08
    assert (published <= np.minimum(15 * PILE / PILE.sum(), 1) + 1e-3).all()


def test_a_domain_without_prior_stays_out():
    mixtures = sample_mixtures(np.array([1.0, 0.0, 3.0]), 20, seed=0)
    assert mixtures[:, 1].max() == 0


def test_strengths():
    assert len(STRENGTHS) == 15
    assert (STRENGTHS[0], STRENGTHS[-1]) == (pytest.approx(0.1), pytest.approx(5))
    assert np.ptp(np.diff(np.log(STRENGTHS))) < 1e-12


def test_dirichlet_has_its_mean_and_survives_tiny_shapes():
    rng = np.random.default_rng(0)
    drawn = dirichlet(np.tile([2.0, 1.0, 1.0], (20_000, 1)), rng)
    assert drawn.mean(0).tolist() == pytest.approx([0.5, 0.25, 0.25], abs=0.01)
    assert drawn.var(0)[0] == pytest.approx(0.5 * 0.5 / 5, rel=0.05)
    tiny = dirichlet(np.full((1000, 3), 1e-5), rng)
    assert np.isfinite(tiny).all() and np.abs(tiny.sum(1) - 1).max() < 1e-12
    assert tiny.argmax(1).mean() == pytest.approx(1, abs=0.15)


def test_one_hot():
    assert one_hot(3).tolist() == np.eye(3).tolist()
    smooth = one_hot(3, weight=0.5)
    assert smooth.sum(1).tolist() == [1, 1, 1]
    assert smooth[1].tolist() == [0.25, 0.5, 0.25]
    assert one_hot(1).tolist() == [[1.0]]
    for k, weight in ((3, 1 / 3), (3, 0.0), (3, 1.5), (0, 1.0)):
        with pytest.raises(ConfigError):
            one_hot(k, weight=weight)


def test_bad_input():
    with pytest.raises(ConfigError, match=r"fewer different mixtures than 9(.|\n)*raise usage"):
        sample_mixtures(np.array([1.0]), 9, seed=0)
    for prior, fields in (
        ([1.0, -1.0], {}), ([0.0, 0.0], {}), ([1.0, float("nan")], {}),
        ([1.0, 1.0], {"resolution": 0.0}), ([1.0, 1.0], {"usage": 0.0}), ([1.0, 1.0], {"exponent": -1.0}),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            sample_mixtures(np.array(prior), 2, seed=0, **fields)
