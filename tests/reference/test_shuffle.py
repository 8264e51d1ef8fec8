"""Shuffle: a seeded permutation, uniform over all of them."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from regimen.ordering.shuffle import Shuffle
from tests.reference.orderings import SCORES, check_edges, check_ordering, served


@given(SCORES, st.integers(0, 5))
def test_properties(scores, seed):
    check_ordering(Shuffle(), scores, seed)


def test_edges():
    check_edges(Shuffle(), scored=False)


def test_seeds_differ():
    assert served(Shuffle(), [0.0] * 50, seed=1) != served(Shuffle(), [0.0] * 50, seed=2)


def test_all_permutations_are_equally_likely():
    counts = Counter(tuple(served(Shuffle(), [0.0] * 3, seed=seed)) for seed in range(1200))
    assert len(counts) == 6
    assert all(abs(count - 200) < 5 * 200**0.5 for count in counts.values())
