"""Joint-update-aware weights: rows count that resemble a target set and do not repeat what the rest of the batch says.

Source: the weighter of this name in DataFlex (OpenDCAI/DataFlex, 1.1.0); no paper. With z_i the unit hidden state of
row i, u that of the target set's mean state, s_i = <u, z_i> and S_ij = <z_i, z_j>, weights maximise
    <s, w> - beta / 2 <w, S w> + tau H(w),   H the entropy, over w >= 0 with sum 1.
S is positive semidefinite, so there is one maximum, the fixed point w = softmax((s - beta S w) / tau), which a few
damped steps of w <- (1 - damping) w + damping softmax(...) from uniform weights come near.
Differs from the source: rows and target are embedded in evaluation mode, where it embeds rows with dropout on; u is of
the whole target set, where it takes the next eval batch at each renewal, of one row by default; rows without target
tokens are left out; weights have mean 1, not sum 1.
Beware: plain steps (damping 1) are sure to converge only where beta times the largest eigenvalue of S is below 2 tau.
Hidden states resemble each other, so that eigenvalue is near B: for large batches lower beta or the damping.
Letters: B rows of the global batch, M target rows, d numbers of a state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from regimen.core.checks import check_counts, check_positive
from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, WeighedBatch, Weighter
from regimen.signals.embedding import Embedding
from regimen.signals.influence import unit

_BY = Embedding(layer=-1, pooling="last", normalise=False)


class JointState(NamedTuple):
    """anchor: (d,) float64 u, empty before the first renewal."""

    anchor: Tensor


@dataclass(frozen=True, kw_only=True)
class JointUpdateAware(Weighter):
    """Weights B softmax((s - beta S w) / tau) at their fixed point.

    by: vectors of rows and of the target set.
    beta: 0 or more, how much is taken off what other rows say as well. tau: above 0; smaller is sharper.
    iterations: towards the fixed point. damping: above 0, up to 1.
    every: optimizer steps between two embeddings of the target set.
    """

    by: Signal = _BY
    beta: float = 0.1
    tau: float = 0.05
    iterations: int = 5
    damping: float = 1.0
    every: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "iterations", "every")
        check_positive(self, "tau")
        if not 0 <= self.beta < math.inf:
            raise ConfigError("beta is a price for repetition", got=self.beta, allowed="0 or more")
        if not 0 < self.damping <= 1:
            raise ConfigError("damping is a part of a step", got=self.damping, allowed="above 0, up to 1")

    @property
    def scope(self) -> Literal["example", "batch"]:
        """Rows are compared with all others."""
        return "batch"

    def init(self, index: PoolIndex) -> JointState:
        return JointState(torch.empty(0, dtype=torch.float64))

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def needs_of_target(self) -> tuple[Signal, ...]:
        return (self.by,)

    def renews_target(self, step: int) -> bool:
        return step % self.every == 0

    def weigh(self, state: JointState, losses: Tensor, batch: WeighedBatch) -> Tensor:
        """Weights (B,), mean 1 over rows with target tokens, 0 for the others."""
        counted = batch.tokens > 0  # (B,)
        states = unit(batch.values[self.by].double()[counted])  # (n, d)
        aligned = states @ self._renewed(state, batch).anchor  # (n,)
        found = fixed_point(
            *(aligned, states @ states.T),
            beta=self.beta,
            tau=self.tau,
            iterations=self.iterations,
            damping=self.damping,
        )
        weights = torch.zeros(len(losses), dtype=torch.float64)
        weights[counted] = found * len(found)
        return weights.to(losses)

    def observe(self, state: JointState, seen: Observation) -> JointState:
        return self._renewed(state, seen)

    def _renewed(self, state: JointState, seen: WeighedBatch | Observation) -> JointState:
        """The state with a new anchor, where the target was measured for this batch."""
        if self.by not in seen.target_values:
            return state
        return JointState(unit(seen.target_values[self.by].double().mean(0, keepdim=True))[0])


def fixed_point(
    aligned: Tensor, gram: Tensor, *, beta: float, tau: float, iterations: int, damping: float = 1.0
) -> Tensor:
    """Weights (n,) after damped steps towards w = softmax((s - beta S w) / tau), s = `aligned` (n,), S = `gram`."""
    weights = torch.full_like(aligned, 1 / max(len(aligned), 1))
    for _ in range(iterations):
        proposed = ((aligned - beta * (gram @ weights)) / tau).softmax(0)
        weights = (1 - damping) * weights + damping * proposed
    return weights
