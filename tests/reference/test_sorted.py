"""Sorted: by (score, id), in both directions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from regimen.ordering.sorted import Sorted
from tests.reference.observations import LOSS
from tests.reference.orderings import SCORES, ascending, check_edges, check_ordering, served

UP, DOWN = Sorted(by=LOSS), Sorted(by=LOSS, descending=True)


@given(SCORES, st.integers(0, 5))
def test_properties(scores, seed):
    for orderer in (UP, DOWN):
        check_ordering(orderer, scores, seed)


@given(SCORES)
def test_equals_sorting_pairs(scores):
    ids = list(range(len(scores)))
    assert served(UP, scores) == ascending(scores, ids)
    assert served(DOWN, scores) == ascending([-s for s in scores], ids)


def test_ties_go_by_id_in_both_directions():
    assert served(UP, [1.0, 0.0, 1.0, 0.0]) == [1, 3, 0, 2]
    assert served(DOWN, [1.0, 0.0, 1.0, 0.0]) == [0, 2, 1, 3]


def test_edges():
    check_edges(UP)
    check_edges(DOWN)
