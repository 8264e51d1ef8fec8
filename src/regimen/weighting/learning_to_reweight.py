"""Learning to reweight: examples count by how far a step on each of them would lower the loss of a target set.

Paper: Learning to Reweight Examples for Robust Deep Learning, arXiv 1803.09050, algorithm 1. The weights are a step of
gradient descent from weights of 0: w_i proportional to max(<g_i, v>, 0), v the target's gradient there.
Differs from the paper: weights have mean 1, not sum 1; the target rows are the same in every step, where the paper
draws a batch of them. Where no row has a positive product all weights are 0: that step's gradient is 0, which under an
optimizer with momentum or weight decay still moves the parameters, where the paper has plain SGD.
Letters: n rows of the global batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regimen.core.signal import Signal
from regimen.core.strategy import WeighedBatch, Weighter
from regimen.signals.alignment import TargetAlignment
from regimen.weighting.in_run_values import check_reduction, step_shares

_BY = TargetAlignment()


@dataclass(frozen=True, kw_only=True)
class LearningToReweight(Weighter):
    """Weights n max(u_i, 0) / sum_j max(u_j, 0), u_i how far the target's loss falls with the weight of row i.

    by: the inner products. reduction: of the objective, which says how much of a step is a row's.
    """

    by: TargetAlignment = _BY
    reduction: Literal["token_mean", "sample_mean"] = "token_mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_reduction(self.reduction)

    @property
    def scope(self) -> Literal["example", "batch"]:
        """Products are normalised over the whole batch."""
        return "batch"

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def weigh(self, state: Any, losses: Tensor, batch: WeighedBatch) -> Tensor:
        """Weights like `losses` (n,), mean 1, or all 0."""
        return reweighted(step_shares(batch.tokens, self.reduction) * batch.values[self.by]).to(losses.dtype)


def reweighted(falls: Tensor) -> Tensor:
    """Weights n max(u, 0) / sum max(u, 0) (n,) of u = `falls` (n,); all 0 where none is positive."""
    positive = falls.clamp(min=0)
    total = positive.sum()
    return positive * len(falls) / total if bool(total > 0) else torch.zeros_like(positive)
