"""Delta loss: a window over rows by how far their loss fell, against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.core.strategy import Observation
from regimen.selection.delta_loss import DeltaLoss, DeltaState, in_window
from tests.reference.observations import LOSS, index_of, seeing
from tests.reference.selections import check_selector
from tests.reference.test_loss_selection import inclusion


def after(first: list[float]) -> DeltaState:
    return DeltaState(torch.tensor(first, dtype=torch.float64))


def inside(falls: list[float], progress: float, *, window: float = 0.2, slope: float = 10.0) -> list[int]:
    rows = in_window(torch.tensor(falls, dtype=torch.float64), progress, window=window, slope=slope)
    return rows.nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("progress", "ranks"),
    [
        (0.0, range(20)),  # sigmoid(-5) * 80 = 0.535
        (0.3, range(9, 29)),  # sigmoid(-2) * 80 = 9.536
        (0.5, range(40, 60)),
        (0.7, range(70, 90)),  # sigmoid(2) * 80 = 70.46
        (1.0, range(79, 99)),  # sigmoid(5) * 80 = 79.46
    ],
)
def test_where_the_window_is(progress, ranks):
    falls = [float(100 - rank) for rank in range(100)]
    assert inside(falls, progress) == list(ranks)
    assert inside(falls, progress, slope=0.0) == list(range(40, 60))
    assert inside(falls, progress, window=1.0) == list(range(100))


def test_what_got_worse_is_cut_off():
    falls = [5.0, 4.0, 3.0, 2.0, 1.0, 0.0, -1.0, -2.0, -3.0, -4.0]
    assert inside(falls, 0.5, window=0.4) == [3, 4, 5]
    assert inside(falls, 0.5, window=1.0) == [0, 1, 2, 3, 4, 5]
    assert inside(falls, 1.0, window=0.2) == []


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.floats(0, 1), st.floats(0.01, 1))
def test_the_window_is_a_run_of_ranks(falls, progress, window):
    rows = inside(falls, progress, window=window)
    ranked = sorted(range(len(falls)), key=lambda i: (-falls[i], i))
    places = sorted(ranked.index(row) for row in rows)
    start = int((1 - window) * len(falls) / (1 + math.exp(-10 * (progress - 0.5))))
    assert places == list(range(start, start + len(places)))
    assert all(falls[row] >= 0 for row in rows)
    assert len(places) <= max(window * len(falls), 1)


def test_the_first_decision_is_a_random_subset_and_keeps_the_losses():
    selector, index, hits = DeltaLoss(by=LOSS), index_of([6]), torch.zeros(6)
    for seed in range(600):
        seen = seeing([9.0, 1, 1, 1, 1, 1], index=index, horizon=2, seed=seed)
        hits[selector.decide(selector.init(index), seen)] += 1
    assert bool(((hits / 600 - 1 / 3).abs() < 5 * math.sqrt(2 / 9 / 600)).all())
    state = selector.advance(selector.init(index), None, seen)
    assert state.first.tolist() == [9, 1, 1, 1, 1, 1]
    assert selector.notes(selector.init(index), selector.checked(torch.tensor([0]), seen), seen) == []


def test_first_losses_stay_and_new_rows_get_theirs():
    selector, index = DeltaLoss(by=LOSS), index_of([5])
    state = selector.advance(selector.init(index), None, seeing([3.0, 1.0], ids=[4, 1], index=index))
    state = selector.advance(state, None, seeing([0.5, 7.0, 0.25], ids=[1, 0, 4], index=index))
    assert state.first.nan_to_num(-1).tolist() == [7, 1, -1, -1, 3]


def test_rows_are_drawn_as_their_weights_say():
    """Half of the run: ranks 2 and 3 of 6 are inside."""
    selector = DeltaLoss(by=LOSS, window=0.34, outside=0.25)
    state, losses, draws = after([10.0] * 6), [4.0, 5.0, 6.0, 7.0, 8.0, 9.0], 1500
    hits = torch.zeros(6)
    for seed in range(draws):
        seen = seeing(losses, step=50, horizon=2, seed=seed)
        hits[selector.decide(state, seen)] += 1
    start = int(0.66 * 6 / 2)
    expected = torch.tensor(inclusion([1.0 if start <= i < start + 2 else 0.25 for i in range(6)], 2))
    assert bool(((hits / draws - expected).abs() < 5 * (expected * (1 - expected) / draws).sqrt()).all())


def told(state: DeltaState, seen: Observation, **fields: object) -> list[str]:
    selector = DeltaLoss(by=LOSS, **fields)  # type: ignore[arg-type]
    return selector.notes(state, selector.checked(selector.decide(state, seen), seen), seen)


def test_a_window_that_is_cut_away_is_told_and_draws_uniformly():
    state, hits = after([1.0] * 10), torch.zeros(10)
    losses = [0.5, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    for seed in range(400):
        seen = seeing(losses, step=90, horizon=5, seed=seed)
        hits[DeltaLoss(by=LOSS, outside=0.0).decide(state, seen)] += 1
    assert bool(((hits / 400 - 0.5).abs() < 5 * math.sqrt(0.25 / 400)).all())
    assert "drew uniformly at step 90" in told(state, seen)[0]
    assert told(after([9.0] * 10), seen) == []


def test_keeping_everything_is_told():
    assert "kept all 3 rows" in told(after([9.0] * 3), seeing([1.0, 2.0, 3.0], horizon=9, step=50))[0]


def test_outside_of_zero_fills_up_at_random():
    selector, hits = DeltaLoss(by=LOSS, outside=0.0), torch.zeros(10)
    for seed in range(300):
        seen = seeing([float(i) for i in range(10)], step=0, horizon=4, seed=seed)
        hits[selector.decide(after([20.0] * 10), seen)] += 1
    assert hits[:2].tolist() == [300, 300]
    assert bool(((hits[2:] / 300 - 0.25).abs() < 5 * math.sqrt(0.1875 / 300)).all())


@given(st.lists(st.floats(0, 20), min_size=1, max_size=30), st.data())
def test_properties(losses, data):
    size = data.draw(st.integers(1, len(losses)))
    check_selector(DeltaLoss(by=LOSS), losses, size, seed=size)


def test_how_many_rows():
    state = after([9.0] * 10)
    for fields, size in (({}, 4), ({"ratio": 0.5}, 5), ({"count": 3}, 3), ({"count": 30}, 10)):
        seen = seeing([1.0] * 10, horizon=4)
        assert len(DeltaLoss(by=LOSS, **fields).decide(state, seen)) == size


@pytest.mark.parametrize(
    "fields",
    [{"window": 0.0}, {"window": 1.1}, {"slope": -1}, {"outside": 2}, {"outside": -0.1}, {"ratio": 0.5, "count": 3}],
)
def test_wrong_settings_are_refused(fields):
    with pytest.raises(ConfigError):
        DeltaLoss(by=LOSS, **fields)
