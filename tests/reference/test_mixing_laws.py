"""Data Mixing Laws (arXiv 2403.16952): recovery, the gauge, the optimum, two domains, nested laws."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from regimen.core.errors import ConfigError
from regimen.mixing.laws.constraints import Constraints, obeys
from regimen.mixing.laws.mixing_laws import MixingLaws
from regimen.mixing.laws.nested import at_size, at_step, power_law
from regimen.mixing.laws.propose import propose
from regimen.mixing.laws.two_domains import TwoDomains, two_domains
from tests.reference.laws import bounded, grid, mixtures_of, regmix, spearman, table_of

# The published five-domain fit at 70M and 30,000 steps: floors, and exponents with rows as targets.
FLOORS = np.array([2.651, 3.534, 3.119, 1.608, 3.456])
EXPONENTS = np.array([
    [-12.23, 0.57, 0.57, 0.47, -0.55],
    [-0.77, -6.85, -1.38, -0.29, -1.59],
    [-0.39, -0.84, -38.97, -0.46, -0.90],
    [-0.33, 0.02, -0.54, -20.07, -0.50],
    [-0.76, -1.08, -2.48, -0.24, -5.04],
])  # fmt: skip
GROUPS = np.array([0.34066, 0.15201, 0.05015, 0.11690, 0.34028])


def law(r: np.ndarray, c: np.ndarray = FLOORS, g: np.ndarray = EXPONENTS) -> np.ndarray:
    return c + np.exp(r @ g.T)


def table_of_law(n: int = 40, **more):
    return table_of(mixtures_of(n, 5), law(mixtures_of(n, 5)), **more)


def test_recovers_the_published_five_domain_law():
    """-38.97 is a saturated exponent: what it predicts can be told, not the number."""
    fitted = MixingLaws().fit(table_of_law(), dict(zip("abcde", GROUPS, strict=True)))
    new = mixtures_of(50, 5, seed=1)
    assert np.abs(fitted.predict_targets(new) - law(new)).max() < 1e-5
    assert np.abs(fitted.c - FLOORS).max() < 2e-3
    assert np.abs(fitted.g - EXPONENTS).max() < 0.1
    assert fitted.huber.max() < 1e-12
    assert np.allclose(fitted.predict(new), law(new) @ GROUPS / GROUPS.sum(), atol=1e-5)


@given(st.floats(-3, 3))
@settings(max_examples=10, deadline=None)
def test_the_gauge_is_fixed(shift):
    """(t + d, log k - d) is the same function for every d, so the same g = log k + t is found."""
    r, t, log_k = mixtures_of(30, 3), np.array([-2.0, 0.3, -0.5]), 0.2
    losses = 1.5 + np.exp(log_k - shift) * np.exp(r @ (t + shift))
    fitted = MixingLaws(starts=6).fit(table_of(r, losses))
    assert fitted.g[0].tolist() == pytest.approx((t + log_k).tolist(), abs=1e-4)


def test_outliers_bend_a_small_delta_less():
    r = mixtures_of(60, 3)
    losses = law(r, np.array([2.0]), np.array([[-2.0, 0.3, -0.5]]))
    bad = losses.copy()
    bad[:3] += 2
    errors = [
        np.abs(MixingLaws(delta=delta).fit(table_of(r, bad)).predict(r) - losses[:, 0]).mean() for delta in (0.005, 1.0)
    ]
    assert errors[0] < errors[1] / 10


def test_the_same_fit_each_time_and_more_starts_are_no_worse():
    table = regmix("train", "1m").rows(np.arange(60))
    one, two, more = (MixingLaws(starts=n).fit(table, "pile_cc") for n in (4, 4, 16))
    assert np.array_equal(one.g, two.g)
    assert more.huber[0] <= one.huber[0] + 1e-12


def test_golden_rank_on_the_large_models():
    """The law ranks the 1B runs better than the trees do."""
    fitted = MixingLaws().fit(regmix("train", "1m"), "pile_cc")
    found = []
    for size in ("1m", "60m", "1B"):
        test = regmix("test", size)
        found.append(spearman(fitted.predict(test.mixtures), test.only(["pile_cc"]).losses[:, 0]))
    assert found[:2] == pytest.approx([96.25, 95.76], abs=0.3)
    assert found[2] >= 97.5


def test_brute_force_and_slsqp_find_nothing_better():
    fitted = MixingLaws().fit(table_of_law(), dict(zip("abcde", GROUPS, strict=True)))
    best = fitted.optimum(Constraints())
    every = grid(5, 16) / 16
    assert fitted.predict(best)[0] <= fitted.predict(every).min() + 1e-12
    found = minimize(
        lambda r: fitted.predict(r[None])[0], np.full(5, 0.2), method="SLSQP", bounds=[(0, 1)] * 5,
        constraints={"type": "eq", "fun": lambda r: r.sum() - 1}, options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert fitted.predict(best)[0] == pytest.approx(found.fun, abs=1e-7)
    assert np.abs(best - found.x).max() < 1e-3


@given(bounded(5), st.integers(0, 9), st.sampled_from([0.0, 0.01, 1.0]))
@settings(max_examples=40, deadline=None)
def test_proposals_obey_bounds_and_nothing_allowed_is_better(constraints, seed, kl):
    constraints = dataclasses.replace(constraints, kl=kl)
    fitted = MixingLaws(starts=3).fit(TABLE)
    try:
        lower, upper = constraints.bounds(fitted.domains)
    except ConfigError:
        return
    mixture = propose(fitted, constraints)
    assert obeys(mixture, lower, upper)
    others = mixtures_of(300, 5, seed=seed)
    others = others[((others >= lower) & (others <= upper)).all(1)]

    def value(r: np.ndarray) -> np.ndarray:
        return fitted.predict(r) + kl * (r * np.log(np.maximum(r, 1e-300) / fitted.natural)).sum(1)

    assert len(others) == 0 or value(mixture[None])[0] <= value(others).min() + 1e-9


TABLE = table_of_law(natural=np.array([5.0, 1.0, 1.0, 2.0, 1.0]))


def test_two_domains_recovers():
    r = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    for k, b in ((-1.6405, -0.6819), (-2.5189, -0.6257), (-1.6139, -0.7760), (-2.7239, -0.6131)):
        fitted = two_domains(r, 1.8 + np.exp(k * r + b))
        assert (fitted.k, fitted.b) == (pytest.approx(k, abs=0.03), pytest.approx(b, abs=0.03))
        assert fitted.c == pytest.approx(1.8, abs=0.01)
        assert fitted.correlation > 0.9999


def test_golden_critical_share():
    """Pythia-70M from the Pile to Python: the published share of the Pile that keeps its loss is 0.28623."""
    shares, losses = [0.125, 0.25, 0.375, 0.5], [2.92616592, 2.88049349, 2.85707243, 2.83875680]
    scanned = two_domains(shares, losses)
    assert scanned.critical_share(2.87336759) == pytest.approx(0.28680, abs=1e-4)
    assert (scanned.c, scanned.k, scanned.b) == (
        pytest.approx(2.81034, abs=1e-4), pytest.approx(-3.6973, abs=0.01), pytest.approx(-1.7038, abs=0.01)
    )  # fmt: skip
    assert two_domains(shares, losses, huber=0.02).critical_share(2.87336759) == pytest.approx(0.28623, abs=1e-4)
    assert scanned.predict(0.28515625) == pytest.approx(2.8720701, abs=0.003)  # what a run there reached


def test_no_critical_share():
    with pytest.raises(ConfigError, match="no share gives this loss"):
        TwoDomains(c=2.0, k=-1.0, b=0.0, correlation=1.0).critical_share(1.9)
    with pytest.raises(ConfigError, match="three different shares"):
        two_domains([0.1, 0.1, 0.2], [1.0, 1.0, 2.0])


def test_power_law_recovers_with_a_shared_exponent():
    x = np.array([1e4, 1.4e4, 2e4, 3e4])
    law = power_law(x, np.array([2.0, 3.0]) + np.array([50.0, 80.0]) * x[:, None] ** -0.45)
    assert law.alpha == pytest.approx(0.45, rel=1e-4)
    assert law.predict(1e5).tolist() == pytest.approx([2 + 50 * 1e5**-0.45, 3 + 80 * 1e5**-0.45], rel=1e-5)
    with pytest.raises(ConfigError, match="three points"):
        power_law(x[:2], np.ones((2, 1)))


def test_nested_laws_recover_the_table_at_the_target():
    """step law, then size law, then the mixing law: 30k steps at four sizes to 100k steps at 1B."""
    mixtures, steps, sizes = mixtures_of(8, 3), np.array([1e4, 2e4, 3e4]), np.array([19e6, 85e6, 201e6])
    base = law(mixtures, np.array([2.0]), np.array([[-2.0, 0.3, -0.5]]))[:, 0]

    def loss(i: int, step: float, size: float) -> float:
        return base[i] + 40 * step**-0.5 + 900 * size**-0.4

    rows = [(i, step, size) for i in range(8) for size in sizes for step in steps]
    table = table_of(
        mixtures[[i for i, _, _ in rows]], [loss(*row) for row in rows], targets=["a"],
        steps=[step for _, step, _ in rows], sizes=[size for _, _, size in rows], runs=[f"{i}-{n}" for i, _, n in rows],
    )  # fmt: skip
    late = at_step(table, 1e5)
    assert len(late) == 24
    assert late.losses[:, 0] == pytest.approx([loss(i, 1e5, n) for i in range(8) for n in sizes], rel=1e-5)
    large = at_size(late, 8e8)
    assert large.losses[:, 0] == pytest.approx([loss(i, 1e5, 8e8) for i in range(8)], rel=1e-4)
    assert MixingLaws().fit(large).predict(mixtures) == pytest.approx(large.losses[:, 0], abs=1e-4)
    for missing, extend in (("steps", at_step), ("sizes", at_size)):
        with pytest.raises(ConfigError, match="needs the"):
            extend(dataclasses.replace(table, **{missing: None}), 1e6)


def test_bad_input():
    r = mixtures_of(4, 5)
    with pytest.raises(ConfigError, match=r"cannot be fitted to 4 rows(.|\n)*6 rows or more(.|\n)*law=bimix"):
        MixingLaws().fit(table_of(r, r + 1))
    with pytest.raises(ConfigError, match="losses above 0"):
        MixingLaws().fit(table_of(mixtures_of(9, 3), mixtures_of(9, 3) - 1))
    assert "fragile" in MixingLaws(starts=2).fit(table_of(mixtures_of(7, 5), law(mixtures_of(7, 5)))).notes[0]
    for wrong in ({"delta": 0.0}, {"starts": 0}, {"starts": 1.5}, {"seed": -1}, {"delta": True}):
        with pytest.raises(ConfigError):
            MixingLaws(**wrong)
