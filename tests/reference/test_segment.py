"""Segment (arXiv 2605.30334): which rows stand in which part, for all four choices of ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from regimen.ordering.segment import Segment
from tests.reference.observations import LOSS
from tests.reference.orderings import SCORES, check_edges, check_ordering, served

RISING = [float(i) for i in range(100)]
SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.29, 0.5])
ENDS = st.sampled_from(["low", "high"])


def parts(orderer: Segment, front: int, back: int, seed: int = 0) -> tuple[list[int], list[int], list[int]]:
    order = served(orderer, RISING, seed=seed)
    return order[:front], order[front : 100 - back], order[100 - back :]


def test_low_first_high_last():
    first, middle, last = parts(Segment(by=LOSS, first_share=0.1, last_share=0.29), 10, 29)
    assert set(first) == set(range(10))
    assert set(middle) == set(range(10, 71))
    assert set(last) == set(range(71, 100))
    for part in (first, middle, last):
        assert part != sorted(part)


def test_high_first_low_last():
    orderer = Segment(by=LOSS, first="high", first_share=0.2, last="low", last_share=0.1)
    first, _, last = parts(orderer, 20, 10)
    assert set(first) == set(range(80, 100))
    assert set(last) == set(range(10))


def test_the_same_end_twice_is_drawn_jointly():
    orderer = Segment(by=LOSS, first="low", first_share=0.2, last="low", last_share=0.1)
    fronts = [frozenset(parts(orderer, 20, 10, seed)[0]) for seed in range(5)]
    for seed in range(5):
        first, middle, last = parts(orderer, 20, 10, seed)
        assert set(first) | set(last) == set(range(30))
        assert set(middle) == set(range(30, 100))
    assert len(set(fronts)) == 5


@given(SCORES, SHARES, SHARES, ENDS, ENDS, st.integers(0, 5))
def test_properties(scores, first_share, last_share, first, last, seed):
    first_share, last_share = (share if int(share * len(scores)) else 0.0 for share in (first_share, last_share))
    orderer = Segment(by=LOSS, first=first, last=last, first_share=first_share, last_share=last_share)
    check_ordering(orderer, scores, seed)


def test_seeds_differ_and_ties_go_by_id():
    assert parts(Segment(by=LOSS), 10, 10, seed=1) != parts(Segment(by=LOSS), 10, 10, seed=2)
    assert set(served(Segment(by=LOSS, first_share=0.5, last_share=0.5), [0.0] * 10)[:5]) == set(range(5))


def test_edges():
    check_edges(Segment(by=LOSS, first_share=0, last_share=0))
