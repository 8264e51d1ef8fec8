"""Settings of orderings that cannot work are refused when they are built, with what is allowed."""

from __future__ import annotations

import pytest

from regimen.core.errors import ConfigError
from regimen.ordering.folding import Folding
from regimen.ordering.saw import Saw
from regimen.ordering.segment import Segment
from regimen.ordering.shuffle import Shuffle
from regimen.ordering.sorted import Sorted
from regimen.ordering.stair import Stair
from regimen.ordering.zigzag import Zigzag
from regimen.signals.loss import Loss

NAN = float("nan")


@pytest.mark.parametrize("orderer", [Shuffle, Sorted, Folding, Zigzag, Segment, Stair, Saw])
def test_every_ordering_checks_jitter_and_scope(orderer):
    by = {} if orderer is Shuffle else {"by": Loss()}
    with pytest.raises(ConfigError, match="jitter"):
        orderer(**by, jitter=-1)
    with pytest.raises(ConfigError, match="pool, domain"):
        orderer(**by, within="batch")


@pytest.mark.parametrize("orderer", [Folding, Zigzag, Stair, Saw])
@pytest.mark.parametrize("folds", [0, -3, 2.5])
def test_folds(orderer, folds):
    with pytest.raises(ConfigError, match="folds"):
        orderer(by=Loss(), folds=folds)


@pytest.mark.parametrize("orderer", [Stair, Saw])
@pytest.mark.parametrize(
    ("sections", "radius", "words"),
    [
        (0, 0.1, "sections"),
        (2.5, 0.1, "sections"),
        (2, 0.25, r"0 <= radius < 0\.25"),
        (3, 0.2, r"0 <= radius < 0\.1666"),
        (2, -0.1, "radius"),
        (2, NAN, "radius"),
    ],
)
def test_windows(orderer, sections, radius, words):
    with pytest.raises(ConfigError, match=words):
        orderer(by=Loss(), sections=sections, radius=radius)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"first": "easy"}, "first names an end"),
        ({"last": "hard"}, "last names an end"),
        ({"first_share": -0.1}, "at most 1"),
        ({"last_share": NAN}, "at most 1"),
        ({"first_share": 0.6, "last_share": 0.5}, "at most 1"),
    ],
)
def test_segment(settings, words):
    with pytest.raises(ConfigError, match=words):
        Segment(by=Loss(), **settings)
