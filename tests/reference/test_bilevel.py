"""Derivatives of a target's loss after a weighted step, against differences, autograd and each other, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from regimen.training.cross_entropy import IGNORE
from regimen.training.inner_products import (
    Values,
    by_difference,
    by_double_backward,
    by_forward_mode,
    by_row,
    norm_of,
)
from regimen.weighting.bilevel import entropy_gradient, score_gradient, weight_gradient
from tests.support.gradients import qwen2, rows

D, V, B, M, LR, TAU = 5, 4, 6, 7, 0.3, 0.7


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(seed: int, count: int) -> Tensor:
    return torch.randint(V, (count,), generator=torch.Generator().manual_seed(seed))


class Softmax:
    """Rows of a linear classifier: losses (n,) of parameters (V, D)."""

    def __init__(self, seed: int, count: int) -> None:
        self.x, self.y = drawn(seed, count, D), classes(seed + 1, count)

    def __call__(self, at: Values) -> Tensor:
        return F.cross_entropy(self.x @ at["theta"].T, self.y, reduction="none")


TRAIN, TARGET = Softmax(0, B), Softmax(10, M)
THETA = {"theta": drawn(20, V, D)}
SCORES = drawn(21, B)


def after(scores: Tensor, *, steps: int = 1, scale: Tensor | float = 1.0) -> Tensor:
    """J: the target's loss after `steps` steps with the weights of `scores`, as one differentiable function."""
    w, now = (scores / TAU).softmax(0), THETA["theta"].clone().requires_grad_()
    for _ in range(steps):
        (g,) = torch.autograd.grad((w * TRAIN({"theta": now})).sum(), now, create_graph=True)
        now = now - LR * scale * g
    return TARGET({"theta": now}).mean()


def closed_form(scores: Tensor, *, scale: Tensor | float = 1.0) -> Tensor:
    """dJ/ds from inner products of rows' gradients with the target's gradient after the step."""
    w, leaf = (scores / TAU).softmax(0), THETA["theta"].clone().requires_grad_()
    (g,) = torch.autograd.grad((w * TRAIN({"theta": leaf})).sum(), leaf)
    ahead = (leaf - LR * scale * g).detach().requires_grad_()
    (v,) = torch.autograd.grad(TARGET({"theta": ahead}).mean(), ahead)
    products = by_row(TRAIN, THETA, {"theta": scale * v})
    return score_gradient(w, weight_gradient(products, torch.ones(B), lr=LR), tau=TAU)


def by_finite_differences(of: Callable[[Tensor], Tensor], at: Tensor, e: float = 1e-5) -> Tensor:
    ways = e * torch.eye(len(at), dtype=torch.float64)
    return torch.stack([(of(at + way) - of(at - way)) / (2 * e) for way in ways]).detach()


def test_t1_the_closed_form_is_the_slope_of_the_loss_after_the_step() -> None:
    assert float((closed_form(SCORES) - by_finite_differences(after, SCORES)).abs().max()) < 1e-8


def test_t1_three_unrolled_steps_differ_from_one_and_are_their_own_slope() -> None:
    """More than one inner step needs second derivatives: the closed form is that of one step."""
    scores = SCORES.clone().requires_grad_()
    (three,) = torch.autograd.grad(after(scores, steps=3), scores)
    differences = by_finite_differences(lambda s: after(s, steps=3), SCORES)
    assert float((three - differences).abs().max()) < 1e-8
    assert float((three - closed_form(SCORES)).abs().max()) > 1e-3


def test_t2_the_closed_form_is_autograd_through_the_step() -> None:
    scores = SCORES.clone().requires_grad_()
    (exact,) = torch.autograd.grad(after(scores), scores)
    assert float((closed_form(SCORES) - exact).abs().max()) < 1e-15


def test_a_fixed_preconditioner_multiplies_the_targets_gradient() -> None:
    scores, scale = SCORES.clone().requires_grad_(), 1 / (drawn(3, V, D).abs() + 0.1)
    (exact,) = torch.autograd.grad(after(scores, scale=scale), scores)
    assert float((closed_form(SCORES, scale=scale) - exact).abs().max()) < 1e-14
    assert float((closed_form(SCORES) - exact).abs().max()) > 1e-2


def test_a_cold_adam_step_tells_nothing_and_a_warm_one_does() -> None:
    """The first step of Adam is the sign of the gradient, which small changes of the weights leave: hence plain steps.

    Differentiated through both moments, after t - 1 steps with even weights.
    """

    def slope(t: int) -> float:
        theta, m, v = THETA["theta"], torch.zeros(V, D, dtype=torch.float64), torch.zeros(V, D, dtype=torch.float64)
        for k in range(1, t + 1):
            scores = SCORES.clone().requires_grad_()
            leaf = theta.clone().requires_grad_()
            w = (scores / TAU).softmax(0) if k == t else torch.full((B,), 1 / B, dtype=torch.float64)
            (g,) = torch.autograd.grad((w * TRAIN({"theta": leaf})).sum(), leaf, create_graph=True)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g.square()
            move = (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
            if k < t:
                theta, m, v = (theta - 0.01 * move).detach(), m.detach(), v.detach()
        (found,) = torch.autograd.grad(TARGET({"theta": theta - 0.01 * move}).mean(), scores)
        return float(found.norm())

    assert slope(1) < 1e-6 < 1e-4 < slope(50)


@given(st.integers(0, 10**6), st.integers(1, 9))
def test_t5_rows_that_are_the_same_get_no_gradient_at_all(seed: int, count: int) -> None:
    shares = drawn(seed, count).softmax(0)
    assert score_gradient(shares, drawn(seed + 1, 1).expand(count), tau=0.3).tolist() == [0.0] * count


@given(st.integers(0, 10**6))
def test_gradients_of_scores_and_of_entropy_are_autograds(seed: int) -> None:
    scores, slope = drawn(seed, 5).requires_grad_(), drawn(seed + 1, 5)
    shares = (scores / TAU).softmax(0)
    (found,) = torch.autograd.grad((slope * shares).sum(), scores, retain_graph=True)
    assert torch.allclose(found, score_gradient(shares.detach(), slope, tau=TAU), atol=1e-14)
    assert float(found.sum().abs()) < 1e-13, "a shift of all scores changes nothing"
    (found,) = torch.autograd.grad(-(shares * shares.log()).sum(), scores)
    assert torch.allclose(found, score_gradient(shares.detach(), entropy_gradient(shares.detach()), tau=TAU))


# ---- the estimators on a transformer ------------------------------------------------------------------------------


class RowsOf:
    """The mean losses (b,) of rows of a Qwen2 with two layers of width 16, as a function of its parameters."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.model = qwen2().to(dtype)
        self.given = rows()
        self.at = {name: p.detach() for name, p in self.model.named_parameters()}

    def __call__(self, at: Values) -> Tensor:
        out = functional_call(self.model, dict(at), (), {"input_ids": self.given.inputs, "use_cache": False})
        flat = F.cross_entropy(out.logits.flatten(0, 1), self.given.targets.flatten(), reduction="none")
        learnt = self.given.targets != IGNORE
        return flat.view(learnt.shape).double().sum(1) / learnt.sum(1)

    def along(self) -> dict[str, Tensor]:
        """The gradient of other rows."""
        leaves = {name: value.clone().requires_grad_() for name, value in self.at.items()}
        other = copy.copy(self)
        other.given = rows(seed=9)
        return dict(zip(leaves, torch.autograd.grad(other(leaves).mean(), list(leaves.values())), strict=True))


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_t3_differences_come_close_and_the_others_are_exact() -> None:
    for dtype, c, least in ((torch.float64, 1e-3, 1e-4), (torch.float32, 1e-2, 5e-3)):
        losses = RowsOf(dtype)
        along = losses.along()
        exact = by_row(losses, losses.at, along)
        assert off(by_difference(losses, losses.at, along, c=c), exact) < least
        with sdpa_kernel(SDPBackend.MATH):
            # Not closer: the normalisations of this model compute in float32 whatever its parameters are.
            assert off(by_double_backward(losses, losses.at, along), exact) < 1e-5
            assert off(by_forward_mode(losses, losses.at, along), exact) < 1e-5
    plain = {"theta": drawn(6, V, D)}
    for estimator in (by_double_backward, by_forward_mode):
        assert off(estimator(TRAIN, THETA, plain), by_row(TRAIN, THETA, plain)) < 1e-14


def test_nothing_is_left_behind() -> None:
    losses = RowsOf(torch.float32)
    before, along = copy.deepcopy(losses.model.state_dict()), losses.along()
    by_difference(losses, losses.at, along, c=1e-2)
    with sdpa_kernel(SDPBackend.MATH):
        by_double_backward(losses, losses.at, along)
        by_forward_mode(losses, losses.at, along)
    assert all(torch.equal(value, before[name]) for name, value in losses.model.state_dict().items())
    assert all(p.grad is None for p in losses.model.parameters())


def test_no_direction_gives_no_product() -> None:
    losses = RowsOf(torch.float32)
    nowhere = {name: torch.zeros_like(value) for name, value in losses.at.items()}
    assert float(norm_of(nowhere)) == 0
    assert by_difference(losses, losses.at, nowhere, c=1e-2).tolist() == [0.0] * 4


@pytest.mark.parametrize(("c", "least"), [(1e-3, 1e-7), (1e-4, 1e-9)])
def test_the_error_of_a_difference_falls_with_the_square_of_its_length(c: float, least: float) -> None:
    along = {"theta": drawn(5, V, D)}
    assert off(by_difference(TRAIN, THETA, along, c=c), by_row(TRAIN, THETA, along)) < least
