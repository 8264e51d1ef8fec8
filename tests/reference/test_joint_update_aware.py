"""Joint-update-aware weights (OpenDCAI/DataFlex): the fixed point is the maximum of its objective, closed forms."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.strategy import WeighedBatch
from regimen.signals.influence import unit
from regimen.weighting.joint_update_aware import JointUpdateAware, fixed_point
from tests.reference.observations import observing, weighing

BY = JointUpdateAware().by
CONVERGED = {"iterations": 500, "damping": 0.2}


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_of(rows: Tensor, target: Tensor | None, tokens: list[int] | None = None) -> WeighedBatch:
    batch = weighing([0] * len(rows), tokens=tokens, values={BY: rows})
    return dataclasses.replace(batch, target_values={} if target is None else {BY: target})


def weights_of(weighter: JointUpdateAware, batch: WeighedBatch) -> Tensor:
    losses = torch.ones(len(batch.ids), dtype=torch.float64)
    return weighter.checked(weighter.weigh(weighter.init(batch.index), losses, batch), losses)


def objective(w: Tensor, s: Tensor, gram: Tensor, beta: float, tau: float) -> Tensor:
    return s @ w - beta / 2 * w @ gram @ w - tau * torch.xlogy(w, w).sum()


@pytest.mark.parametrize(("beta", "tau"), [(0.1, 0.2), (2.0, 0.2)])
def test_the_fixed_point_is_the_maximum_on_the_simplex(beta: float, tau: float) -> None:
    """The gradient is the same for all rows there, and the solution of a general maximiser is no other."""
    z = unit(drawn(0, 6, 3))
    s, gram = z @ unit(drawn(1, 1, 3))[0], z @ z.T
    w = fixed_point(s, gram, beta=beta, tau=tau, **CONVERGED).requires_grad_()
    (slope,) = torch.autograd.grad(objective(w, s, gram, beta, tau), w)
    assert float(slope.max() - slope.min()) < 1e-9
    scores = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [scores], max_iter=400, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -objective(scores.softmax(0), s, gram, beta, tau)
        value.backward()
        return value

    optimizer.step(loss)
    assert torch.allclose(scores.softmax(0), w, atol=1e-6)
    few = fixed_point(s, gram, beta=beta, tau=tau, iterations=1)
    assert float(objective(few, s, gram, beta, tau)) < float(objective(w, s, gram, beta, tau).detach()) - 1e-9


def test_two_rows_solve_one_equation() -> None:
    """ln(w1 / w2) = (s1 - s2 - beta (1 - c) (w1 - w2)) / tau, c the cosine of the two rows."""
    c, beta, tau = 0.3, 0.4, 0.1
    s, gram = torch.tensor([0.7, 0.5], dtype=torch.float64), torch.tensor([[1.0, c], [c, 1.0]], dtype=torch.float64)
    w = fixed_point(s, gram, beta=beta, tau=tau, **CONVERGED)
    expected = (float(s[0] - s[1]) - beta * (1 - c) * float(w[0] - w[1])) / tau
    assert math.log(float(w[0] / w[1])) == pytest.approx(expected, abs=1e-12)
    assert 0.5 < float(w[0]) < 1 / (1 + math.exp(-2)), "less than without a price for repetition"


def test_one_step_by_hand() -> None:
    s, gram = torch.tensor([1.0, 0.0]).double(), torch.eye(2).double()
    expected = torch.tensor([1 / 0.5 - 0.1, -0.1]).double().softmax(0)
    assert torch.allclose(fixed_point(s, gram, beta=0.1, tau=0.5, iterations=1), expected, atol=1e-15)
    half = fixed_point(s, gram, beta=0.1, tau=0.5, iterations=1, damping=0.5)
    assert torch.allclose(half, 0.25 + 0.5 * expected, atol=1e-15)


def test_without_a_price_weights_are_a_softmax_of_cosines() -> None:
    rows, target = drawn(0, 7, 4), drawn(1, 3, 4)
    cosines = torch.nn.functional.cosine_similarity(rows, target.mean(0)[None], dim=1)
    found = weights_of(JointUpdateAware(beta=0.0, tau=0.3), batch_of(rows, target))
    assert torch.allclose(found, 7 * (cosines / 0.3).softmax(0), atol=1e-12)


def test_repeated_rows_share_the_weight_of_one() -> None:
    """Two directions alike to the target, one of them said by three rows: a high price leaves each half of the mass."""
    rows = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]]).double()
    target = torch.tensor([[1.0, 1.0]]).double()
    free = weights_of(JointUpdateAware(beta=0.0), batch_of(rows, target))
    assert free.tolist() == pytest.approx([1.0] * 4, abs=1e-12)
    dear = weights_of(JointUpdateAware(beta=50.0, tau=0.05, iterations=4000, damping=1e-3), batch_of(rows, target))
    assert dear.tolist() == pytest.approx([2 / 3] * 3 + [2.0], rel=1e-2)


def test_rows_without_target_tokens_are_left_out() -> None:
    rows, target = drawn(0, 5, 4), drawn(1, 3, 4)
    found = weights_of(JointUpdateAware(), batch_of(rows, target, tokens=[1, 0, 2, 1, 1]))
    kept = [0, 2, 3, 4]
    assert float(found[1]) == 0 and float(found.sum()) == pytest.approx(4)
    assert torch.allclose(found[kept], weights_of(JointUpdateAware(), batch_of(rows[kept], target)), atol=1e-12)


def test_the_order_and_the_length_of_vectors_do_not_matter() -> None:
    rows, target, order = drawn(0, 6, 4), drawn(1, 3, 4), torch.tensor([3, 0, 5, 2, 1, 4])
    found = weights_of(JointUpdateAware(), batch_of(rows, target))
    scaled = rows * torch.tensor([1.0, 2, 3, 4, 5, 6])[:, None]
    assert torch.allclose(weights_of(JointUpdateAware(), batch_of(scaled[order], target)), found[order], atol=1e-12)


def test_the_anchor_stays_until_it_is_renewed() -> None:
    weighter, first, later, target = JointUpdateAware(every=3), drawn(0, 4, 4), drawn(2, 4, 4), drawn(1, 3, 4)
    assert [step for step in range(8) if weighter.renews_target(step)] == [0, 3, 6]
    batch = batch_of(first, target)
    seen = dataclasses.replace(observing(batch), target_values=batch.target_values)
    state = weighter.observe(weighter.init(batch.index), seen)
    losses = torch.ones(4, dtype=torch.float64)
    now = weighter.weigh(state, losses, batch_of(later, None))
    assert torch.equal(now, weights_of(weighter, batch_of(later, target)))
    assert torch.equal(weighter.observe(state, observing(batch_of(later, None))).anchor, state.anchor)


@pytest.mark.parametrize("wrong", [{"tau": 0.0}, {"beta": -1.0}, {"iterations": 0}, {"damping": 0.0}, {"every": 0}])
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        JointUpdateAware(**wrong)
