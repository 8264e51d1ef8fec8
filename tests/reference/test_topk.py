"""Top-k (DELT, arXiv 2506.21545): K = floor(r N) best scores, ties by id."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.selection.topk import TopK
from tests.reference.observations import LOSS, seeing
from tests.reference.selections import check_selector, kept

SCORES = st.lists(st.sampled_from([-1.0, -0.0, 0.0, 0.5, 2.0, float("inf"), float("-inf")]), min_size=1, max_size=30)


@given(SCORES, st.sampled_from([1, -1]), st.data())
def test_equals_sorting_pairs(scores, polarity, data):
    count = data.draw(st.integers(1, len(scores)))
    selector = TopK(by=LOSS, ratio=None, count=count, polarity=polarity)
    best = sorted(range(len(scores)), key=lambda i: (-polarity * scores[i], i))
    assert kept(selector, scores) == sorted(best[:count])
    check_selector(selector, scores, count, seed=count)


def test_ties_keep_the_lower_ids():
    for polarity in (1, -1):
        assert kept(TopK(by=LOSS, ratio=0.5, polarity=polarity), [1.0] * 6) == [0, 1, 2]


@pytest.mark.parametrize(("ratio", "size"), [(0.5, 5), (0.29, 2), (1.0, 10), (0.1, 1)])
def test_floor_of_the_ratio(ratio, size):
    assert kept(TopK(by=LOSS, ratio=ratio), [float(i) for i in range(10)]) == list(range(10 - size, 10))


def test_amounts_that_cannot_be_kept():
    with pytest.raises(ConfigError, match=r"ratio=0\.09 of 10 rows"):
        kept(TopK(by=LOSS, ratio=0.09), [0.0] * 10)
    with pytest.raises(ConfigError, match="1 to 3"):
        kept(TopK(by=LOSS, ratio=None, count=4), [0.0] * 3)


def test_nan_is_refused():
    with pytest.raises(ConfigError, match=r"NaN for 1 of 3 rows.*\n.*ids \[1\]"):
        kept(TopK(by=LOSS), [1.0, float("nan"), 2.0])


def test_needs_its_signal():
    assert TopK(by=LOSS).needs() == (LOSS,)


def test_ties_at_the_border_are_told():
    """Where ids decided for more than a tenth of the kept rows; not for a single tie among many."""

    def told(scores, count, polarity=1):
        selector = TopK(by=LOSS, ratio=None, count=count, polarity=polarity)
        seen = seeing(scores)
        return selector.notes(None, selector.checked(selector.decide(None, seen), seen), seen)

    assert "2 of the 3 kept rows have the same Loss" in told([1.0, 0.0, 0.0, 0.0], 3)[0]
    assert told([1.0, 0.0, 0.0, 0.0], 1) == told([1.0, 0.0, 0.0, 0.0], 4) == []
    assert told([0.0, 1.0, 1.0, 1.0], 2, polarity=-1) and not told([0.0, 1.0, 1.0, 1.0], 1, polarity=-1)
    assert told([float(i) for i in range(20)] + [0.0], 20) == []
