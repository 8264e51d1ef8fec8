"""Meta-Weight-Net (arXiv 1902.07379): its hypergradient by brute force, and rows with flipped labels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from regimen.core.errors import ConfigError
from regimen.core.lookahead import Lookahead, Looked
from regimen.training.inner_products import by_double_backward, by_row
from regimen.weighting.meta_weight_net import MetaWeightNet, NetState, new_net, weights_of
from tests.reference.observations import weighing

LR = 0.3
BY = Lookahead(lr=LR)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logistic(x: Tensor, y: Tensor):
    return lambda at: F.binary_cross_entropy_with_logits(x @ at["w"], y, reduction="none")


TRAIN = logistic(drawn(0, 6, 3), (drawn(1, 6) > 0).double())
TARGET = logistic(drawn(2, 4, 3), (drawn(3, 4) > 0).double())
W = drawn(4, 3)


def after(net: dict[str, Tensor], parts: Tensor) -> Tensor:
    """J: the target's loss after the virtual step with the network's weights, all differentiable by the network."""
    w = W.clone().requires_grad_()
    losses = TRAIN({"w": w})
    (g,) = torch.autograd.grad((weights_of(net, losses.detach()) * parts * losses).sum(), w, create_graph=True)
    return TARGET({"w": w - LR * g}).mean()


def looked_at(strategy: MetaWeightNet, state: NetState, batch) -> Looked:
    """What the virtual step tells, row by row."""
    leaf = W.clone().requires_grad_()
    losses = TRAIN({"w": leaf})
    shares = strategy.shares(state, losses.detach(), batch)
    (g,) = torch.autograd.grad((shares * losses).sum(), leaf)
    ahead = (leaf - LR * g).detach().requires_grad_()
    loss = TARGET({"w": ahead}).mean()
    (v,) = torch.autograd.grad(loss, ahead)
    return Looked(losses.detach(), by_row(TRAIN, {"w": W}, {"w": v}), float(loss.detach()))


@pytest.mark.parametrize("tokens", [[1] * 6, [3, 1, 2, 5, 1, 4]])
def test_its_first_step_follows_the_slope_of_the_loss_after_the_virtual_step(tokens: list[int]) -> None:
    """By autograd through the step, and by differences; Adam's first moment is a tenth of the gradient."""
    strategy = MetaWeightNet(by=BY, hidden=5, reduction="token_mean")
    batch = weighing([0] * 6, tokens=tokens)
    parts = batch.tokens.double() / batch.tokens.sum()
    state = strategy.init(batch.index)
    found = strategy.learn(state, batch, looked_at(strategy, state, batch)).first
    leaves = {name: value.clone().requires_grad_() for name, value in state.net.items()}
    exact = torch.autograd.grad(after(leaves, parts), list(leaves.values()))
    for (name, value), expected in zip(found.items(), exact, strict=True):
        assert float((value / 0.1 - expected).abs().max()) < 1e-15
        flat = leaves[name].detach().flatten()
        for i in range(len(flat)):
            ends = []
            for e in (1e-5, -1e-5):
                moved = flat.clone()
                moved[i] += e
                ends.append(float(after({**state.net, name: moved.view_as(value)}, parts).detach()))
            assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(expected.flatten()[i]), abs=1e-8)
    assert max(float(g.abs().max()) for g in exact) > 1e-4, "so that the agreement says something"


def test_a_lesson_lowers_the_loss_after_the_step() -> None:
    strategy = MetaWeightNet(by=BY, hidden=5, reduction="sample_mean", meta_lr=1e-2)
    batch, parts = weighing([0] * 6), torch.ones(6).double() / 6
    state = strategy.init(batch.index)
    losses = []
    for _ in range(40):
        losses.append(float(after(state.net, parts).detach()))
        state = strategy.learn(state, batch, looked_at(strategy, state, batch))
    assert losses[0] == pytest.approx(looked_at(strategy, strategy.init(batch.index), batch).target_loss, abs=1e-12)
    assert losses[-1] < losses[0] - 1e-3 and state.steps == 40


def test_the_network_is_torchs() -> None:
    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Linear(1, 100), torch.nn.ReLU(), torch.nn.Linear(100, 1), torch.nn.Sigmoid())
    given = new_net(100, seed=3)
    theirs = {"0.weight": "0.weight", "0.bias": "0.bias", "2.weight": "1.weight", "2.bias": "1.bias"}
    assert all(torch.equal(p.double(), given[theirs[name]]) for name, p in net.named_parameters())
    losses = torch.rand(9) * 5
    parameters = {name: given[other] for name, other in theirs.items()}
    expected = functional_call(net.double(), parameters, (losses.double()[:, None],))[:, 0]
    assert torch.allclose(weights_of(given, losses), expected, atol=1e-12)


def test_weights_are_not_normalised() -> None:
    """The mean of the weights is a factor of the step, as in the paper."""
    strategy = MetaWeightNet()
    state = strategy.init(weighing([0]).index)
    losses, batch = torch.tensor([0.1, 3.0, 0.0]), weighing([0] * 3, tokens=[1, 1, 0])
    weights = strategy.weigh(state, losses, batch)
    assert weights.tolist() == [*weights_of(state.net, losses).float()[:2].tolist(), 0.0]
    assert 0.3 < float(weights[:2].mean()) < 0.7


def test_flipped_labels_count_less() -> None:
    """40% flipped labels, two classes, a clean target set of 20: rows of high loss lose their weight."""
    draw, truth = torch.Generator().manual_seed(0), torch.tensor([2.0, -1.0, 0.5]).double()
    x, target_x = drawn(0, 400, 3), drawn(1, 20, 3)
    clean, target_y = (x @ truth > 0).double(), (target_x @ truth > 0).double()
    flipped = torch.rand(400, generator=draw) < 0.4
    y = torch.where(flipped, 1 - clean, clean)
    target = logistic(target_x, target_y)
    strategy = MetaWeightNet(by=Lookahead(lr=0.5), reduction="sample_mean", meta_lr=1e-2)
    state, at = strategy.init(weighing([0]).index), {"w": torch.zeros(3, dtype=torch.float64)}
    for _ in range(200):
        ids = torch.randperm(400, generator=draw)[:40]
        rows, leaf, batch = logistic(x[ids], y[ids]), at["w"].clone().requires_grad_(), weighing([0] * 40)
        losses = rows({"w": leaf})
        shares = strategy.shares(state, losses.detach(), batch)
        (g,) = torch.autograd.grad((shares * losses).sum(), leaf)
        ahead = (leaf - 0.5 * g).detach().requires_grad_()
        (v,) = torch.autograd.grad(target({"w": ahead}).mean(), ahead)
        looked = Looked(losses.detach(), by_double_backward(rows, at, {"w": v}), 0.0)
        state = strategy.learn(state, batch, looked)
        losses = rows({"w": leaf})
        (g,) = torch.autograd.grad((strategy.weigh(state, losses.detach(), batch) * losses).mean(), leaf)
        at = {"w": at["w"] - 0.5 * g}
    weights = strategy.weigh(state, logistic(x, y)(at), weighing([0] * 400))
    assert float(weights[flipped].mean() / weights[~flipped].mean()) < 0.2
    assert float(((x @ at["w"] > 0).double() == clean).double().mean()) > 0.95


def test_when_lessons_come() -> None:
    strategy = MetaWeightNet(every=3, report_every=3)
    assert [step for step in range(10) if strategy.lessons(step, 10)] == [0, 3, 6, 9]
    assert [step for step in range(0, 31, 3) if strategy.reports(step, 31)] == [0, 9, 18, 27]
    assert strategy.lessons_in(10) == 4 and strategy.lesson_rows is None and strategy.aims()
    assert MetaWeightNet().lessons_in(10) == 10


@pytest.mark.parametrize("wrong", [{"hidden": 0}, {"every": 0}, {"meta_lr": -1.0}, {"by": Lookahead(lr=0.0)}])
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        MetaWeightNet(**wrong)
