"""Saw (arXiv 2605.30334): golden of SAW-K from the released code, and equality with re-ordering slices of a list."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from regimen.ordering.saw import Saw
from regimen.ordering.stair import in_windows
from regimen.ordering.zigzag import zigzag
from tests.reference.observations import LOSS
from tests.reference.orderings import SCORES, check_edges, check_ordering, served, windowed, zigzagged


def test_released_example_of_20_rows():
    expected = [0, 1, 2, 3, 4, 5, 7, 8, 6, 9, 10, 11, 13, 14, 12, 15, 16, 17, 18, 19]
    assert served(Saw(by=LOSS, sections=3, radius=0.075, folds=2), [float(i) for i in range(20)]) == expected
    assert Saw(by=LOSS) == Saw(by=LOSS, sections=3, radius=0.075, folds=2)


def test_equals_slices_of_a_list():
    for n in range(201):
        for sections, radius in ((1, 0.3), (2, 0.225), (3, 0.075), (3, 0.16), (4, 0.124), (7, 0.07), (2, 0.0)):
            for folds in (1, 2, 3, 5):
                expected = windowed(list(range(n)), sections, radius, lambda rows, folds=folds: zigzagged(rows, folds))
                rank = torch.arange(n)
                position = in_windows(rank, sections, radius, lambda rank, folds=folds: zigzag(rank, folds))
                assert position.argsort().tolist() == expected


@given(SCORES, st.integers(1, 6), st.floats(0, 0.999), st.integers(1, 6), st.integers(0, 5))
def test_properties(scores, sections, part, folds, seed):
    radius = part / (2 * sections)
    inside = 2 * round(radius * len(scores))
    radius, folds = (radius, min(folds, inside)) if inside else (0.0, folds)
    check_ordering(Saw(by=LOSS, sections=sections, radius=radius, folds=folds), scores, seed)


def test_edges():
    check_edges(Saw(by=LOSS, sections=1))
