"""Loss selection: the quantile weights, and the distribution of draws without replacement, against its definition."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.seeding import generator
from regimen.core.strategy import Observation
from regimen.selection.loss_selection import LossSelection
from tests.reference.observations import LOSS, seeing
from tests.reference.selections import check_selector, kept

NINE = [float(i) for i in range(9)]  # the borders .33 and .66 lie at 2.64 and 5.28
FOCUSED = {"low": {0, 1, 2}, "medium": {3, 4, 5}, "high": {6, 7, 8}}


def inclusion(weights: list[float], size: int) -> list[float]:
    """Probability that each row is among `size` successive draws without replacement."""
    chances = [0.0] * len(weights)
    for drawn in permutations(range(len(weights)), size):
        chance, left = 1.0, sum(weights)
        for row in drawn:
            chance *= weights[row] / left
            left -= weights[row]
        for row in drawn:
            chances[row] += chance
    return chances


@pytest.mark.parametrize("focus", ["low", "medium", "high"])
@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 5.0), (0.5, 25.0)])
def test_rows_are_drawn_as_their_weights_say(focus, temperature, weight):
    selector, draws, size = LossSelection(by=LOSS, focus=focus, temperature=temperature), 1500, 2
    hits = torch.zeros(9)
    for seed in range(draws):
        hits[kept(selector, NINE, seed=seed, horizon=size)] += 1
    expected = torch.tensor(inclusion([weight if i in FOCUSED[focus] else 1.0 for i in range(9)], size))
    error = 5 * (expected * (1 - expected) / draws).sqrt()
    assert bool(((hits / draws - expected).abs() < error).all())


@given(st.lists(st.floats(0, 20), min_size=1, max_size=30), st.sampled_from(["low", "medium", "high"]), st.data())
def test_properties(losses, focus, data):
    size = data.draw(st.integers(1, len(losses)))
    check_selector(LossSelection(by=LOSS, focus=focus), losses, size, seed=size)


def test_how_many_rows():
    assert len(kept(LossSelection(by=LOSS), NINE, horizon=4)) == 4
    assert len(kept(LossSelection(by=LOSS), NINE, horizon=99)) == 9
    assert len(kept(LossSelection(by=LOSS, ratio=0.5), NINE, horizon=8)) == 4
    assert len(kept(LossSelection(by=LOSS, count=3), NINE, horizon=8)) == 3
    assert len(kept(LossSelection(by=LOSS, count=30), NINE, horizon=8)) == 9


def test_a_sharp_temperature_draws_the_focused_third_first():
    for focus, rows in FOCUSED.items():
        assert set(kept(LossSelection(by=LOSS, focus=focus, temperature=1e-3), NINE, horizon=3)) == rows


def test_losses_that_are_not_numbers():
    for bad, words in ((float("nan"), "NaN for 1 of 2"), (float("inf"), "infinite")):
        with pytest.raises(ConfigError, match=words):
            kept(LossSelection(by=LOSS), [1.0, bad])


def test_selecting_everything_is_told():
    for horizon, notes in ((4, 0), (9, 1)):
        selector, seen = LossSelection(by=LOSS), seeing(NINE, horizon=horizon)
        decision = selector.checked(selector.decide(selector.init(seen.index), seen), seen)
        assert len(selector.notes(None, decision, seen)) == notes


@pytest.mark.slow
def test_more_rows_than_torch_can_draw_from():
    n = 2**24 + 5
    ids = torch.arange(n)
    index = PoolIndex(domains=("a",), offsets=torch.tensor([0, n]), target_tokens=1)
    seen = Observation(
        step=0, total_steps=1, index=index, ids=ids, domain=torch.zeros_like(ids), tokens=torch.ones_like(ids),
        values={LOSS: ids.double()}, horizon=90000, generator=generator(0),
    )  # fmt: skip
    chosen = LossSelection(by=LOSS, focus="high").decide(None, seen)
    focused = float((chosen >= 0.66 * n).double().mean())
    assert focused == pytest.approx(5 * 0.34 / (5 * 0.34 + 0.66), abs=0.01)
