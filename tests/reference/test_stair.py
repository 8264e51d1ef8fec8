"""Stair (arXiv 2605.30334): golden of STR-K from the released code, and equality with re-ordering slices of a list."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from regimen.ordering.folding import fold
from regimen.ordering.stair import Stair, in_windows
from tests.reference.observations import LOSS
from tests.reference.orderings import SCORES, check_edges, check_ordering, folded, served, windowed


def test_released_example_of_20_rows():
    expected = [0, 1, 2, 3, 4, 5, 6, 9, 12, 7, 10, 13, 8, 11, 14, 15, 16, 17, 18, 19]
    assert served(Stair(by=LOSS, sections=2, radius=0.225, folds=3), [float(i) for i in range(20)]) == expected
    assert Stair(by=LOSS) == Stair(by=LOSS, sections=2, radius=0.225, folds=3)


def test_equals_slices_of_a_list():
    for n in range(201):
        for sections, radius in ((1, 0.3), (2, 0.225), (3, 0.075), (3, 0.16), (4, 0.124), (7, 0.07), (2, 0.0)):
            for folds in (1, 2, 3, 5):
                expected = windowed(list(range(n)), sections, radius, lambda rows, folds=folds: folded(rows, folds))
                rank = torch.arange(n)
                position = in_windows(rank, sections, radius, lambda rank, folds=folds: fold(rank, folds))
                assert position.argsort().tolist() == expected


@given(SCORES, st.integers(1, 6), st.floats(0, 0.999), st.integers(1, 6), st.integers(0, 5))
def test_properties(scores, sections, part, folds, seed):
    radius = part / (2 * sections)
    inside = 2 * round(radius * len(scores))
    radius, folds = (radius, min(folds, inside)) if inside else (0.0, folds)
    check_ordering(Stair(by=LOSS, sections=sections, radius=radius, folds=folds), scores, seed)


def test_edges():
    check_edges(Stair(by=LOSS, sections=1))
