"""BiMix (arXiv 2405.14908): goldens of the optimum, exact recovery of the law, and what a share of 0 does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from regimen.core.errors import ConfigError
from regimen.mixing.laws.bimix import BiMix, best_shares
from regimen.mixing.laws.constraints import Constraints, obeys
from regimen.mixing.laws.propose import propose
from tests.reference.laws import bounded, grid, mixtures_of, regmix, spearman, table_of

STEPS = np.array([10_000.0, 14_000, 20_000, 30_000])
ALPHA, B, BETA, C = (
    np.array(v) for v in ((0.1257, 0.0535, 0.2), (93.7, 65.3, 300), (0.618, 0.553, 0.7), (1, 3.2, 0.8))
)


def law(r: np.ndarray, s: float | np.ndarray) -> np.ndarray:
    return r**-ALPHA * (B * np.asarray(s)[..., None] ** -BETA + C)


def table_of_runs(runs: int = 6, **more):
    mixtures = np.repeat(mixtures_of(runs, 3, strength=3), len(STEPS), 0)
    steps = np.tile(STEPS, runs)
    names = tuple(f"run{i}" for i in range(runs) for _ in STEPS)
    return table_of(mixtures, law(mixtures, steps), steps=steps, runs=names, **more)


def test_golden_optimum_of_equal_alphas():
    shares, _ = best_shares([3, 2, 1], [0.1] * 3)
    assert shares.tolist() == pytest.approx([0.48542684, 0.33576918, 0.17880398], abs=1e-7)
    assert shares.tolist() == pytest.approx(
        (np.array([3, 2, 1]) ** (1 / 1.1) / (np.array([3, 2, 1]) ** (1 / 1.1)).sum()).tolist()
    )


def test_golden_optimum():
    shares, multiplier = best_shares([2.5, 3, 1.2], [0.05, 0.12, 0.2])
    assert shares.tolist() == pytest.approx([0.16575166, 0.47688498, 0.35736336], abs=1e-7)
    assert multiplier == pytest.approx(0.82504801, abs=1e-7)


def test_golden_optimum_of_the_five_domain_fit():
    """alpha, B, beta and C of five domains at 70M, rounded; the published fit is to a few more rows."""
    alpha = np.array([0.0532, 0.0122, 0.0312, 0.0782, 0.0363])
    b, beta = np.array([100.5, 65.0, 104, 60.1, 101]), np.array([0.559, 0.503, 0.568, 0.523, 0.551])
    a = b * 30_000**-beta + np.array([2.234, 3.225, 2.608, 1.162, 3.089])
    shares, _ = best_shares(a, alpha)
    assert shares.tolist() == pytest.approx([0.2674, 0.0853, 0.1764, 0.2314, 0.2395], abs=0.01)


def test_recovers_a_law_without_noise():
    fitted = BiMix(floor=1e-4).fit(table_of_runs())
    assert fitted.alpha.tolist() == pytest.approx(ALPHA.tolist(), rel=1e-4)
    assert fitted.B.tolist() == pytest.approx(B.tolist(), rel=1e-4)
    assert fitted.beta.tolist() == pytest.approx(BETA.tolist(), rel=1e-4)
    assert fitted.C.tolist() == pytest.approx(C.tolist(), rel=1e-4)
    new = mixtures_of(5, 3, seed=1)
    assert np.allclose(fitted.at(100_000).predict_targets(new), law(new, np.full(5, 1e5)), rtol=1e-4)
    assert fitted.step == 30_000


@given(st.floats(0.2, 5))
@settings(deadline=None)
def test_the_scale_of_the_share_factor_cannot_be_told(scale):
    """(A, B, C) -> (scale A, B / scale, C / scale) is the same table, so the same fit."""
    r = np.array([0.1, 0.2, 0.4, 0.7])
    mixtures = np.stack([r, 1 - r], 1)
    losses = scale * r**-0.1 * (3.0 / scale)
    fitted = BiMix().fit(table_of(mixtures, losses, targets=["a"]))
    assert (fitted.alpha[0], fitted.C[0]) == (pytest.approx(0.1), pytest.approx(3.0))


def test_one_step_gives_two_parameters_and_one_mixture_no_alpha():
    r = mixtures_of(5, 3)
    fitted = BiMix(floor=1e-6).fit(table_of(r, 2 * r**-0.1))
    assert fitted.alpha.tolist() == pytest.approx([0.1] * 3, rel=1e-6)
    assert fitted.scale().tolist() == pytest.approx([2.0] * 3, rel=1e-6)
    whole = table_of_runs()
    alone = BiMix().fit(whole.rows(np.arange(4)))
    assert alone.alpha.tolist() == [0, 0, 0] and "alpha" in alone.notes[0]
    own = whole.mixtures[0][None]
    assert np.allclose(alone.at(60_000).predict_targets(own), law(own, np.array([6e4])), rtol=1e-3)
    with pytest.raises(ConfigError, match="prefers no mixture"):
        alone.optimum(Constraints())


def test_two_steps_are_too_few_for_a_law_of_steps():
    whole = table_of_runs()
    assert whole.steps is not None
    fitted = BiMix(floor=1e-4).fit(whole.rows(whole.steps > 15_000))
    assert fitted.B.tolist() == [0, 0, 0] and "two steps" in fitted.notes[0]
    assert np.allclose(fitted.predict_targets(whole.last().mixtures), whole.last().losses, rtol=1e-6)


def test_the_optimum_moves_with_the_step():
    fitted = BiMix(floor=1e-4).fit(table_of_runs())
    early, late = fitted.at(10_000).optimum(Constraints()), fitted.at(1e6).optimum(Constraints())
    assert np.abs(early - late).max() > 1e-3


@given(st.lists(st.tuples(st.floats(0.1, 5), st.floats(0.01, 1)), min_size=2, max_size=6))
@settings(deadline=None)
def test_slsqp_agrees_with_bisection(terms):
    a, alpha = np.array(terms).T
    shares, _ = best_shares(a, alpha)
    k = len(a)
    found = minimize(
        lambda r: (a * r**-alpha).sum(), np.full(k, 1 / k),
        jac=lambda r: -a * alpha * r ** -(alpha + 1), method="SLSQP",
        bounds=[(1e-6, 1)] * k, constraints={"type": "eq", "fun": lambda r: r.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-15, "maxiter": 500},
    )  # fmt: skip
    assert (a * shares**-alpha).sum() <= found.fun + 1e-9
    assert np.abs(shares - found.x).max() < 1e-4


def test_brute_force_finds_nothing_better():
    a, alpha = np.array([2.5, 3, 1.2]), np.array([0.05, 0.12, 0.2])
    every = grid(3, 200) / 200
    every = every[(every > 0).all(1)]
    values = (a * every**-alpha).sum(1)
    shares, _ = best_shares(a, alpha)
    assert (a * shares**-alpha).sum() <= values.min()
    assert np.abs(every[values.argmin()] - shares).max() < 0.01


@given(bounded(4), st.lists(st.floats(0, 0.5), min_size=4, max_size=4), st.integers(0, 9))
@settings(deadline=None)
def test_bounds_hold_and_nothing_allowed_is_better(constraints, alphas, seed):
    alpha = np.array(alphas)
    names = list("abcd")
    lower, upper = constraints.bounds(names) if sum(constraints.bounds(names)[1]) >= 1 else (np.zeros(4), np.ones(4))
    a = np.array([3.0, 2.0, 1.0, 0.5])
    shares, _ = best_shares(a, alpha, lower=lower, upper=upper)
    assert obeys(shares, lower, upper)
    others = mixtures_of(200, 4, seed=seed)
    others = others[((others >= lower) & (others <= upper)).all(1)]
    value = (a * np.maximum(shares, 1e-300) ** -alpha).sum()
    assert len(others) == 0 or value <= (a * others**-alpha).sum(1).min() + 1e-9


def test_an_alpha_next_to_nothing_is_no_alpha_of_nothing():
    """Where caps leave all to a domain whose loss hardly falls with its share."""
    tiny = np.array([0, 0, 0, 2.3e-308])
    for third in (0.5, 0.0):
        upper = np.array([0, 0, third, 1])
        shares, _ = best_shares(np.array([3.0, 2, 1, 0.5]), tiny, lower=np.zeros(4), upper=upper)
        assert obeys(shares, np.zeros(4), upper)
    assert best_shares([1, 1], [0, 0], lower=np.array([0.4, 0.6]), upper=np.ones(2))[0].tolist() == [0.4, 0.6]


def test_without_alpha_a_domain_gets_its_least_share_and_what_nothing_else_can_take():
    assert best_shares([1, 1], [0.1, 0])[0].tolist() == pytest.approx([1, 0])
    capped = best_shares([1, 1], [0.1, 0], lower=np.zeros(2), upper=np.array([0.3, 1.0]))[0]
    assert capped.tolist() == pytest.approx([0.3, 0.7])


def test_weights_and_the_divergence_pull_the_optimum():
    whole = dataclasses.replace(table_of_runs(), natural=np.array([8.0, 1.0, 1.0]))
    even, mostly_c = (BiMix(floor=1e-4).fit(whole, t) for t in ("mean", {"a": 1, "b": 1, "c": 8}))
    assert mostly_c.optimum(Constraints())[2] > even.optimum(Constraints())[2]
    free, pulled, held = (even.optimum(Constraints(kl=kl)) for kl in (0.0, 0.1, 1e6))
    assert np.abs(held - [0.8, 0.1, 0.1]).max() < 1e-5
    assert free[0] < pulled[0] < held[0]


def test_shares_of_zero():
    r = np.array([0.0, 0.001, 0.1, 0.4, 1.0])
    mixtures = np.stack([r, 1 - r], 1)
    losses = 2 * np.maximum(r, 0.01) ** -0.1
    clipped = BiMix(floor=0.01).fit(table_of(mixtures, losses, targets=["a"]))
    assert clipped.alpha[0] == pytest.approx(0.1) and "2 of 5 shares" in clipped.notes[0]
    assert np.isfinite(clipped.predict(mixtures)).all()
    dropped = BiMix(zeros="drop", floor=0.01).fit(table_of(mixtures, losses, targets=["a"]))
    assert "1 of 5 rows" in dropped.notes[0]
    with pytest.raises(ConfigError, match=r"infinite at a share of 0(.|\n)*law.zeros=clip"):
        BiMix(zeros="refuse").fit(table_of(mixtures, losses, targets=["a"]))


def test_bad_input():
    r = mixtures_of(4, 3)
    with pytest.raises(ConfigError, match=r"training domains alone(.|\n)*mmlu"):
        BiMix().fit(table_of(r, r[:, :1] + 1, targets=["mmlu"]))
    with pytest.raises(ConfigError, match="cannot be fitted to 1 row"):
        BiMix().fit(table_of(r[:1], r[:1] + 1))
    with pytest.raises(ConfigError, match="losses above 0"):
        BiMix().fit(table_of(r, r - 1))
    for wrong in ({"zeros": "keep"}, {"floor": 0.0}, {"floor": "x"}):
        with pytest.raises(ConfigError):
            BiMix(**wrong)


def test_regmix_table():
    """The two-parameter law on Pile-CC: it ignores transfer, so ranks are poor at 1M."""
    fitted = BiMix().fit(regmix("train", "1m"), "pile_cc")
    found = []
    for size in ("1m", "60m", "1B"):
        test = regmix("test", size)
        found.append(spearman(fitted.predict(test.mixtures), test.only(["pile_cc"]).losses[:, 0]))
    assert found == pytest.approx([82.9, 82.8, 98.08], abs=0.05)
    assert propose(fitted)[list(fitted.domains).index("pile_cc")] == pytest.approx(1)
