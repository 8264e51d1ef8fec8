"""MixMin (arXiv 2502.10510): the mixture of source models that gives target rows the highest likelihood."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.mixing.laws.constraints import Constraints, obeys
from regimen.mixing.laws.mixmin import MixMin, objective
from tests.reference.laws import grid

NEVER = -1e4  # log-probability of what a source never says


def disjoint(counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows that only one source can say, `counts` of each, all of length 1."""
    rows = [i for i, count in enumerate(counts) for _ in range(count)]
    logs = np.full((len(rows), len(counts)), NEVER)
    logs[np.arange(len(rows)), rows] = np.log(0.5)
    return logs, np.ones(len(rows))


@given(st.lists(st.integers(1, 20), min_size=2, max_size=8))
@settings(deadline=None)
def test_disjoint_supports_give_back_the_mixture(counts):
    logs, lengths = disjoint(counts)
    fitted = MixMin(tolerance=1e-7).fit(logs, lengths, [f"s{i}" for i in range(len(counts))])
    assert fitted.mixture.tolist() == pytest.approx((np.array(counts) / sum(counts)).tolist(), abs=1e-5)


def test_the_true_mixture_is_a_fixed_point_of_any_step():
    logs, lengths = disjoint([5, 3, 2])
    _, slope = objective(np.array([0.5, 0.3, 0.2]), logs, lengths)
    assert slope.tolist() == pytest.approx([-1, -1, -1])  # w exp(-lr g) / Z stays


def test_identical_sources_stay_uniform():
    logs = np.repeat(np.log(np.random.default_rng(0).uniform(0.1, 1, (20, 1))), 3, 1)
    fitted = MixMin().fit(logs, np.full(20, 7), ["a", "b", "c"])
    assert fitted.mixture.tolist() == [1 / 3] * 3
    assert fitted.steps == 0


def test_slope_is_that_of_the_objective():
    rng = np.random.default_rng(0)
    logs, lengths, w = rng.uniform(-50, -1, (30, 4)), rng.integers(1, 20, 30), np.array([0.1, 0.2, 0.3, 0.4])
    value, slope = objective(w, logs, lengths)
    for i in range(4):
        moved = w + 1e-7 * np.eye(4)[i]
        assert (objective(moved, logs, lengths)[0] - value) / 1e-7 == pytest.approx(slope[i], rel=1e-4)


@pytest.mark.parametrize("scale", [1, 1000])
def test_the_gap_bounds_the_distance_to_the_best_of_a_grid(scale):
    """Rows of 1000 tokens need no other learning rate."""
    rng = np.random.default_rng(1)
    logs = rng.normal(-3, 1, (200, 3)).clip(max=-0.1)
    lengths = rng.integers(1, 9, 200) * scale
    fitted = MixMin().fit(logs, lengths, ["a", "b", "c"])
    every = grid(3, 50) / 50
    assert fitted.value <= fitted.predict(every).min() + 1e-12
    assert 0 <= fitted.gap <= 1e-6 * (1 / lengths).mean()
    assert fitted.predict(every[fitted.predict(every).argmin()])[0] - fitted.value < 0.02 / scale
    assert fitted.steps < 2000


def test_many_sources_do_not_overshoot():
    rng = np.random.default_rng(2)
    q = rng.dirichlet(np.ones(30))
    logs, lengths = disjoint((q * 2000).astype(int).clip(1).tolist())
    fitted = MixMin(lr=50.0).fit(logs, lengths, [f"s{i:02d}" for i in range(30)])
    assert np.abs(fitted.mixture - q).max() < 2e-3


def test_names_are_sorted_and_bounds_are_kept():
    logs, lengths = disjoint([6, 4])
    fitted = MixMin().fit(logs, lengths, ["web", "code"])
    assert fitted.domains == ("code", "web")
    assert fitted.mixture.tolist() == pytest.approx([0.4, 0.6], abs=1e-4)
    assert np.array_equal(fitted.optimum(Constraints()), fitted.mixture)
    held = fitted.optimum(Constraints(caps={"web": 0.5}))
    assert held.tolist() == pytest.approx([0.5, 0.5])
    logs, lengths = disjoint([60, 30, 10])
    held = MixMin().fit(logs, lengths, ["a", "b", "c"]).optimum(Constraints(caps={"a": 0.4}))
    assert held.tolist() == pytest.approx([0.4, 0.45, 0.15], abs=1e-5)  # the others keep their ratio
    assert obeys(held, np.zeros(3), np.array([0.4, 1, 1]))


def test_bad_input():
    logs, lengths = disjoint([2, 2])
    for wrong in ((logs + 1, lengths), (logs, lengths[:-1]), (logs, lengths * 0), (logs * np.nan, lengths)):
        with pytest.raises(ConfigError):
            MixMin().fit(*wrong, ["a", "b"])
    with pytest.raises(ConfigError):
        MixMin().fit(logs, lengths, ["a", "b", "c"])
    for fields in ({"lr": 0.0}, {"steps": 0}, {"tolerance": -1.0}):
        with pytest.raises(ConfigError):
            MixMin(**fields)
