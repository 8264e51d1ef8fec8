"""Folding (DELT, arXiv 2506.21545): goldens of FO-L and equality with building the passes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regimen.ordering.folding import Folding, fold
from tests.reference.observations import LOSS
from tests.reference.orderings import SCORES, ascending, check_edges, check_ordering, folded, served


@pytest.mark.parametrize(
    ("folds", "order"),
    [
        (3, [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]),
        (5, [0, 5, 10, 1, 6, 11, 2, 7, 3, 8, 4, 9]),
    ],
)
def test_published_example_of_12_rows(folds, order):
    assert served(Folding(by=LOSS, folds=folds), [float(i) for i in range(12)]) == order


def test_equals_the_passes_for_all_sizes_and_folds():
    for n in range(201):
        rank = torch.arange(n)
        for folds in range(1, n + 3):
            assert fold(rank, folds).argsort().tolist() == folded(list(range(n)), folds)


def test_positions_are_a_permutation_themselves():
    assert sorted(fold(torch.arange(17), 5).tolist()) == list(range(17))


@given(SCORES, st.integers(1, 45), st.integers(0, 5))
def test_properties(scores, folds, seed):
    check_ordering(Folding(by=LOSS, folds=min(folds, max(len(scores), 1))), scores, seed)


@given(SCORES)
def test_one_fold_or_as_many_as_rows_is_sorting(scores):
    expected = ascending(scores, list(range(len(scores))))
    for folds in (1, max(len(scores), 1)):
        assert served(Folding(by=LOSS, folds=folds), scores) == expected


def test_edges():
    check_edges(Folding(by=LOSS, folds=1))
