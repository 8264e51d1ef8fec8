"""Olmix (arXiv 2602.12237): the log-linear law and its exact proposals, and the solver they rest on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from regimen.core.errors import ConfigError
from regimen.mixing.laws.constraints import Constraints, obeys
from regimen.mixing.laws.olmix import Olmix
from regimen.mixing.laws.propose import Simulation, propose
from regimen.mixing.laws.simplex import kl, minimise, within
from tests.reference.laws import bounded, mixtures_of, table_of

PRIOR = np.array([0.5, 0.2, 0.2, 0.1])
A = np.array([[-1.0, 0.3, -0.2, 0.1], [0.2, -0.8, 0.4, -0.1], [0.1, 0.2, -0.6, -0.3]])
R = mixtures_of(40, 4)
FITTED = Olmix(starts=4).fit(table_of(R, 0.6 + np.exp(R @ A.T), natural=PRIOR))


def values(x: np.ndarray, weight: float) -> np.ndarray:
    return np.exp(x @ A.T).mean(1) + weight * kl(x, PRIOR)


def test_recovers_the_law():
    assert np.abs(FITTED.g - A).max() < 1e-4
    assert np.abs(FITTED.c - 0.6).max() < 1e-4


def test_a_large_divergence_returns_the_prior():
    assert np.abs(propose(FITTED, Constraints(kl=1e7)) - PRIOR).max() < 1e-6


def test_without_divergence_one_task_takes_a_vertex_unless_capped():
    one = Olmix(starts=4).fit(table_of(R, 0.6 + np.exp(R @ A.T), natural=PRIOR), "a")
    assert propose(one, Constraints(kl=0.0)).tolist() == pytest.approx([1, 0, 0, 0], abs=1e-8)
    capped = propose(one, Constraints(kl=0.0, caps={"a": 0.6}))
    assert capped.tolist() == pytest.approx([0.6, 0, 0.4, 0], abs=1e-8)  # the next lowest exponent fills it


def test_the_default_divergence_is_the_papers():
    assert np.array_equal(propose(FITTED), propose(FITTED, Constraints(kl=0.05)))
    free = Olmix(starts=4).fit(table_of(R, 0.6 + np.exp(R @ A.T)))  # no natural shares to stay near
    assert np.allclose(propose(free), propose(FITTED, Constraints(kl=0.0)), atol=1e-6)
    with pytest.raises(ConfigError, match="needs the natural shares"):
        propose(free, Constraints(kl=0.05))


@pytest.mark.parametrize("weight", [0.01, 0.05, 1.0])
def test_interior_optimality_conditions(weight):
    x = propose(FITTED, Constraints(kl=weight))
    slope = A.T @ np.exp(A @ x) / 3 + weight * (np.log(x / PRIOR) + 1)
    assert x.min() > 1e-6
    assert np.ptp(slope) < 1e-4  # the fit's own error


@pytest.mark.parametrize("weight", [0.0, 0.05])
def test_slsqp_finds_nothing_better(weight):
    x = propose(FITTED, Constraints(kl=weight, max_share=0.45, min_share=0.05))
    found = minimize(
        lambda v: values(v[None], weight)[0], np.full(4, 0.25), method="SLSQP", bounds=[(0.05, 0.45)] * 4,
        constraints={"type": "eq", "fun": lambda v: v.sum() - 1}, options={"ftol": 1e-15},
    )  # fmt: skip
    assert values(x[None], weight)[0] == pytest.approx(found.fun, abs=1e-7)


def test_repetition_cap():
    """x <= rho * N / D: 4 * 1e6 / 2e7 = 0.2 for `a`."""
    pool = {"a": 1e6, "b": 1e9, "c": 1e9, "d": 1e9}
    x = propose(FITTED, Constraints(kl=0.0, rho=4, tokens=2e7, pool=pool))
    assert x[0] == pytest.approx(0.2)
    with pytest.raises(ConfigError, match="cannot sum to 1"):
        propose(FITTED, Constraints(rho=4, tokens=2e7, pool=dict.fromkeys("abcd", 1e6)))


@given(bounded(4), st.sampled_from([0.0, 0.02, 10.0]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_proposal_obeys_its_bounds(constraints, weight, simulated):
    try:
        lower, upper = constraints.bounds(FITTED.domains)
    except ConfigError:
        return
    x = propose(FITTED, constraints)
    assert obeys(x, lower, upper)
    drawn = within(mixtures_of(50, 4), lower, upper)
    assert all(obeys(row, lower, upper) for row in drawn)
    assert values(x[None], 0.05)[0] <= values(drawn, 0.05).min() + 1e-6


@given(st.integers(2, 12), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_the_solver_meets_the_optimality_conditions(k, seed):
    rng = np.random.default_rng(seed)
    root, linear = rng.normal(size=(k, k)), rng.normal(size=k)
    lower, upper = rng.uniform(0, 0.5 / k, k), rng.uniform(1.2 / k, 1, k)
    curvature = root @ root.T
    x = minimise(lambda v: (curvature @ v + linear, curvature), lower, upper)
    assert obeys(x, lower, upper)
    slope = curvature @ x + linear
    can_fall, can_rise = x > lower + 1e-7, x < upper - 1e-7
    if can_fall.any() and can_rise.any():  # moving share from one to the other must not help
        assert slope[can_fall].max() <= slope[can_rise].min() + 1e-5


def test_a_domain_without_natural_share_gets_none():
    table = table_of(R, 0.6 + np.exp(R @ A.T), natural=np.array([1.0, 1.0, 0.0, 1.0]))
    fitted = Olmix(starts=2).fit(table)
    assert propose(fitted)[2] == 0
    assert propose(fitted, Constraints(min_share=0.1))[2] == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="domains with a natural share cannot fill it"):
        propose(fitted, Constraints(max_share=0.3))


def test_simulation_comes_near_the_exact_optimum():
    class Simulated(type(FITTED)):  # the same law, as if it had no exact optimum
        def optimum(self, constraints):
            return None

    fields = {name: getattr(FITTED, name) for name in FITTED.__dataclass_fields__}
    near = propose(Simulated(**fields), Constraints(kl=0.05), Simulation(draws=50_000, strength=5.0))
    exact = propose(FITTED, Constraints(kl=0.05))
    assert values(near[None], 0.05)[0] <= values(exact[None], 0.05)[0] + 0.002
    held = propose(Simulated(**fields), Constraints(min_share=0.2, max_share=0.4), Simulation(draws=2000))
    assert obeys(held, np.full(4, 0.2), np.full(4, 0.4))


def test_bad_constraints():
    for wrong in (
        {"min_share": -0.1}, {"max_share": 1.5}, {"caps": {"a": 2}}, {"kl": -1.0}, {"kl": float("nan")},
        {"rho": 4.0}, {"rho": 4.0, "tokens": 1e9}, {"rho": 0.0, "tokens": 1.0, "pool": {}},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            Constraints(**wrong)
    for wrong, message in (
        ({"caps": {"z": 0.1}}, "a cap is for a domain"),
        ({"min_share": 0.3}, "cannot sum to 1"),
        ({"max_share": 0.2}, "cannot sum to 1"),
        ({"min_share": 0.2, "caps": {"a": 0.1}}, "obeys the constraints"),
        ({"rho": 1.0, "tokens": 1.0, "pool": {"a": 1.0}}, "how many tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            propose(FITTED, Constraints(**wrong))
    with pytest.raises(ConfigError):
        Simulation(draws=10, top=20)
    with pytest.raises(ConfigError):
        Olmix(kl=-0.1)
