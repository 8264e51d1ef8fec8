"""Holdout: a division of rows that depends on ids and seed alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.selection.holdout import Holdout, held_out
from tests.reference.selections import kept


@given(st.floats(0.02, 0.98), st.integers(0, 2**40))
def test_the_fraction_is_met_anywhere(fraction, seed):
    for start in (0, 10**9):
        inside = held_out(torch.arange(start, start + 20_000), fraction=fraction, seed=seed)
        assert abs(float(inside.double().mean()) - fraction) < 5 * math.sqrt(fraction * (1 - fraction) / 20_000)


def test_a_row_depends_on_no_other_and_larger_fractions_hold_smaller_ones():
    ids = torch.arange(1000)
    inside = held_out(ids, fraction=0.3, seed=7)
    mixed = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(held_out(ids[mixed], fraction=0.3, seed=7), inside[mixed])
    assert torch.equal(held_out(ids[::7], fraction=0.3, seed=7), inside[::7])
    assert bool((inside <= held_out(ids, fraction=0.6, seed=7)).all())
    assert ids[inside][:5].tolist() == [2, 4, 7, 9, 19]  # of this code: runs of other versions must agree


def test_seeds_and_neighbours_are_independent():
    ids = torch.arange(20_000)
    a, b = held_out(ids, fraction=0.5, seed=0), held_out(ids, fraction=0.5, seed=1)
    for other in (b, a.roll(1)):
        assert abs(float((a == other).double().mean()) - 0.5) < 0.02


def test_both_parts_make_the_whole():
    inside, rest = (kept(Holdout(fraction=0.4, part=part), [0.0] * 50) for part in ("held_out", "rest"))
    assert sorted(inside + rest) == list(range(50))
    assert inside == held_out(torch.arange(50), fraction=0.4, seed=0).nonzero().flatten().tolist()


@pytest.mark.parametrize("fields", [{"fraction": 0.0}, {"fraction": 1.0}, {"fraction": math.nan}, {"part": "all"}])
def test_wrong_settings_are_refused(fields):
    with pytest.raises(ConfigError):
        Holdout(**fields)
