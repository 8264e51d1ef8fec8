"""Influence: how much an update on a row lowers the loss of each target row, to first order, over a run's checkpoints.

Paper: LESS, arXiv 2402.04333, sections 2 to 4: S_ij = sum_c w_c cos(Gamma_ic, g_jc). Gamma_ic is the direction of
Adam's next step on row i at checkpoint c, g_jc the plain gradient of target row j, both of the row's mean token loss,
and w_c the mean learning rate of the steps before c. The cosine in place of the inner product keeps short rows, whose
gradients are long, from winning.
Differs from the paper: gradients are sketched by random signs and a fold instead of a dense random matrix; both keep
inner products in expectation, with a relative error of 1 / sqrt(d). The paper's code is followed where it goes its own
way: eps inside the square root of Adam's denominator (`sketch.adam`), moments without the correction for their start at
0, and cosines averaged over the rows of a subtask, where the text averages gradients (`val_agg`). Weights sum to 1,
which scales all values alike. `contrast`, off unless asked for, is ours: some rows resemble every gradient, and win for
any target; what a row does for the pool's own rows is taken off, as DSIR (arXiv 2302.03169) weighs target against pool.
DataFlex's online LESS is `run=null`: one checkpoint, the model in training, with eps outside the square root.
Letters: n rows, M target rows, S subtasks, C wanted directions, R rows of the contrast, d numbers of a sketch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.measuring import Sketch
from regimen.core.seeding import generator
from regimen.core.signal import Meter, Signal

ValAgg = Literal["mean_of_cos", "cos_of_mean"]
Own = Callable[[Tensor], Tensor]
"""From ids (R,) to whether each of b updates is, or has in it, that of each of these rows: (b, R) bool."""
Along = Callable[[Tensor, Own], Tensor]
"""From unit updates (b, d) to values (b, C)."""

_ROWS = 1024  # whose sketches are held at once
_ADAM = Sketch(adam="inside")
_CHECKPOINTS = 4  # of a finished run, before it is known: LESS keeps one per epoch of four


@dataclass(frozen=True, kw_only=True)
class CheckpointInfluence(Signal):
    """Cosines of the rows' updates with wanted directions, summed over checkpoints. Subclasses say what is wanted.

    run: the folder of a finished run, whose checkpoints are summed with their weights; null takes the model in
        training, once. Adapters that are untrained have gradients of 0: a decision must come after some steps.
    sketch: of the rows' updates. Wanted directions are plain gradients with the same random signs, at every checkpoint.
    """

    by_row: ClassVar[bool] = True
    run: str | None = None
    sketch: Sketch = _ADAM

    def directions(self, at: Meter) -> Tensor:
        """Wanted directions (C, d) under the model of `at`: a row's inner products with them are its values."""
        raise NotImplementedError(type(self).__name__)

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        """(n, C) float32; 0 for a row without target tokens. Never more than some rows' sketches are held."""
        total = torch.zeros(())
        for at, weight in self._visited(meter):
            along = self.along(at)
            values = [
                along(unit(at.sketches(part, self.sketch)), partial(torch.eq, part[:, None]))
                for part in torch.split(ids, _ROWS)
            ]
            total = total + weight * torch.cat(values)  # (n, C)
        return total

    def along(self, at: Meter) -> Along:
        """What gives values (b, C) of unit updates (b, d) under the model of `at`."""
        wanted = at.once(self, partial(self.directions, at))  # (C, d)
        return lambda updates, own: updates @ wanted.T

    def passes(self) -> float:
        """A forward and a backward pass per checkpoint; of a run that is yet to be trained, four are expected."""
        return self.sketch.passes * self._expected

    def backwards(self) -> float:
        return float(self._expected)

    @property
    def _expected(self) -> int:
        """Checkpoints."""
        return 1 if self.run is None else _CHECKPOINTS

    def models(self) -> tuple[str | None, ...]:
        return (self.run,)

    def _visited(self, meter: Meter) -> Iterator[tuple[Meter, float]]:
        if self.run is None:
            yield meter, 1.0
            return
        for checkpoint in meter.checkpoints(self.run):
            yield meter.under(checkpoint.path), checkpoint.weight


@dataclass(frozen=True, kw_only=True)
class Influence(CheckpointInfluence):
    """Influence (n, M) float32 of rows on the target rows, which are the columns.

    val_agg: `mean_of_cos` gives each target row its own column. `cos_of_mean` averages the target gradients of a
        subtask first and gives each of its rows that column, so that a mean over the subtask's columns changes nothing.
    contrast: R rows of the pool, drawn at random by the seed of the sketch: the mean influence of a row on those of
        them that are others is taken off all its values. More than there are takes all; null takes nothing off.
    """

    val_agg: ValAgg = "mean_of_cos"
    contrast: int | None = None

    def __post_init__(self) -> None:
        check_val_agg(self.val_agg)
        if self.contrast is not None and self.contrast < 1:
            raise ConfigError("contrast counts rows of the pool", got=self.contrast, allowed="1 or more, or null")

    def aims(self) -> bool:
        return True

    def beside(self, target: PoolIndex) -> float:
        """A forward and a backward pass over the target rows, per checkpoint."""
        return self.sketch.passes * self._expected * float(target.inputs_of(torch.arange(target.rows)).sum())

    def work(self, rows: int) -> float:
        return super().work(rows) + self.sketch.passes * self._expected * (self.contrast or 0)

    def directions(self, at: Meter) -> Tensor:
        """(M, d). Raises ConfigError where the pool has no target set."""
        target = at.target
        rows = torch.arange(target.index.rows)
        gradients = target.sketches(rows, replace(self.sketch, adam="none"))  # (M, d)
        return columns(gradients, target.index, self.val_agg)

    def along(self, at: Meter) -> Along:
        wanted = super().along(at)
        if self.contrast is None:
            return wanted
        draw = generator("contrast", self.sketch.seed, at.index.rows)
        others = torch.randperm(at.index.rows, generator=draw)[: self.contrast].sort().values  # (R,)
        plain = replace(self.sketch, adam="none")
        gradients = at.once((self, "contrast"), lambda: unit(at.sketches(others, plain)))  # (R, d)

        def beyond(updates: Tensor, own: Own) -> Tensor:
            itself = own(others)  # (b, R): a row is most like itself, which says nothing
            total = (updates @ gradients.T).masked_fill(itself, 0.0).sum(1, keepdim=True)  # (b, 1)
            return wanted(updates, own) - total / (~itself).sum(1, keepdim=True).clamp(min=1)

        return beyond


def check_val_agg(val_agg: str) -> None:
    """Raises ConfigError for an unknown way to average over the rows of a subtask."""
    if val_agg not in ("mean_of_cos", "cos_of_mean"):
        raise ConfigError(
            "unknown average over the rows of a subtask", got=f"val_agg={val_agg}", allowed="mean_of_cos, cos_of_mean"
        )


def columns(gradients: Tensor, index: PoolIndex, val_agg: ValAgg) -> Tensor:
    """Wanted directions (M, d) of target rows with gradients (M, d); index: of the target set."""
    if val_agg == "mean_of_cos":
        return unit(gradients)
    subtask = index.domain_of(torch.arange(index.rows))  # (M,)
    return unit(group_means(gradients, subtask, len(index.domains)))[subtask]


def unit(vectors: Tensor) -> Tensor:
    """Vectors (m, d) of length 1; a zero vector stays 0."""
    largest = vectors.abs().amax(dim=1, keepdim=True)  # (m, 1): squares of tiny numbers would be 0
    scaled = vectors / torch.where(largest > 0, largest, 1.0)
    return torch.nn.functional.normalize(scaled, dim=1)


def group_means(vectors: Tensor, group: Tensor, groups: int) -> Tensor:
    """Means (S, d) of vectors (m, d) by group (m,); 0 where a group is empty."""
    sums = torch.zeros(groups, vectors.shape[1], dtype=vectors.dtype).index_add_(0, group, vectors)
    return sums / torch.bincount(group, minlength=groups).clamp(min=1)[:, None]
