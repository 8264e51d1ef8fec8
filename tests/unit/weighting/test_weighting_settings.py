"""Settings of loss weighting that cannot work are refused when they are built, with what is allowed."""

from __future__ import annotations

import pytest

from regimen.core.errors import ConfigError
from regimen.weighting.loss_weighting import LossWeighting

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strategy": "upper"}, "linupper, quadratic, extremes, kl_dro, uniform"),
        ({"norm": "rank"}, "minmax, quantile, zscore"),
        ({"r_schedule": "exponential"}, "constant, step, linear, cosine"),
        ({"delta": 0}, "delta"),
        ({"delta": INF}, "delta"),
        ({"deviations": -1}, "deviations"),
        ({"r_warm": 0}, "r_warm"),
        ({"r_final": NAN}, "r_final"),
        ({"r_final": INF}, "r_final"),
        ({"r_warm": INF, "r_schedule": "linear"}, "infinity"),
        ({"r_warm": INF, "r_schedule": "cosine"}, "infinity"),
        ({"quantile": 0.5}, "quantile"),
        ({"quantile": -0.1}, "quantile"),
        ({"warm_steps": -1}, "warm_steps"),
        ({"warm_steps": NAN}, "warm_steps"),
        ({"guard": -1}, "guard"),
    ],
)
def test_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        LossWeighting(**settings)


def test_weighs_the_whole_batch():
    assert LossWeighting().scope == "batch"
