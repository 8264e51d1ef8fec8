"""ADAPT: rows count by how much they resemble a target set, in the hidden states of the model in training.

Paper: ADAPT, arXiv 2605.05227. With phi(x) the last hidden states of x, averaged with weights t / (1 + ... + T) and
scaled to length 1, a row has the weight w = sigmoid(s / tau) with s = mean_v cos(phi(x), phi(v)) over target rows v,
which are embedded anew every R steps; or s = mean_v BM25(x, v). Weights are not normalised over the batch.
Differs from the paper: a mean of cosines is one inner product with the mean of the unit vectors, so one vector is kept;
rows are embedded by a pass of their own, in evaluation mode, one forward pass more per step; the loss stays divided by
the rows or tokens of the batch; `centred`, which takes off the mean state of the batch at the last renewal, is ours.
Beware: with tau 1, w is between 0.269 and 0.731, and raw hidden states all point the same way, so that w is nearly
constant; Adam is blind to a constant. Look at `weight_variation` in the record, and try `centred` or a smaller tau.
Letters: B rows of the global batch, M target rows, d numbers of a state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, WeighedBatch, Weighter
from regimen.signals.influence import unit


class AdaptState(NamedTuple):
    """anchor: (d,) float64 mean unit vector of the target; centre: (d,) taken off first. Empty before a renewal."""

    anchor: Tensor
    centre: Tensor


@dataclass(frozen=True, kw_only=True)
class Adapt(Weighter):
    """Weights sigmoid(s / tau), between 0 and 1.

    by: vectors of rows, compared with those of the target set; or one number per row that is s itself, as BM25.
    tau: above 0.
    every: R, optimizer steps between two embeddings of the target set.
    centred: whether the mean vector of the batch at the last renewal is taken off all vectors.
    """

    by: Signal
    tau: float = 1.0
    every: int = 50
    centred: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.tau < math.inf:
            raise ConfigError("tau divides similarities", got=self.tau, allowed="above 0")
        if self.every < 1:
            raise ConfigError("every counts optimizer steps", got=self.every, allowed="1 or more")

    @property
    def scope(self) -> Literal["example", "batch"]:
        """Signals of rows are measured for the whole batch at once."""
        return "batch"

    def init(self, index: PoolIndex) -> AdaptState:
        return AdaptState(torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.float64))

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def needs_of_target(self) -> tuple[Signal, ...]:
        """The target's vectors, unless the signal itself compares with the target."""
        return () if self.by.aims() else (self.by,)

    def renews_target(self, step: int) -> bool:
        return step % self.every == 0

    def weigh(self, state: AdaptState, losses: Tensor, batch: WeighedBatch) -> Tensor:
        """Weights (B,)."""
        values = batch.values[self.by].double()  # (B,) or (B, d)
        if values.dim() == 2:
            now = self._renewed(state, batch)
            values = unit(values - now.centre) @ now.anchor  # (B,)
        return (values / self.tau).sigmoid().to(losses)

    def observe(self, state: AdaptState, seen: Observation) -> AdaptState:
        return self._renewed(state, seen)

    def _renewed(self, state: AdaptState, seen: WeighedBatch | Observation) -> AdaptState:
        """The state with a new anchor, where the target was measured for this batch."""
        if self.by not in seen.target_values:
            return state
        target, rows = seen.target_values[self.by].double(), seen.values[self.by].double()  # (M, d), (B, d)
        centre = rows.mean(0) if self.centred else torch.zeros_like(rows[0])  # (d,)
        return AdaptState(unit(target - centre).mean(0), centre)

    def shows(self, state: AdaptState, index: PoolIndex) -> dict[str, Any]:
        """How alike the target rows are: the length of their mean unit vector, 1 where all point the same way."""
        return {"anchor_length": float(state.anchor.norm())} if len(state.anchor) else {}
