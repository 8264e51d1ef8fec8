"""Zigzag (arXiv 2605.30334): golden of ZIG-L and equality with building the passes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from regimen.ordering.zigzag import Zigzag, zigzag
from tests.reference.observations import LOSS
from tests.reference.orderings import SCORES, check_edges, check_ordering, served, zigzagged


def test_published_example_of_12_rows():
    expected = [0, 3, 6, 9, 10, 7, 4, 1, 2, 5, 8, 11]
    assert served(Zigzag(by=LOSS, folds=3), [float(i) for i in range(12)]) == expected


def test_equals_the_passes_for_all_sizes_and_folds():
    for n in range(201):
        rank = torch.arange(n)
        for folds in range(1, n + 3):
            assert zigzag(rank, folds).argsort().tolist() == zigzagged(list(range(n)), folds)


def test_the_rank_never_jumps_by_more_than_the_folds():
    order = zigzag(torch.arange(100), 7).argsort()
    assert int(order.diff().abs().max()) <= 2 * 7 - 1


@given(SCORES, st.integers(1, 45), st.integers(0, 5))
def test_properties(scores, folds, seed):
    check_ordering(Zigzag(by=LOSS, folds=min(folds, max(len(scores), 1))), scores, seed)


def test_edges():
    check_edges(Zigzag(by=LOSS, folds=1))
