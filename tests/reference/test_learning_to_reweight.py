"""Learning to reweight (arXiv 1803.09050): the identity behind its weights, and rows with flipped labels."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from regimen.core.errors import ConfigError
from regimen.core.lookahead import Lookahead
from regimen.signals.alignment import TargetAlignment, some_of
from regimen.training.inner_products import by_double_backward, by_row
from regimen.weighting.learning_to_reweight import LearningToReweight, reweighted
from tests.reference.observations import weighing

BY = TargetAlignment()


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logistic(x: Tensor, y: Tensor):
    return lambda at: F.binary_cross_entropy_with_logits(x @ at["w"], y, reduction="none")


def test_weights_are_a_step_from_weights_of_zero() -> None:
    """u_i = - d/d eps_i of the target's loss after a step with weights eps = 0, by autograd through the step."""
    train = logistic(drawn(0, 6, 3), (drawn(1, 6) > 0).double())
    target = logistic(drawn(2, 4, 3), (drawn(3, 4) > 0).double())
    w, eps, lr = drawn(4, 3).requires_grad_(), torch.zeros(6, dtype=torch.float64, requires_grad=True), 0.2
    (g,) = torch.autograd.grad((eps * train({"w": w})).sum(), w, create_graph=True)
    (slope,) = torch.autograd.grad(target({"w": w - lr * g}).mean(), eps)
    (v,) = torch.autograd.grad(target({"w": w}).mean(), w)
    products = by_row(train, {"w": w.detach()}, {"w": v})
    assert float((lr * products + slope).abs().max()) < 1e-16
    assert torch.allclose(reweighted(products), 6 * (-slope).clamp(min=0) / (-slope).clamp(min=0).sum(), atol=1e-12)


def weights_of(products: Tensor, *, tokens: list[int] | None = None, reduction: str = "sample_mean") -> Tensor:
    batch = weighing([0] * len(products), tokens=tokens, values={BY: products})
    strategy = LearningToReweight(by=BY, reduction=reduction)
    return strategy.checked(strategy.weigh(None, torch.ones(len(products)), batch), torch.ones(len(products)))


def test_negative_products_count_nothing_and_the_mean_is_one() -> None:
    assert weights_of(torch.tensor([1.0, -2, 3, 0]).double()).tolist() == [1, 0, 3, 0]


def test_no_row_that_helps_means_no_step() -> None:
    assert weights_of(torch.tensor([-1.0, -2, 0]).double()).tolist() == [0, 0, 0]


def test_long_rows_are_more_of_a_step_under_token_mean() -> None:
    assert weights_of(torch.ones(2).double(), tokens=[1, 3], reduction="token_mean").tolist() == [0.5, 1.5]
    assert weights_of(torch.ones(2).double(), tokens=[1, 3]).tolist() == [1, 1]


def test_flipped_labels_count_less_than_a_fifth() -> None:
    """Two classes, 40% of the labels flipped, a clean target set of 20."""
    draw, truth = torch.Generator().manual_seed(0), torch.tensor([2.0, -1.0, 0.5]).double()
    x, target_x = drawn(0, 400, 3), drawn(1, 20, 3)
    clean, target_y = (x @ truth > 0).double(), (target_x @ truth > 0).double()
    flipped = torch.rand(400, generator=draw) < 0.4
    y = torch.where(flipped, 1 - clean, clean)
    at, total = {"w": torch.zeros(3, dtype=torch.float64)}, torch.zeros(400, dtype=torch.float64)
    strategy = LearningToReweight(by=BY, reduction="sample_mean")
    for _ in range(60):
        ids = torch.randperm(400, generator=draw)[:40]
        rows, leaf = logistic(x[ids], y[ids]), at["w"].clone().requires_grad_()
        (v,) = torch.autograd.grad(logistic(target_x, target_y)({"w": leaf}).mean(), leaf)
        batch = weighing([0] * 40, values={BY: by_double_backward(rows, at, {"w": v})})
        weights = strategy.weigh(None, torch.ones(40, dtype=torch.float64), batch)
        total[ids] += weights
        (g,) = torch.autograd.grad((weights * rows({"w": leaf})).mean(), leaf)
        at = {"w": at["w"] - 0.5 * g}
    assert 0.35 < float(flipped.double().mean()) < 0.45
    assert float(total[flipped].mean() / total[~flipped].mean()) < 0.2
    assert float(((x @ at["w"] > 0).double() == clean).double().mean()) > 0.95


def test_target_rows_are_drawn_once() -> None:
    draw = torch.Generator().manual_seed(3)
    few = some_of(10, 4, draw)
    assert len(few) == len(few.unique()) == 4 and few.tolist() == sorted(few.tolist())
    assert some_of(3, 4, draw).tolist() == some_of(3, None, draw).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "make",
    [
        lambda: TargetAlignment(by=Lookahead(lr=0.1)),
        lambda: TargetAlignment(target_rows=0),
        lambda: Lookahead(estimator="vmap"),
        lambda: Lookahead(lr=-1.0),
        lambda: Lookahead(c=0.0),
        lambda: LearningToReweight(reduction="mean"),
    ],
)
def test_wrong_settings_are_refused(make) -> None:
    with pytest.raises(ConfigError):
        make()


def test_what_it_measures_needs_a_target_set() -> None:
    strategy = LearningToReweight(by=dataclasses.replace(BY, target_rows=4))
    assert strategy.scope == "batch" and strategy.needs()[0].aims()
