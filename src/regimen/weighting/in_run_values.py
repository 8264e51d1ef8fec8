"""In-Run Data Shapley: values rows while a run trains on them, and changes nothing about the run.

Paper: Data Shapley in One Training Run, arXiv 2406.11011. The value of a row is the sum, over the
steps that it was in, of its Shapley value in what the step takes off the loss of a target set.
Differs from the paper: higher is more valuable, so signs are flipped; inner products are of sketches, and a pass of its
own measures them, with dropout off, where the paper reads them off the backward pass of the step; at second order the
Hessian is the empirical Fisher matrix of the target rows, in the sketch, not a Hessian-vector product; the target is
the whole target set. The update is taken for SGD's with the learning rate of the step, before the gradient is clipped:
under Adam and under clipping the values are a proxy, and their order is what to use.
Letters: N rows of the pool, B rows of the global batch, M target rows, d numbers of a sketch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, WeighedBatch, Weighter
from regimen.signals.gradients import GradientSketch, target_gradients
from regimen.weighting.shapley import first_order, fisher_product, second_order

_BY = GradientSketch()


class ValuesState(NamedTuple):
    """values: (N,) float64, NaN for a row that was in no step."""

    values: Tensor


@dataclass(frozen=True, kw_only=True)
class InRunValues(Weighter):
    """Weighs every row with 1, and gives `scores`, the rows' values.

    by: the gradients, of mean token losses.
    order: 1, or 2, which takes off what rows that resemble each other do twice.
    reduction: of the objective, which says how much of a step is a row's.
    """

    by: GradientSketch = _BY
    order: int = 1
    reduction: Literal["token_mean", "sample_mean"] = "token_mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gradients(self.by, self.reduction)
        if self.order not in (1, 2):
            raise ConfigError("unknown order of the expansion", got=f"order={self.order}", allowed="1, 2")

    @property
    def scope(self) -> Literal["example", "batch"]:
        """Gradients are measured of the whole batch."""
        return "batch"

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def needs_of_target(self) -> tuple[Signal, ...]:
        return (self.by,)

    def init(self, index: PoolIndex) -> ValuesState:
        return ValuesState(torch.full((index.rows,), torch.nan, dtype=torch.float64))

    def weigh(self, state: ValuesState, losses: Tensor, batch: WeighedBatch) -> Tensor:
        """Ones (B,)."""
        return torch.ones_like(losses)

    def observe(self, state: ValuesState, seen: Observation) -> ValuesState:
        target = target_gradients(seen, self.by)  # (M, d)
        shares = step_shares(seen.tokens, self.reduction)  # (B,)
        steps = seen.lr * shares[:, None] * seen.values[self.by].double()  # (B, d)
        if self.order == 1:
            found = first_order(steps, target.mean(0))  # (B,)
        else:
            found = second_order(steps, target.mean(0), fisher_product(target, steps.sum(0)))  # (B,)
        values = state.values.clone()
        values[seen.ids] = values[seen.ids].nan_to_num(0.0)
        return ValuesState(values.index_add_(0, seen.ids, found))

    def gives(self, state: ValuesState, index: PoolIndex) -> dict[str, Any]:
        """`scores`: (N,) float64, NaN for a row that was in no step."""
        return {"scores": state.values}


def check_gradients(by: GradientSketch, reduction: str) -> None:
    """Raises ConfigError for gradients of another loss than a row's mean, and for an unknown reduction."""
    sketch = by.sketch
    if (sketch.reduction, sketch.adam, sketch.labels, by.model) != ("mean", "none", "given", None):
        raise ConfigError(
            "rows are valued by plain gradients of their mean loss under the model in training",
            got=f"reduction={sketch.reduction}, adam={sketch.adam}, labels={sketch.labels}, model={by.model}",
            do="set by.sketch.reduction=mean, by.sketch.adam=none, by.sketch.labels=given and by.model=null",
        )
    check_reduction(reduction)


def check_reduction(reduction: str) -> None:
    """Raises ConfigError for a reduction that no objective has."""
    if reduction not in ("token_mean", "sample_mean"):
        raise ConfigError("unknown reduction", got=f"reduction={reduction}", allowed="token_mean, sample_mean")


def step_shares(tokens: Tensor, reduction: str) -> Tensor:
    """Parts (B,) float64 of the gradient of a step that are each row's mean-loss gradient.

    The objective is sum_i l_i / N: with `sample_mean` l_i is a mean loss and N is B; with `token_mean` l_i is a sum of
    as many losses as the row has target tokens (B,), and N is all of them.
    """
    if reduction == "sample_mean":
        return torch.full((len(tokens),), 1 / len(tokens), dtype=torch.float64)
    return tokens.double() / tokens.sum().clamp(min=1)
