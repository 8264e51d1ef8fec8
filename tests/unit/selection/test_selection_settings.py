"""Settings of selectors that cannot work are refused when they are built, with what is allowed."""

from __future__ import annotations

import pytest

from regimen.core.errors import ConfigError
from regimen.selection.loss_selection import LossSelection
from regimen.selection.random import RandomSelection
from regimen.selection.topk import TopK
from regimen.signals.loss import Loss

NAN = float("nan")


@pytest.mark.parametrize("selector", [RandomSelection, TopK, LossSelection])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ratio": 0.5, "count": 3}, "set the other to null"),
        ({"ratio": 0.0}, "0 < ratio <= 1"),
        ({"ratio": 1.5}, "0 < ratio <= 1"),
        ({"ratio": NAN}, "0 < ratio <= 1"),
        ({"ratio": None, "count": 0}, "1, 2, 3"),
        ({"ratio": None, "count": 2.5}, "1, 2, 3"),
    ],
)
def test_amounts(selector, settings, words):
    by = {} if selector is RandomSelection else {"by": Loss()}
    with pytest.raises(ConfigError, match=words):
        selector(**by, **settings)


def test_an_amount_is_required_where_there_is_no_default():
    for build in (RandomSelection, TopK):
        by = {} if build is RandomSelection else {"by": Loss()}
        with pytest.raises(ConfigError, match="one of the two"):
            build(**by, ratio=None)
    assert LossSelection(by=Loss()).ratio is None


@pytest.mark.parametrize("polarity", [0, 2, 0.5])
def test_polarity(polarity):
    with pytest.raises(ConfigError, match="polarity"):
        TopK(by=Loss(), polarity=polarity)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"focus": "hard"}, "low, medium, high"),
        ({"focus_weight": 0}, "focus_weight"),
        ({"focus_weight": float("inf")}, "focus_weight"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": NAN}, "temperature"),
        ({"quantiles": [0.5]}, "quantiles"),
        ({"quantiles": [0.7, 0.3]}, "quantiles"),
        ({"quantiles": [0.3, 1.1]}, "quantiles"),
        ({"quantiles": [NAN, 0.5]}, "quantiles"),
    ],
)
def test_loss_selection(settings, words):
    with pytest.raises(ConfigError, match=words):
        LossSelection(by=Loss(), **settings)


def test_a_list_of_quantiles_leaves_the_strategy_hashable():
    assert hash(LossSelection(by=Loss(), quantiles=[0.33, 0.66])) == hash(LossSelection(by=Loss()))
