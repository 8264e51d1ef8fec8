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
from tests.reference.observations import LOSS, index_of, seeing
from tests.reference.orderings import served

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


@pytest.mark.parametrize(
    ("orderer", "rows", "words"),
    [
        (Folding(by=LOSS, folds=5), 4, "folds=5, 4 rows"),
        (Zigzag(by=LOSS, folds=5), 4, "folds=5, 4 rows"),
        (Stair(by=LOSS, sections=2, radius=0.2, folds=3), 6, "folds=3, 2 rows"),  # twice round(1.2)
        (Saw(by=LOSS, sections=3, radius=0.075, folds=2), 6, "folds=2, 0 rows"),
        (Segment(by=LOSS, first_share=0.1, last_share=0.5), 9, "first_share=0.1 of 9 rows"),
        (Segment(by=LOSS, first_share=0.0, last_share=0.1), 9, "last_share=0.1 of 9 rows"),
    ],
)
def test_too_few_rows_for_an_order_are_refused_with_the_way_out(orderer, rows, words):
    """Before anything is measured, for the pool, and at the decision, for the rows that are left."""
    for decide in (lambda: orderer.init(index_of([rows])), lambda: served(orderer, [1.0 * i for i in range(rows)])):
        with pytest.raises(ConfigError, match=words) as told:
            decide()
        assert "do:" in str(told.value)


@pytest.mark.parametrize(
    ("orderer", "rows"),
    [
        *((kind(by=LOSS, folds=5), 5) for kind in (Folding, Zigzag)),
        *((kind(by=LOSS, sections=2, radius=0.2, folds=2), 6) for kind in (Stair, Saw)),
        *((kind(by=LOSS, sections=1, folds=9), 3) for kind in (Stair, Saw)),  # no border
        *((kind(by=LOSS, radius=0.0, folds=9), 3) for kind in (Stair, Saw)),
        (Segment(by=LOSS, first_share=0.0, last_share=0.0), 3),
        (Segment(by=LOSS), 10),
    ],
)
def test_just_enough_rows_are_ordered(orderer, rows):
    assert sorted(served(orderer, [1.0 * i for i in range(rows)])) == list(range(rows))
    assert len(orderer.decide(None, seeing([]))) == 0, "nothing to order is not too little"
