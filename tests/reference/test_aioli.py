"""Aioli (arXiv 2411.05735): a linear world is recovered exactly, and the shares against the algorithm in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.mixing.aioli import Aioli, learned_effects, normalised, sweep_mixtures
from regimen.signals.domains import ValidationLoss
from tests.reference.observations import index_of, seeing

WORLD = np.array([[0.05, 0.01, 0.0], [0.02, 0.03, -0.01], [0.0, 0.02, 0.04]])  # what j (column) takes off i's loss
START = np.array([9.0, 8.0, 7.0])


def run_of(mixer: Aioli, world: np.ndarray, steps: int, *, rows=None, seed: int = 0):
    """Steps, shares and states of the decisions in a run where a step with shares p lowers the losses by world @ p."""
    rows = rows or [5] * len(world)
    index, losses = index_of(rows), np.append(START, 6.0)[: len(world)].copy()
    state, shares, made = mixer.init(index), None, []
    for step in range(steps):
        if mixer.ready(step, index):
            by = ValidationLoss(max_rows=mixer.max_rows)
            seen = seeing(losses, ids=[], index=index, by=by, step=step, total_steps=steps, seed=1000 * seed + step)
            decision = mixer.checked(mixer.decide(state, seen), seen)
            state = mixer.advance(state, decision, seen)
            shares = decision.numpy()
            made.append((step, shares, state))
        losses -= world @ shares
    return made


@given(st.integers(2, 6), st.floats(0.05, 1), st.integers(0, 100))
def test_a_linear_world_is_recovered_for_any_h(j, h, seed):
    if abs(h - 1 / j) < 0.02:
        return
    world = torch.randn(j, j, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    drops = world @ sweep_mixtures(j, h).T
    assert torch.allclose(learned_effects(drops, h), world, atol=1e-9)


@pytest.mark.parametrize("h", [0.2, 0.625, 1.0])
@pytest.mark.parametrize(("rounds", "steps"), [(1, 1), (3, 2)])
def test_a_run_in_a_linear_world_learns_it(h, rounds, steps):
    mixer = Aioli(h=h, lp_rounds=rounds, lp_steps=steps, update_steps=40, ema=0.0, normalise=False)
    for _, _, state in run_of(mixer, WORLD, 80):
        if state.updates:
            assert np.allclose(state.effects.numpy(), WORLD * steps, atol=1e-9)
    assert state.updates == 2


def test_the_moments_of_measuring_and_the_mixtures():
    mixer = Aioli(lp_rounds=2, lp_steps=3, update_steps=25)
    made = run_of(mixer, WORLD, 60)
    assert [step for step, *_ in made] == [*range(0, 19, 3), *range(25, 44, 3), *range(50, 60, 3)]
    turns = [int(shares.argmax()) for _, shares, _ in made[:6]]
    assert sorted(turns[:3]) == sorted(turns[3:]) == [0, 1, 2]
    for _, shares, _ in made[:6]:
        assert sorted(shares) == pytest.approx([0.1875, 0.1875, 0.625])
    assert made[6][2].updates == 1
    # 50 + 18 steps are more than the run has: the third sweep is not begun and the shares stay.
    for _, shares, _ in made[14:]:
        assert shares.tolist() == made[13][1].tolist()


def test_the_order_is_drawn_from_the_generator_and_the_same_in_decide_and_advance():
    mixer = Aioli(lp_rounds=4, lp_steps=1, update_steps=25, h=1.0)
    orders = [[int(s.argmax()) for _, s, _ in run_of(mixer, WORLD, 25, seed=seed)[:12]] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    state = run_of(mixer, WORLD, 25, seed=0)[0][2]
    assert state.order.tolist() == orders[0]
    index = index_of([5] * 3)
    seen = seeing(START, ids=[], index=index, by=ValidationLoss(), step=0)
    first = mixer.advance(mixer.init(index), None, seen)  # where another rank has decided
    decided = mixer.decide(mixer.init(index), seen)
    assert torch.equal(mixer.advance(mixer.init(index), decided, seen).order, first.order)
    assert int(decided.argmax()) == int(first.order[0])


def shares_by_numpy(graphs, eta, ema):
    """As the released trainer does it."""
    weights, average = np.ones(len(graphs[0])), None
    for i, graph in enumerate(graphs):
        graph = graph - min(graph.min(), 0)
        graph = graph / graph.sum()
        if ema is not None:
            average = graph if i == 0 else (1 - ema) * graph + ema * average
            weights = np.exp(eta * average.sum(0))
        else:
            weights = weights * np.exp(eta * graph.sum(0))
    return weights / weights.sum()


@pytest.mark.parametrize("ema", [0.1, None])
def test_the_shares_of_several_updates(ema):
    graphs = [WORLD, WORLD[::-1].copy(), WORLD.T + 0.02]
    mixer = Aioli(lp_rounds=1, lp_steps=1, update_steps=5, eta=1.0, ema=ema, h=0.75)
    index, losses = index_of([5] * 3), START.copy()
    state = mixer.init(index)
    for step in range(15):
        if mixer.ready(step, index):
            seen = seeing(losses, ids=[], index=index, by=ValidationLoss(), step=step, total_steps=16, seed=step)
            shares = mixer.decide(state, seen)
            state = mixer.advance(state, shares, seen)
        losses -= graphs[step // 5] @ shares.numpy()
        if step % 5 == 3:
            assert shares.tolist() == pytest.approx(shares_by_numpy(graphs[: step // 5 + 1], 1.0, ema).tolist())


def test_normalising():
    effects = torch.tensor([[1.0, -1.0], [0.0, 2.0]]).double()
    assert normalised(effects).tolist() == [[2 / 6, 0], [1 / 6, 3 / 6]]
    assert normalised(effects + 1).tolist() == [[2 / 6, 0], [1 / 6, 3 / 6]]
    assert normalised(effects + 3).sum() == pytest.approx(1)
    for equal in (0.0, -2.0):
        assert normalised(torch.full((2, 2), equal).double()).tolist() == [[0.25, 0.25], [0.25, 0.25]]


def test_permuted_domains_get_permuted_shares():
    order = [2, 0, 1]
    mixer = Aioli(lp_rounds=1, lp_steps=1, update_steps=10, eta=5.0)
    plain = run_of(mixer, WORLD, 10)[-1][1]
    permuted = run_of(mixer, WORLD[order][:, order], 10)[-1][1]
    assert permuted.tolist() == pytest.approx(plain[order].tolist())
    assert int(plain.argmax()) == int(WORLD.sum(0).argmax())


def test_domains_without_rows_get_no_share_and_no_turn():
    world = np.zeros((4, 4))
    world[np.ix_([0, 1, 3], [0, 1, 3])] = WORLD
    mixer = Aioli(lp_rounds=1, lp_steps=1, update_steps=6, ema=0.0, normalise=False)
    made = run_of(mixer, world, 6, rows=[5, 5, 0, 5])
    assert [step for step, *_ in made] == [0, 1, 2, 3]
    assert all(shares[2] == 0 for _, shares, _ in made)
    assert np.allclose(made[-1][2].effects.numpy(), WORLD)


def test_a_single_domain_has_nothing_to_learn():
    made = run_of(Aioli(h=1.0), WORLD[:1, :1], 8)
    assert [(step, shares.tolist()) for step, shares, _ in made] == [(0, [1.0])]


def test_a_loss_that_is_not_a_number_is_refused():
    mixer, index = Aioli(lp_rounds=1, lp_steps=1, update_steps=3), index_of([5, 5])
    state = mixer.init(index)
    for step, losses in enumerate([[2, 2], [1, float("nan")], [1, 1]]):
        seen = seeing(losses, ids=[], index=index, by=ValidationLoss(), step=step)
        decision = mixer.decide(state, seen)
        state = mixer.advance(state, decision, seen)
    with pytest.raises(ConfigError, match="left the simplex"):
        mixer.checked(decision, seen)


def test_a_missed_moment_is_refused():
    mixer, index = Aioli(lp_rounds=2, lp_steps=1, update_steps=9), index_of([5, 5])
    seen = seeing([2, 2], ids=[], index=index, by=ValidationLoss(), step=0)
    state = mixer.advance(mixer.init(index), None, seen)
    with pytest.raises(ConfigError, match="leave strategies.aioli.when at every step"):
        mixer.decide(state, seeing([2, 2], ids=[], index=index, by=ValidationLoss(), step=2))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lp_rounds": 0}, "lp_rounds"),
        ({"lp_steps": 0}, "lp_steps"),
        ({"update_steps": 0}, "update_steps"),
        ({"h": 0}, "h is"),
        ({"h": float("nan")}, "h is"),
        ({"eta": -0.1}, "eta"),
        ({"ema": 1}, "ema"),
        ({"max_rows": 0}, "max_rows"),
        ({"draw": "dice"}, "multinomial"),
    ],
)
def test_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        Aioli(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"h": 1 / 3}, r"every mixture of a sweep is uniform"),
        ({"update_steps": 48}, r"lp_rounds=4 \* lp_steps=4 \* 3 domains = 48 steps[\s\S]*lower"),
    ],
)
def test_what_does_not_fit_the_pool_is_refused_before_training(settings, words):
    with pytest.raises(ConfigError, match=words):
        Aioli(**settings).init(index_of([5, 5, 5]))


def test_a_run_that_is_too_short_is_refused():
    with pytest.raises(ConfigError, match="ends before Aioli has swept"):
        run_of(Aioli(), WORLD, 48)


def test_needs_the_validation_losses():
    assert Aioli(max_rows=4).needs() == (ValidationLoss(max_rows=4),)
