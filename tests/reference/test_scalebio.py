"""ScaleBiO (arXiv 2406.19976): quadratic problems with known shares, its derivatives, and a domain of noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from regimen.core.errors import ConfigError
from regimen.core.lookahead import Slope
from regimen.core.strategy import WeighedBatch
from regimen.signals.loss import Loss
from regimen.weighting.by_domain import domain_coefficients, domain_means, domain_weights
from regimen.weighting.scalebio import ScaleBio, ScaleBioState
from tests.reference.observations import index_of, observing, weighing

Losses = Callable[[Tensor, Tensor], Tensor]  # parameters (P,), rows (n,) -> mean losses (n,)


def f64(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Meter:
    """Rows and target rows of known losses, by autograd. u: where the model is."""

    def __init__(self, rows: Losses, target: Losses, u: Tensor) -> None:
        self.rows, self.target, self.u = rows, target, u

    def slope(self, ids: Tensor, coefficients: Tensor, targets: Tensor, *, at: dict | None = None) -> Slope:
        here = {"w": self.u.clone()} if at is None else at
        leaf = here["w"].clone().requires_grad_()
        losses, target = self.rows(leaf, ids), self.target(leaf, targets).mean()
        (g,) = torch.autograd.grad((coefficients * losses).sum() + target, leaf)
        return Slope(losses.detach(), float(target.detach()), {"w": g}, here)

    def slope_of_u(self, ids: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        leaf = self.u.clone().requires_grad_()
        losses = self.rows(leaf, ids)
        return losses.detach(), torch.autograd.grad((coefficients * losses).sum(), leaf)[0]


def trained(
    strategy: ScaleBio, meter: Meter, batch_of: Callable[[int], WeighedBatch], *, steps: int, lr: float
) -> ScaleBioState:
    """A run: u by plain gradient descent, w and the shares by the strategy at rates that fall to 0."""
    state = strategy.init(batch_of(0).index)
    for step in range(steps):
        left = 1 - step / steps
        now = dataclasses.replace(strategy, score_lr=strategy.score_lr * left)
        batch = dataclasses.replace(batch_of(step), lr=lr * left)
        state = now.lesson(state, batch, meter, torch.arange(1))  # type: ignore[arg-type]
        weights = now.weigh(state, torch.ones(len(batch.ids), dtype=torch.float64), batch)
        losses, g = meter.slope_of_u(batch.ids, weights / len(batch.ids))
        state = now.observe(state, observing(batch, {Loss(): losses}))
        meter.u = meter.u - 0.5 * g
    return state


def quadratic(points: Tensor) -> Losses:
    return lambda at, ids: 0.5 * (at - points[ids]).square().sum(1)


PROBLEMS = {
    # Sources, target, start; and the solution: share of the second source, u, w for alpha.
    "on a line": (f64([0.0], [4.0]), f64([1.0]), f64(2.0), lambda alpha: ([1.0], [1.0])),
    # Off the segment w is biased by 1 / (1 + alpha), w = (t + alpha u) / (1 + alpha), and u is not.
    "off the line": (
        *(f64([0.0, 0.0], [4.0, 0.0]), f64([1.0, 1.0]), f64(2.0, 0.5)),
        lambda alpha: ([1.0, 0.0], [1.0, 1 / (1 + alpha)]),
    ),
}


@pytest.mark.parametrize("alpha", [1.0, 10.0])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_share_of_a_source_is_where_the_target_lies_between_them(name: str, alpha: float) -> None:
    """Of sources at 0 and 4 and a target at 1 the second has 1/4, for any alpha."""
    sources, target, start, solution = PROBLEMS[name]
    meter, batch, (u, w) = Meter(quadratic(sources), quadratic(target), start), weighing([0, 1]), solution(alpha)
    strategy = ScaleBio(alpha=alpha, decay=0.0, score_lr=0.02, reduction="sample_mean")
    state = trained(strategy, meter, lambda step: batch, steps=800, lr=0.05)
    assert strategy.gives(state, batch.index)["mixture"]["b"] == pytest.approx(0.25, abs=1e-4)
    assert meter.u.tolist() == pytest.approx(u, abs=1e-3) and state.w["w"].tolist() == pytest.approx(w, abs=1e-3)


@pytest.mark.parametrize("alpha", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("name", PROBLEMS)
def test_nothing_moves_at_the_solution(name: str, alpha: float) -> None:
    sources, target, _, solution = PROBLEMS[name]
    u, w = (f64(*values) for values in solution(alpha))
    meter, batch = Meter(quadratic(sources), quadratic(target), u), weighing([0, 1])
    strategy = ScaleBio(alpha=alpha, decay=0.0, reduction="sample_mean")
    start = strategy.init(batch.index)._replace(scores=f64(3.0, 1.0).log(), w={"w": w})
    state = strategy.lesson(start, batch, meter, torch.arange(1))  # type: ignore[arg-type]
    losses, g = meter.slope_of_u(batch.ids, strategy.weigh(state, f64(1.0, 1.0), batch) / 2)
    state = strategy.observe(state, observing(batch, {Loss(): losses}))
    for moved in (g, state.first["w"], state.score_first):
        assert float(moved.abs().max()) < 1e-13


def test_a_step_is_the_derivative_of_the_penalised_problem() -> None:
    """L1(w) + alpha (L2(w, p) - L2(u, p)) by autograd in w and in lambda, on ragged rows without one of the domains."""
    points, tokens = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double(), [3, 1, 2, 0, 4]
    target, w, u = f64([1.0, -1.0, 0.5]), f64(0.1, 0.2, 0.3), f64(-0.4, 0.5, 0.6)
    scores, domain = f64(0.3, -0.2, 0.5), torch.tensor([0, 2, 0, 2, 2])
    batch = weighing(domain, tokens=tokens, index=index_of([5, 5, 5]))
    counts = torch.tensor(tokens).double()

    def source_losses(at: Tensor) -> Tensor:
        each = counts * quadratic(points)(at, torch.arange(5))
        return torch.stack([each[domain == k].sum() / counts[domain == k].sum().clamp(min=1) for k in range(3)])

    leaf, leaves = w.clone().requires_grad_(), scores.clone().requires_grad_()
    p = leaves.softmax(0)
    problem = quadratic(target)(leaf, torch.arange(1)).mean()
    problem = problem + 10 * (p @ source_losses(leaf) - p @ source_losses(u))
    by_w, by_scores = torch.autograd.grad(problem, [leaf, leaves])

    strategy = ScaleBio(alpha=10.0, lr=0.0, clip=None)
    meter = Meter(quadratic(points), quadratic(target), u)
    start = strategy.init(batch.index)._replace(scores=scores, w={"w": w})
    state = strategy.lesson(start, batch, meter, torch.arange(1))  # type: ignore[arg-type]
    assert torch.allclose(11 * state.first["w"] / 0.1, by_w, atol=1e-12), (
        "Adam's first moment, a tenth, of 1 / (1 + alpha)"
    )
    losses = quadratic(points)(u, torch.arange(5))
    state = strategy.observe(state, observing(batch, {Loss(): losses}))
    assert torch.allclose(state.score_first / 0.1, by_scores, atol=1e-13)
    assert torch.allclose(state.below, source_losses(w), atol=1e-14)


@pytest.mark.parametrize("reduction", ["token_mean", "sample_mean"])
def test_weights_give_each_domain_its_share(reduction: str) -> None:
    batch = weighing([0, 1, 0, 1, 1], tokens=[3, 1, 2, 0, 4], index=index_of([5, 5]))
    losses, q = torch.rand(5, generator=torch.Generator().manual_seed(1)).double(), f64(0.3, 0.7)
    losses[3] = 0.0
    expected = q @ domain_means(losses, batch, reduction)
    weights = domain_weights(q, batch, reduction)
    tokens = batch.tokens.double()
    step = (weights * losses * tokens).sum() / tokens.sum() if reduction == "token_mean" else (weights * losses).mean()
    assert float(step) == pytest.approx(float(expected), abs=1e-14)
    assert float((domain_coefficients(q, batch, reduction) * losses).sum()) == pytest.approx(float(expected), abs=1e-14)


def test_a_domain_of_noise_loses_its_share() -> None:
    """Three domains of a logistic regression, the labels of one drawn at random: its share falls below 0.05."""
    draw, truth = torch.Generator().manual_seed(0), f64(2.0, -1.0, 0.5)
    x, target_x = (torch.randn(n, 3, generator=draw).double() for n in (600, 60))
    y, target_y = (x @ truth > 0).double(), (target_x @ truth > 0).double()
    y[400:] = (torch.rand(200, generator=draw) < 0.5).double()

    def logistic(x: Tensor, y: Tensor) -> Losses:
        return lambda at, ids: F.binary_cross_entropy_with_logits(x[ids] @ at, y[ids], reduction="none")

    ids = torch.stack([torch.randint(200 * k, 200 * k + 200, (600, 12), generator=draw) for k in range(3)], 1)

    def batch_of(step: int) -> WeighedBatch:
        batch = weighing([0] * 12 + [1] * 12 + [2] * 12, index=index_of([200, 200, 200]))
        return dataclasses.replace(batch, ids=ids[step].flatten())

    target = logistic(target_x, target_y)
    meter = Meter(logistic(x, y), lambda at, _: target(at, torch.arange(60)), torch.zeros(3, dtype=torch.float64))
    strategy = ScaleBio(alpha=3.0, score_lr=0.02, reduction="sample_mean")
    state = trained(strategy, meter, batch_of, steps=600, lr=0.05)
    shares = state.scores.softmax(0).tolist()
    assert shares[2] < 0.05 and min(shares[:2]) > 0.2


def test_shares_are_even_and_models_alike_at_first() -> None:
    strategy, batch = ScaleBio(reduction="sample_mean", lr=0.0, decay=0.0), weighing([0, 1])
    meter = Meter(quadratic(f64([0.0], [4.0])), quadratic(f64([1.0])), f64(1.5))
    state = strategy.init(batch.index)
    assert strategy.weigh(state, torch.ones(2), batch).tolist() == [1.0, 1.0]
    state = strategy.lesson(state, batch, meter, torch.arange(1))  # type: ignore[arg-type]
    assert torch.equal(state.w["w"], meter.u)
    told = strategy.observe(state, observing(batch, {Loss(): meter.rows(meter.u, batch.ids)}))
    assert told.scores.tolist() == [0.0, 0.0], "the same losses say nothing about shares"


@pytest.mark.parametrize(
    "wrong",
    [
        *({"alpha": 0.0}, {"lr": -1.0}, {"clip": 0.0}, {"betas": [0.9, 1.0]}, {"betas": [0.9]}),
        *({"decay": -1.0}, {"score_lr": -1.0}, {"report_every": 0}),
    ],
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        ScaleBio(**wrong)
