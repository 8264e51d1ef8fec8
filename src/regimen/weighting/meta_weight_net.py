"""Meta-Weight-Net: a small network of a row's loss learns its weight, step by step, for the loss of a target set.

Paper: Meta-Weight-Net, arXiv 1902.07379, algorithm 1 and section 3.2; code xjtushujun/meta-weight-net. The weight is
v_i = sigmoid(MLP(l_i)), the network one hidden layer of 100 units. Before a step a virtual step is made with weights
v_i on its own rows; the network takes a step of Adam down the target's loss after it; then the rows are weighed anew.
With c_i the part of row i in the loss of the step and J the target's loss after the virtual step,
    dJ/dv_i = - lr c_i <grad L(theta'), g_i>,   dJ/dPsi = sum_i dJ/dv_i dv_i/dPsi.
Differs from the paper: the virtual step has a rate of its own, `by.lr`, and is taken with dropout off; Adam is blind to
its size but for where the target's gradient is taken. Weights are not normalised, as in algorithm 1, so that their mean
is a factor of the learning rate: near 1/2 at first.
Letters: n rows, H hidden units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regimen.core.checks import check_counts
from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.learning import LearnedWeighter
from regimen.core.lookahead import Looked
from regimen.core.observation import WeighedBatch
from regimen.weighting.bilevel import weight_gradient
from regimen.weighting.descent import Moments, adam, no_moments
from regimen.weighting.in_run_values import step_shares


class NetState(NamedTuple):
    """net: parameters of the network. first, second, steps: Adam's. target_loss: after the last virtual step."""

    net: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    steps: int
    target_loss: float


@dataclass(frozen=True, kw_only=True)
class MetaWeightNet(LearnedWeighter):
    """Weights sigmoid(MLP(l)) of rows' mean losses l, between 0 and 1.

    hidden, seed: of the network. meta_lr: of Adam on it; 0 leaves it as it was drawn.
    every: steps between two lessons. report_every: lessons between two lines of them in the record, for each of which
        the whole target set is measured.
    """

    target_rows: int | None = 8
    hidden: int = 100
    seed: int = 0
    meta_lr: float = 1e-3
    every: int = 1
    report_every: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "hidden", "every", "report_every")
        if not 0 <= self.meta_lr < math.inf:
            raise ConfigError("meta_lr is Adam's learning rate", got=self.meta_lr, allowed="0 or more")

    def init(self, index: PoolIndex) -> NetState:
        net = new_net(self.hidden, seed=self.seed)
        return NetState(net, *no_moments(net), math.nan)

    def lessons(self, step: int, total_steps: int) -> int:
        return int(step % self.every == 0)

    def reports(self, step: int, total_steps: int) -> bool:
        return step // self.every % self.report_every == 0

    def shares(self, state: NetState, losses: Tensor, batch: WeighedBatch) -> Tensor:
        return weights_of(state.net, losses) * step_shares(batch.tokens, self.reduction)

    def weigh(self, state: NetState, losses: Tensor, batch: WeighedBatch) -> Tensor:
        """Weights like `losses` (n,); 0 for a row without target tokens."""
        return (weights_of(state.net, losses) * (batch.tokens > 0)).to(losses.dtype)

    def learn(self, state: NetState, batch: WeighedBatch, looked: Looked) -> NetState:
        """The state after one step of Adam on the network."""
        slope = weight_gradient(looked.products, step_shares(batch.tokens, self.reduction), lr=self.by.lr)  # (n,)
        leaves = {name: value.clone().requires_grad_() for name, value in state.net.items()}
        with torch.enable_grad():
            found = torch.autograd.grad(weights_of(leaves, looked.losses), list(leaves.values()), slope)
        moments = Moments(state.first, state.second, state.steps)
        net, moments = adam(state.net, dict(zip(leaves, found, strict=True)), moments, lr=self.meta_lr)
        return NetState(net, *moments, looked.target_loss)

    def shows(self, state: NetState, index: PoolIndex) -> dict[str, Any]:
        """Lessons so far, and the weight that the network gives to losses of 0, 2, 4 and 8 nats."""
        at = ("0", "2", "4", "8")
        weights = weights_of(state.net, torch.tensor([float(loss) for loss in at])).tolist()
        return {"lessons": state.steps, "weight_of_loss": dict(zip(at, weights, strict=True))}


def new_net(hidden: int, *, seed: int) -> dict[str, Tensor]:
    """Parameters of the network, drawn by `seed` as torch draws those of linear layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(1, hidden), nn.Linear(hidden, 1))
        return {name: p.detach().double() for name, p in net.named_parameters()}


def weights_of(net: dict[str, Tensor], losses: Tensor) -> Tensor:
    """Weights (n,) float64 of losses (n,), on the CPU."""
    inputs = losses.double().cpu()[:, None]  # (n, 1)
    hidden = (inputs @ net["0.weight"].T + net["0.bias"]).relu()  # (n, H)
    return (hidden @ net["1.weight"].T + net["1.bias"])[:, 0].sigmoid()
