"""In-Run Data Shapley (arXiv 2406.11011): the closed forms against all subsets, and the sums over a run."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.measuring import Sketch
from regimen.signals.gradients import GradientSketch
from regimen.weighting.in_run_values import InRunValues, step_shares
from regimen.weighting.shapley import first_order, fisher_product, second_order
from tests.reference.observations import index_of, weighing
from tests.reference.valuing import seeing_gradients, shapley, shapley_by_orders

BY = GradientSketch(sketch=Sketch(kind="whole"))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quadratic(seed: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hessian (d, d), gradient (d,) at the origin; the loss is v . x + x . H x / 2. And rows' steps (5, d)."""
    root = drawn(seed, d, d)
    return root @ root.T / d, drawn(seed + 1, d), 0.3 * drawn(seed + 2, 5, d)


@given(st.integers(0, 10**6))
def test_second_order_is_the_shapley_value_of_a_quadratic_loss(seed):
    hessian, v, steps = quadratic(seed, 4)

    def taken_off(rows: frozenset[int]) -> float:
        x = -steps[sorted(rows)].sum(0)
        return -float(v @ x + x @ hessian @ x / 2)

    got = second_order(steps, v, hessian @ steps.sum(0)).tolist()
    assert got == pytest.approx(shapley(5, taken_off), abs=1e-12)
    assert sum(got) == pytest.approx(taken_off(frozenset(range(5))), abs=1e-12)


def test_two_definitions_of_the_shapley_value_agree():
    worth = drawn(7, 16)

    def value(rows: frozenset[int]) -> float:
        return float(worth[sum(2**i for i in rows)])

    assert shapley(4, value) == pytest.approx(shapley_by_orders(4, value), abs=1e-12)


@given(st.integers(0, 10**6))
def test_first_order_is_the_shapley_value_of_a_linear_loss(seed):
    _, v, steps = quadratic(seed, 4)
    expected = shapley(5, lambda rows: float(v @ steps[sorted(rows)].sum(0)))
    assert first_order(steps, v).tolist() == pytest.approx(expected, abs=1e-12)


def test_a_duplicate_is_worth_less_at_second_order():
    """Equal rows share what the two of them take off; a row that does nothing is worth nothing."""
    hessian, v, steps = torch.eye(3).double(), torch.tensor([1.0, 1, 1]).double(), torch.eye(3).double()
    alone = second_order(steps, v, hessian @ steps.sum(0))
    steps[1], steps[2] = steps[0], 0
    doubled = second_order(steps, v, hessian @ steps.sum(0))
    assert alone.tolist() == [0.5, 0.5, 0.5]
    assert doubled.tolist() == [0, 0, 0]


def test_the_fisher_product_is_that_of_the_matrix():
    rows, vector = drawn(0, 6, 4), drawn(1, 4)
    matrix = torch.stack([torch.outer(row, row) for row in rows]).mean(0)
    assert torch.allclose(fisher_product(rows, vector), matrix @ vector)


@pytest.mark.parametrize("reduction", ["token_mean", "sample_mean"])
def test_shares_are_those_of_the_objective(reduction):
    """The gradient of the objective, by autograd, is the sum of shares times gradients of mean losses."""
    tokens = torch.tensor([1, 4, 0, 3])
    x = [drawn(i, int(n), 2) for i, n in enumerate(tokens)]
    w = drawn(9, 2).requires_grad_()
    losses = [((rows @ w) ** 2).sum() for rows in x]
    if reduction == "token_mean":
        whole = sum(losses) / 8
    else:
        whole = sum(loss / max(int(n), 1) for loss, n in zip(losses, tokens, strict=True)) / 4
    means = torch.stack(
        [
            torch.autograd.grad(loss, w, retain_graph=True)[0] / max(int(n), 1)
            for loss, n in zip(losses, tokens, strict=True)
        ]
    )
    expected = torch.autograd.grad(whole, w)[0]
    assert torch.allclose(step_shares(tokens, reduction) @ means, expected)


def run_of(strategy: InRunValues, batches: list[tuple[list[int], float]], rows: int) -> Tensor:
    """Values after a run of gradient descent on a linear model, all gradients whole."""
    x, y, target_x, target_y = drawn(0, rows, 3), drawn(1, rows), drawn(2, 4, 3), drawn(3, 4)
    w, state = torch.zeros(3, dtype=torch.float64), strategy.init(index_of([rows]))
    for ids, lr in batches:
        gradients = (x @ w - y)[:, None] * x  # of half the squared error
        target = (target_x @ w - target_y)[:, None] * target_x
        seen = seeing_gradients(BY, gradients[ids], target, ids=ids, rows=rows, lr=lr)
        seen = dataclasses.replace(seen, values={BY: gradients[ids]}, target_values={BY: target})
        state = strategy.observe(state, seen)
        w = w - lr * gradients[ids].mean(0)
    return strategy.gives(state, index_of([rows]))["scores"]


def test_values_sum_to_what_the_run_takes_off():
    """With small steps the sum over rows and steps is the fall of the target's loss, to first order."""
    batches = [([0, 1, 2, 3], 1e-4), ([3, 4, 5, 0], 2e-4)] * 20
    values = run_of(InRunValues(by=BY, reduction="sample_mean"), batches, 7)
    x, y, target_x, target_y = drawn(0, 7, 3), drawn(1, 7), drawn(2, 4, 3), drawn(3, 4)
    w = torch.zeros(3, dtype=torch.float64)
    before = ((target_x @ w - target_y) ** 2).mean() / 2
    for ids, lr in batches:
        w = w - lr * ((x @ w - y)[:, None] * x)[ids].mean(0)
    after = ((target_x @ w - target_y) ** 2).mean() / 2
    assert float(values[:6].sum()) == pytest.approx(float(before - after), rel=2e-3)
    assert bool(values[6].isnan())


def test_steps_add_up_and_repeated_rows_count_twice():
    strategy = InRunValues(by=BY)
    state = strategy.init(index_of([4]))
    gradients, target = torch.tensor([[1.0, 0], [0, 2.0], [1.0, 0]]), torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    for lr in (0.5, 1.0):
        seen = seeing_gradients(BY, gradients, target, ids=[2, 0, 2], rows=4, tokens=[1, 2, 1], lr=lr)
        state = strategy.observe(state, seen)
    assert state.values.nan_to_num(-9).tolist() == pytest.approx([1.5 * 0.5 * 2, -9, 1.5 * (0.25 + 0.25), -9])


def test_second_order_in_a_run_uses_the_fisher_matrix():
    gradients, target = drawn(4, 3, 5).float().double(), drawn(5, 2, 5).float().double()
    seen = seeing_gradients(BY, gradients, target, tokens=[2, 1, 1], lr=0.5)
    strategy = InRunValues(by=BY, order=2)
    got = strategy.observe(strategy.init(seen.index), seen).values
    steps = 0.5 * torch.tensor([0.5, 0.25, 0.25]).double()[:, None] * gradients
    hessian = target.T @ target / 2
    expected = steps @ target.mean(0) - steps @ hessian @ steps.sum(0) / 2
    assert torch.allclose(got, expected)


def test_the_run_is_left_as_it_is():
    strategy = InRunValues(by=BY)
    assert (
        strategy.weigh(strategy.init(index_of([3])), torch.tensor([3.0, 1, 2]), weighing([0, 0, 0])).tolist() == [1] * 3
    )
    assert strategy.scope == "batch"
    assert strategy.needs() == strategy.needs_of_target() == (BY,)


def test_a_target_set_is_needed():
    strategy = InRunValues(by=BY)
    with pytest.raises(ConfigError, match=r"dataset\.target\.path"):
        strategy.observe(strategy.init(index_of([3])), seeing_gradients(BY, drawn(0, 3, 4), None))


@pytest.mark.parametrize(
    "fields",
    [
        {"order": 3},
        {"reduction": "sum"},
        {"by": GradientSketch(sketch=Sketch(reduction="sum"))},
        {"by": GradientSketch(sketch=Sketch(adam="inside"))},
        {"by": GradientSketch(model="run")},
    ],
)
def test_wrong_settings_are_refused(fields):
    with pytest.raises(ConfigError):
        InRunValues(**fields)
