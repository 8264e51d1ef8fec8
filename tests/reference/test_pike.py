"""PiKE (arXiv 2502.06244): its update against NumPy, the optimum of its two-task example, unbiased moments, counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regimen.core.draw import draw_labels, row_probabilities
from regimen.core.errors import ConfigError, RunError
from regimen.core.strategy import Observation
from regimen.mixing.pike import Pike, PikeState, unbiased
from tests.reference.observations import index_of, seeing

MOMENT = st.tuples(st.floats(0, 50), st.floats(0, 50))


def moments_of(squares: list[float], variances: list[float], n: float = 8.0) -> Tensor:
    """(K, 3) that `unbiased` turns into these."""
    rows = [[g + s / n, g + s, n] for g, s in zip(squares, variances, strict=True)]
    return torch.tensor(rows, dtype=torch.float64)


def at(mixer: Pike, moments: Tensor, *, index=None, step: int = 0) -> Observation:
    return seeing(moments, ids=[], index=index or index_of([9] * len(moments)), by=mixer.moments, step=step)


def one_update(mixer: Pike, moments: Tensor, *, index=None, state: PikeState | None = None) -> Tensor:
    """w (K,) after one decision."""
    seen = at(mixer, moments, index=index)
    state = mixer.init(seen.index) if state is None else state
    return row_probabilities(mixer.checked(mixer.decide(state, seen), seen), seen.index.mean_tokens())


def test_moments_are_unbiased():
    """Gradients with mean g and variance s, over many draws of n rows."""
    rng = np.random.default_rng(0)
    g, n = np.array([1.0, -2.0, 0.5]), 4
    draws = g + rng.normal(size=(200_000, n, 3)) * np.array([1.0, 2.0, 0.5])
    of_mean, mean_square = (draws.mean(1) ** 2).sum(1), (draws**2).sum(2).mean(1)
    table = np.stack([of_mean, mean_square, np.full(len(draws), float(n))], axis=1)
    square, variance = unbiased(torch.from_numpy(table))
    assert float(square.mean()) == pytest.approx(g @ g, rel=0.01)
    assert float(variance.mean()) == pytest.approx(1 + 4 + 0.25, rel=0.01)


def test_one_row_has_no_variance_and_no_row_no_gradient():
    square, variance = unbiased(torch.tensor([[4.0, 4.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64))
    assert square.tolist() == [4, 0]
    assert variance.tolist() == [0, 0]


def two_tasks(th1: float, th2: float, s1: float, s2: float, *, eta: float, b: int) -> float:
    """The published optimum of w1: losses th_k^2 / 2, noise of deviation s_k on both coordinates, one step of SGD."""
    w1 = ((s2**2 - s1**2) / b + (th1**2 - th2**2) / eta + th2**2) / (th1**2 + th2**2)
    return min(max(w1, 0.0), 1.0)


def loss_after_a_step(w1: np.ndarray, th1: float, th2: float, s1: float, s2: float, *, eta: float, b: int):
    mean = ((1 - eta * w1) * th1) ** 2 + ((1 - eta * (1 - w1)) * th2) ** 2
    return (mean + eta**2 * 2 * (w1 * s1**2 + (1 - w1) * s2**2) / b) / 2


@pytest.mark.parametrize("case", [(1, 1, 1, 1), (1.2, 1, 1, 1), (1, 1.05, 0.3, 2), (1, 1, 3, 1), (0.2, 3, 1, 1)])
def test_the_two_task_example_and_the_direction_of_the_update(case):
    th1, th2, s1, s2 = case
    eta, b = 0.5, 8
    grid = np.linspace(0, 1, 100_001)
    best = grid[loss_after_a_step(grid, *case, eta=eta, b=b).argmin()]
    assert two_tasks(*case, eta=eta, b=b) == pytest.approx(best, abs=2e-5)
    # With zeta1 = 1/eta - 1/2 and zeta2 = 1 the log ratio moves by |theta|^2 times the way from 1/2 to the optimum.
    mixer = Pike(zeta1=1 / eta - 0.5, zeta2=1.0, batch_rows=b)
    w = one_update(mixer, moments_of([th1**2, th2**2], [2 * s1**2, 2 * s2**2]))
    unclipped = ((s2**2 - s1**2) / b + (th1**2 - th2**2) / eta + th2**2) / (th1**2 + th2**2)
    assert math.log(float(w[0] / w[1])) == pytest.approx((th1**2 + th2**2) * (unclipped - 0.5))
    if case == (1, 1, 1, 1):
        assert w.tolist() == [0.5, 0.5] and best == 0.5


def test_numpy_reference():
    rng = np.random.default_rng(1)
    mixer, index = Pike(zeta1=0.3, zeta2=0.8, batch_rows=16, initial="natural"), index_of([3, 5, 2], [4, 1, 9])
    state, w = mixer.init(index), np.array([0.3, 0.5, 0.2])
    for step in range(6):
        squares, variances = rng.uniform(0, 3, 3), rng.uniform(0, 9, 3)
        seen = at(mixer, moments_of(squares.tolist(), variances.tolist()), index=index, step=step)
        decision = mixer.checked(mixer.decide(state, seen), seen)
        state = mixer.advance(state, decision, seen)
        w = w * np.exp(0.3 * squares - 0.8 / (2 * 16) * variances)
        w /= w.sum()
        assert state.log_w.exp().tolist() == pytest.approx(w.tolist())
        assert row_probabilities(decision, index.mean_tokens()).tolist() == pytest.approx(w.tolist())


@given(st.lists(MOMENT, min_size=1, max_size=6), st.randoms())
def test_invariants(moments, random):
    squares, variances = (list(column) for column in zip(*moments, strict=True))
    mixer, k = Pike(zeta1=0.1, zeta2=1.0, batch_rows=8), len(moments)
    w = one_update(mixer, moments_of(squares, variances))
    assert float(w.sum()) == pytest.approx(1)
    order = list(range(k))
    random.shuffle(order)
    moved = one_update(mixer, moments_of([squares[i] for i in order], [variances[i] for i in order]))
    assert torch.allclose(moved, w[order])
    same = one_update(mixer, moments_of([squares[0]] * k, [variances[0]] * k))
    assert same.tolist() == pytest.approx([1 / k] * k)


def test_length_gains_and_noise_loses():
    mixer = Pike(zeta1=0.5, zeta2=0.5, batch_rows=4)
    w = one_update(mixer, moments_of([2.0, 1.0, 1.0], [1.0, 1.0, 9.0]))
    assert float(w[0]) > float(w[1]) > float(w[2])


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=9), st.integers(1, 64))
def test_every_batch_has_its_size_and_counts_within_one(weights, b):
    p = torch.tensor(weights, dtype=torch.float64)
    p, carry, served = p / p.sum(), torch.zeros(len(p), dtype=torch.float64), torch.zeros(len(p))
    for step in range(5):
        labels, carry = draw_labels(p, b, draw=Pike().draw, groups=1, carry=carry, seed=0, step=step)
        counts = torch.bincount(labels, minlength=len(p))
        assert int(counts.sum()) == b
        served += counts
    assert float((served - 5 * b * p).abs().max()) < 1 + 1e-6, "what rounding left over is carried, so shares hold"


def test_empty_domains_get_nothing():
    index = index_of([4, 0, 4])
    for initial in ("uniform", "natural"):
        mixer = Pike(initial=initial)
        moments = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0], [1.0, 2.0, 4.0]], dtype=torch.float64)
        assert one_update(mixer, moments, index=index).tolist() == pytest.approx([0.5, 0, 0.5])


def test_no_share_is_lost_to_underflow():
    mixer, index = Pike(zeta1=1e4, zeta2=0.0), index_of([1, 1])
    first = at(mixer, moments_of([1.0, 2.0], [0.0, 0.0]), index=index)
    state = mixer.advance(mixer.init(index), mixer.decide(mixer.init(index), first), first)
    assert state.log_w.exp().tolist() == [0, 1]
    back = one_update(mixer, moments_of([2.0, 1.0], [0.0, 0.0]), index=index, state=state)
    assert back.tolist() == pytest.approx([0.5, 0.5])


def test_a_gradient_that_is_not_a_number_is_refused():
    mixer = Pike()
    with pytest.raises(RunError, match="got:     b"):
        one_update(mixer, moments_of([1.0, math.nan], [1.0, 1.0]))


@pytest.mark.parametrize(
    "fields",
    [
        *({"zeta1": -1.0}, {"zeta2": math.inf}, {"batch_rows": 0}, {"initial": "first"}, {"rows_per_domain": 1}),
        *({"parameters": "["}, {"draw": "exact"}),
    ],
)
def test_settings_that_cannot_work(fields):
    with pytest.raises(ConfigError):
        Pike(**fields)
