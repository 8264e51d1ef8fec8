"""RegMix (arXiv 2407.01492): published numbers of the linear and the tree law on the published tables."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.optimize import linprog

from regimen.core.errors import ConfigError
from regimen.mixing.laws.constraints import Constraints
from regimen.mixing.laws.propose import propose
from regimen.mixing.laws.regmix_lightgbm import RegMixLightGBM
from regimen.mixing.laws.regmix_linear import RegMixLinear, cheapest
from tests.reference.laws import mixtures_of, regmix, spearman, table_of

SIZES = ("1m", "60m", "1B")


def ranks(fitted) -> list[float]:
    tests = [regmix("test", size) for size in SIZES]
    return [spearman(fitted.predict(t.mixtures), t.only(["pile_cc"]).losses[:, 0]) for t in tests]


def test_golden_least_squares():
    fitted = RegMixLinear().fit(regmix("train", "1m"), "pile_cc")
    assert ranks(fitted) == pytest.approx([90.21, 89.33, 87.66], abs=0.1)
    test = regmix("test", "1m")
    error = fitted.predict(test.mixtures) - test.only(["pile_cc"]).losses[:, 0]
    assert np.abs(error).mean() == pytest.approx(0.1243, abs=1e-3)
    assert (error**2).mean() == pytest.approx(0.02345, abs=1e-4)


def test_golden_ridge():
    assert ranks(RegMixLinear(ridge=1.0).fit(regmix("train", "1m"), "pile_cc")) == pytest.approx(
        [90.07, 89.07, 94.13], abs=0.1
    )


def test_mean_rank_of_all_thirteen_targets():
    fitted, test = RegMixLinear().fit(regmix("train", "1m")), regmix("test", "1m")
    predicted = fitted.predict_targets(test.mixtures)
    assert np.mean([spearman(predicted[:, t], test.losses[:, t]) for t in range(13)]) == pytest.approx(83.11, abs=0.1)


def test_golden_trees_and_their_proposal():
    fitted = RegMixLightGBM().fit(regmix("train", "1m", natural=True), "pile_cc")
    assert ranks(fitted) == pytest.approx([99.04, 98.60, 96.17], abs=0.3)  # bands: 98.5, 98.0, 95.0
    mixture = dict(zip(fitted.domains, propose(fitted).tolist(), strict=True))
    assert sorted(mixture, key=lambda name: -mixture[name])[:2] == ["pile_cc", "ubuntu_irc"]
    assert 0.86 <= mixture["pile_cc"] <= 0.91
    assert 0.045 <= mixture["ubuntu_irc"] <= 0.075


def test_early_stopping_watches_training_rows_alone():
    train = regmix("train", "1m")
    fitted = RegMixLightGBM(early_stopping=0.1).fit(train, "pile_cc")
    assert 0 < fitted.parameters["pile_cc"]["trees"] < 1000
    assert ranks(fitted)[0] >= 98.5


def test_recovers_a_linear_law():
    r, slopes = mixtures_of(12, 4), np.array([[1.0, -2, 0.5, 0], [0.3, 0.3, -1, 2]])
    fitted = RegMixLinear().fit(table_of(r, r @ slopes.T + 3, natural=np.ones(4)))
    new = mixtures_of(20, 4, seed=3)
    assert np.allclose(fitted.predict_targets(new), new @ slopes.T + 3)
    told = fitted.parameters["a"]
    assert np.allclose(told["intercept"] + new @ list(told["slopes"].values()), fitted.predict_targets(new)[:, 0])
    assert fitted.optimum(Constraints(kl=1e6)).tolist() == pytest.approx([0.25] * 4, abs=1e-5)


def test_the_best_mixture_of_a_linear_law_is_that_of_a_linear_program():
    rng = np.random.default_rng(0)
    for _ in range(20):
        cost, lower, upper = rng.normal(size=5), rng.uniform(0, 0.1, 5), rng.uniform(0.3, 0.6, 5)
        found = cheapest(cost, lower, upper)
        best = linprog(cost, A_eq=np.ones((1, 5)), b_eq=[1], bounds=list(zip(lower, upper, strict=True)))
        assert cost @ found == pytest.approx(best.fun)
        assert found.sum() == pytest.approx(1)


def test_trees_are_the_same_each_time_and_learn_a_step():
    r = mixtures_of(120, 3)
    table = table_of(r, np.where(r[:, 0] > 0.4, 1.0, 2.0), natural=np.ones(3))
    law = RegMixLightGBM(rounds=300, learning_rate=0.05)
    one, two = law.fit(table), law.fit(table)
    assert np.array_equal(one.predict(r), two.predict(r))
    assert np.abs(one.predict(r) - table.losses[:, 0]).mean() < 0.05
    assert propose(one)[0] > 0.4


def test_bad_input():
    r = mixtures_of(30, 3)
    with pytest.raises(ConfigError, match=r"cannot be fitted to 30 rows(.|\n)*law.min_data_in_leaf=2"):
        RegMixLightGBM().fit(table_of(r, r + 1))
    assert RegMixLightGBM(min_data_in_leaf=2).fit(table_of(r, r + 1)).predict(r).std() > 0
    with pytest.raises(ConfigError, match=r"cannot be fitted to 1 row(.|\n)*law.ridge=1"):
        RegMixLinear().fit(table_of(r[:1], r[:1]))
    for law, wrong in (
        (RegMixLinear, {"ridge": -1.0}),
        (RegMixLightGBM, {"rounds": 0}),
        (RegMixLightGBM, {"early_stopping": 1.0}),
        (RegMixLightGBM, {"learning_rate": float("nan")}),
    ):
        with pytest.raises(ConfigError):
            law(**wrong)


def test_domains_come_in_any_order():
    train = regmix("train", "1m")
    turned = dataclasses.replace(train, domains=tuple(reversed(train.domains)), mixtures=train.mixtures[:, ::-1])
    assert turned.domains == train.domains
    assert np.array_equal(turned.mixtures, train.mixtures)
