"""Statistics against closed forms, against SciPy where it is installed, and against their own coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regimen.evaluation.statistics import (
    bootstrap_crossed,
    bootstrap_items,
    holm,
    incomplete_beta,
    iqm,
    mean_interval,
    paired_interval,
    sign_flip,
    t_cdf,
    t_quantile,
)


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 7, 9, 29, 100, 1e4])
def test_t_quantile_matches_scipy(dof):
    stats = pytest.importorskip("scipy.stats")
    for p in (0.001, 0.025, 0.3, 0.5, 0.9, 0.975, 0.9995):
        assert t_quantile(p, dof) == pytest.approx(stats.t.ppf(p, dof), rel=1e-9, abs=1e-9)
        assert t_cdf(stats.t.ppf(p, dof), dof) == pytest.approx(p, abs=1e-10)


def test_incomplete_beta_matches_scipy():
    special = pytest.importorskip("scipy.special")
    for a in (0.5, 1, 3, 50):
        for b in (0.5, 2, 17):
            for x in (0.0, 1e-6, 0.1, 0.5, 0.93, 1.0):
                assert incomplete_beta(a, b, x) == pytest.approx(special.betainc(a, b, x), abs=1e-10)


def test_t_quantile_of_textbooks():
    assert t_quantile(0.975, 2) == pytest.approx(4.302653, abs=1e-6)
    assert t_quantile(0.975, 1) == pytest.approx(12.706205, abs=1e-6)
    assert t_quantile(0.025, 9) == pytest.approx(-2.262157, abs=1e-6)


def test_mean_interval_by_hand():
    interval = mean_interval([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)
    assert (interval.mean, interval.n) == (2.0, 3)
    assert interval.low == pytest.approx(2 - half) and interval.high == pytest.approx(2 + half)
    assert not interval.excludes_zero
    assert interval.half_width == pytest.approx(half)


def test_one_value_has_no_interval():
    interval = mean_interval([1.5])
    assert interval.mean == 1.5 and math.isnan(interval.low) and not interval.bounded
    assert not interval.excludes_zero


def test_paired_interval_uses_the_differences():
    interval = paired_interval([1.0, 2.0, 3.1], [1.1, 2.1, 3.2])
    assert interval.mean == pytest.approx(-0.1) and interval.half_width == pytest.approx(0.0, abs=1e-10)
    assert interval.excludes_zero


@pytest.mark.parametrize(("seeds", "least"), [(1, 1.0), (3, 0.25), (5, 0.0625), (6, 0.03125), (10, 2 / 1024)])
def test_sign_flip_minimum_is_reached_when_all_signs_agree(seeds, least):
    result = sign_flip(-np.linspace(1, 2, seeds))
    assert result.exact and result.minimum == pytest.approx(least) and result.p == pytest.approx(least)


def test_sign_flip_by_hand():
    # |sum| of the eight flips of (1, 2, -4): 1 3 5 7, each twice; observed 1 -> all eight are at least as large.
    assert sign_flip([1.0, 2.0, -4.0]).p == 1.0
    # (1, 2, 4): observed 7, reached by two of eight.
    assert sign_flip([1.0, 2.0, 4.0]).p == 0.25
    # (-1, 2, 4): observed 5, reached by 5 and 7: four of eight.
    assert sign_flip([-1.0, 2.0, 4.0]).p == 0.5


def test_identical_methods():
    assert sign_flip(np.zeros(6)).p == 1.0
    interval = paired_interval([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert interval.low <= 0 <= interval.high and not interval.excludes_zero
    for boot in (bootstrap_items(np.zeros(50)), bootstrap_crossed(np.zeros((3, 50)))):
        assert boot.low <= 0 <= boot.high and boot.sd == 0


def test_sampled_sign_flip_is_close_to_the_exact_one():
    rng = np.random.default_rng(3)
    d = rng.normal(0.35, 1, size=12)
    exact = sign_flip(d)
    wide = sign_flip(np.concatenate([d, [0.0]]))  # a zero difference changes no sum, but takes the sampled way
    assert exact.exact and not wide.exact
    assert wide.p == pytest.approx(exact.p, abs=0.015)
    assert sign_flip(np.ones(20)).p > 0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_monotone_and_never_below_the_raw_p(ps):
    adjusted = holm(ps)
    assert all(raw <= new <= 1 for raw, new in zip(ps, adjusted, strict=True))
    ordered = sorted(range(len(ps)), key=lambda i: ps[i])
    assert all(adjusted[i] <= adjusted[j] for i, j in itertools.pairwise(ordered))


def test_iqm():
    assert iqm(np.arange(100)) == 49.5
    assert iqm([0.0, 1.0, 2.0, 100.0]) == 1.5
    assert iqm([3.0]) == 3.0


def test_bootstrap_sd_matches_the_standard_error():
    d = np.random.default_rng(0).normal(size=500)
    assert bootstrap_items(d).sd == pytest.approx(d.std(ddof=1) / math.sqrt(500), rel=0.05)


def test_bootstrap_coverage_under_the_null():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(500):
        boot = bootstrap_items(rng.normal(size=200), replications=600, seed=trial)
        hits += boot.low <= 0 <= boot.high
    assert 0.92 <= hits / 500 <= 0.97


def test_clusters_of_equal_items_count_once():
    by_document = np.random.default_rng(2).normal(size=200)
    items = np.repeat(by_document, 5)
    clustered = bootstrap_items(items, clusters=np.repeat(np.arange(200), 5))
    assert clustered.sd == pytest.approx(by_document.std(ddof=1) / math.sqrt(200), rel=0.05)
    assert bootstrap_items(items).sd < 0.6 * clustered.sd


def test_crossed_bootstrap_has_the_variance_between_seeds():
    # Items alike within a seed: the variance of the mean is the seeds' alone, sd / sqrt(S) with the S - 1 divisor.
    effect = np.array([0.1, -0.2, 0.4])
    boot = bootstrap_crossed(np.repeat(effect[:, None], 40, axis=1), replications=20_000)
    assert boot.mean == pytest.approx(0.1)
    assert boot.sd == pytest.approx(effect.std(ddof=1) / math.sqrt(3), rel=0.03)


def test_crossed_bootstrap_reduces_to_items_when_seeds_agree():
    d = np.random.default_rng(4).normal(size=300)
    assert bootstrap_crossed(np.tile(d, (4, 1))).sd == pytest.approx(d.std() / math.sqrt(300), rel=0.05)


def test_bootstraps_are_reproducible():
    d = np.random.default_rng(5).normal(size=30)
    assert bootstrap_items(d, seed=7) == bootstrap_items(d, seed=7) != bootstrap_items(d, seed=8)
