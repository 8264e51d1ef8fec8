"""Sorted: by (score, id), in both directions."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
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


@given(SCORES, st.sampled_from([0.0, 0.2, 0.29, 0.5, 0.999]), st.integers(0, 5))
def test_a_sorted_warm_up_is_a_random_part(scores, share, seed):
    orderer = Sorted(by=LOSS, share=share)
    check_ordering(orderer, scores, seed)
    first = int(Fraction(str(share)) * len(scores))
    warm = served(orderer, scores, seed=seed)[:first]
    assert warm == [i for i in ascending(scores, list(range(len(scores)))) if i in set(warm)]


def test_the_rest_of_a_warm_up_is_shuffled_and_the_part_is_drawn_from_all_scores():
    rising = [float(i) for i in range(400)]
    order = served(Sorted(by=LOSS, share=0.25, descending=True), rising)
    assert order[:100] == sorted(order[:100], reverse=True)
    for part in (order[:100], order[100:]):
        assert abs(sum(part) / len(part) - 199.5) < 4 * 115.5 / len(part) ** 0.5
    assert (
        order[100:] != sorted(order[100:]) and order[:100] != served(Sorted(by=LOSS, share=0.25), rising, seed=1)[:100]
    )


def test_edges():
    check_edges(UP)
    check_edges(DOWN)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="share"):
            Sorted(by=LOSS, share=share)
