"""Focal loss (arXiv 1708.02002): its gradient in the logits in closed form, by differences, and by autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from regimen.core.errors import ConfigError
from regimen.weighting.focal import Focal, focal_factor, focal_slope
from tests.reference.observations import weighing

GAMMAS = [0.0, 0.5, 1.0, 2.0, 5.0]


def focal_loss(logits: Tensor, target: int, gamma: float) -> Tensor:
    log_p = logits.log_softmax(0)[target]
    return -((1 - log_p.exp()) ** gamma) * log_p


def weights_of(losses: Tensor, **fields: object) -> Tensor:
    weighter = Focal(**fields)  # type: ignore[arg-type]
    targets = losses > 0
    batch = weighing([0] * len(losses), tokens=targets.long().flatten(1).sum(1), targets=targets)
    return weighter.checked(weighter.weigh(None, losses, batch), losses)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_weighted_gradient_is_that_of_the_focal_loss(gamma: float) -> None:
    torch.manual_seed(0)
    for logits in torch.randn(20, 5, dtype=torch.float64) * 3:
        z = logits.clone().requires_grad_()
        loss = F.cross_entropy(z[None], torch.tensor([2]))
        weight = weights_of(loss.detach().view(1, 1), gamma=gamma)
        (ours,) = torch.autograd.grad(weight[0, 0] * loss, z)
        p = logits.softmax(0)[2]
        closed = (1 - p) ** gamma * (gamma * p * p.log() + p - 1)  # in the target's logit
        assert float(ours[2]) == pytest.approx(float(closed), abs=1e-12)
        step = 1e-5 * torch.eye(5, dtype=torch.float64)
        for k in range(5):
            ends = [float(focal_loss(logits + sign * step[k], 2, gamma)) for sign in (1, -1)]
            assert float(ours[k]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-7)


def test_gamma_zero_is_cross_entropy() -> None:
    losses = torch.rand(3, 4) + 0.01
    for norm in ("sum", "count"):
        for detach in (True, False):
            assert bool((weights_of(losses, gamma=0.0, norm=norm, detach=detach) == 1).all())


def test_detached_and_normalised() -> None:
    losses = torch.tensor([[0.5, 1.0, 0.0], [2.0, 0.0, 0.0]], dtype=torch.float64)  # 0: not predicted
    p = (-losses).exp()
    expected = (1 - p) ** 2
    torch.testing.assert_close(weights_of(losses, detach=True), expected)
    # The sum of w l over the sum of w is the mean of N w / sum w times l.
    torch.testing.assert_close(weights_of(losses, detach=True, norm="sum"), expected * 3 / expected.sum())
    slopes = weights_of(losses, norm="sum")
    torch.testing.assert_close(slopes * expected.sum() / 3, weights_of(losses))


def test_rows() -> None:
    losses = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
    weighter = Focal(level="row", gamma=1.0)
    assert (weighter.unit, weighter.scope, Focal(norm="sum").scope) == ("row", "example", "batch")
    weights = weighter.weigh(None, losses, weighing([0, 0, 0], tokens=[2, 0, 7]))
    p = (-losses).exp()
    assert weights.tolist() == pytest.approx(((1 - p + losses * p) * torch.tensor([1, 0, 1])).tolist())


def test_limits() -> None:
    tiny = torch.tensor([0.0, 1e-30, 1e-8, 1e4], dtype=torch.float64)
    for gamma in (0.5, 2.0):
        slope = focal_slope(tiny, gamma)
        assert bool(torch.isfinite(slope).all())
        assert float(slope[-1]) == 1 and float(slope[0]) == 0
        assert float(slope[2]) == pytest.approx((1 + gamma) * float(focal_factor(tiny, gamma)[2]), rel=1e-6)
    assert weights_of(torch.zeros(2, 3), norm="sum").tolist() == [[0] * 3] * 2


@pytest.mark.parametrize(("field", "value"), [("gamma", -1.0), ("level", "domain"), ("norm", "max")])
def test_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        Focal(**{field: value})  # type: ignore[arg-type]
