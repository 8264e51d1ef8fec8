"""Embedding log: keeps the gradients of all rows that a run trains on, and at its end gives their value embeddings.

Paper: Capturing the Temporal Dependence of Training Data Influence, arXiv 2412.09538. The run itself is left as it is.
Differs from the paper: gradients are logged in the run's memory and its checkpoints, within `max_mb`, not on disk; they
are measured by a pass of their own, with dropout off; one sketch is taken of all parameters unless `blocks` says
otherwise; a row that was in several steps has the sum of its embeddings, as if it were left out of all of them.
The recursion is that of SGD with the learning rate of each step, before the gradient is clipped: under Adam and under
clipping it is a proxy.
`curvature=ggn` takes the Gauss-Newton matrix of later steps in place of the empirical Fisher matrix, from one more
gradient of each row, at labels that the model draws; the paper has the Fisher matrix alone. One draw per row is a noisy
estimate: on the regressions of `value_embedding`, six rows a step, values rank rows as leaving each out does with a
mean correlation of 0.97, where the Fisher matrix has 0.96 and the exact Gauss-Newton matrix 0.99; with steps two and a
half times as long 0.78, 0.75 and 0.94.
Letters: N rows of the pool, B rows of the global batch, T steps, S distinct rows that were trained on, d of a sketch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.measuring import Sketch
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, WeighedBatch, Weighter
from regimen.signals.gradients import GradientSketch
from regimen.weighting.in_run_values import check_gradients, step_shares
from regimen.weighting.value_embedding import LoggedStep, embed

_BY = GradientSketch(sketch=Sketch(dimensions=1024))


class LogState(NamedTuple):
    """By step: ids (B,) int64, gradients (B, d) float32, shares (B,) float64 of the rows in the step.

    factors: (B, d) float32 of the Gauss-Newton matrix, where that is the curvature.
    """

    ids: tuple[Tensor, ...] = ()
    gradients: tuple[Tensor, ...] = ()
    shares: tuple[Tensor, ...] = ()
    factors: tuple[Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EmbeddingLog(Weighter):
    """Weighs every row with 1, and gives `embeddings` (S, d) and `embedded` (S,), the ids they belong to.

    by: the gradients, of mean token losses.
    reduction: of the objective, which says how much of a step is a row's.
    lr_mode: `scaled` by the learning rate of each step; `none` leaves it and the row's part out, for parity with code
        that does, and diverges unless gradients are short.
    curvature: of later steps, by which a row's effect fades: `fisher`, of the rows' gradients; `ggn`, Gauss-Newton's.
    blocks: runs of equal length that a sketch is cut into and that are taken not to interact; 1 for none. With
        `by.sketch.kind=factored` one per layer is what the paper does.
    max_mb: megabytes that the log may hold; at the end, about five times as much is used for a moment.
    """

    by: GradientSketch = _BY
    reduction: Literal["token_mean", "sample_mean"] = "token_mean"
    lr_mode: Literal["scaled", "none"] = "scaled"
    curvature: Literal["fisher", "ggn"] = "fisher"
    blocks: int = 1
    max_mb: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gradients(self.by, self.reduction)
        if self.lr_mode not in ("scaled", "none"):
            raise ConfigError("unknown lr_mode", got=f"lr_mode={self.lr_mode}", allowed="scaled, none")
        if self.curvature not in ("fisher", "ggn"):
            raise ConfigError("unknown curvature", got=f"curvature={self.curvature}", allowed="fisher, ggn")
        for name, value in (("blocks", self.blocks), ("max_mb", self.max_mb)):
            if value < 1:
                raise ConfigError(f"{name} of the log must be positive", got=value, allowed="1 or more")

    @property
    def scope(self) -> Literal["example", "batch"]:
        """Gradients are measured of the whole batch."""
        return "batch"

    @property
    def factors_by(self) -> GradientSketch | None:
        """The sketches of the Gauss-Newton matrix, or None without."""
        if self.curvature == "fisher":
            return None
        return replace(self.by, sketch=replace(self.by.sketch, labels="drawn"))

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,) if self.factors_by is None else (self.by, self.factors_by)

    def init(self, index: PoolIndex) -> LogState:
        return LogState()

    def weigh(self, state: LogState, losses: Tensor, batch: WeighedBatch) -> Tensor:
        """Ones (B,). Raises ConfigError before the first step where the log of all steps would be too large."""
        if not state.ids:
            self._refuse_size(*batch.values[self.by].shape, steps=batch.total_steps - batch.step)
        return torch.ones_like(losses)

    def observe(self, state: LogState, seen: Observation) -> LogState:
        if self.lr_mode == "scaled":
            shares = seen.lr * step_shares(seen.tokens, self.reduction)  # (B,)
        else:
            shares = torch.ones(len(seen.ids), dtype=torch.float64)
        by = self.factors_by
        return LogState(
            (*state.ids, seen.ids),
            (*state.gradients, seen.values[self.by].float()),
            (*state.shares, shares),
            state.factors if by is None else (*state.factors, seen.values[by].float()),
        )

    def gives(self, state: LogState, index: PoolIndex) -> dict[str, Any]:
        """`embeddings` (S, d) float32 and `embedded` (S,) int64. Raises ConfigError where the recursion diverges."""
        if not state.ids:
            return {}
        factors = state.factors or (None,) * len(state.ids)
        steps = [
            LoggedStep(gradients, shares, f, None if f is None else shares)
            for gradients, shares, f in zip(state.gradients, state.shares, factors, strict=True)
        ]
        found = embed(steps, blocks=self.blocks).embeddings  # T of (B, d)
        rows, place = torch.unique(torch.cat(state.ids), return_inverse=True)  # (S,), (T * B,)
        sums = torch.zeros(len(rows), found[0].shape[1], dtype=torch.float64).index_add_(0, place, torch.cat(found))
        return {"embeddings": sums.float(), "embedded": rows}

    def _refuse_size(self, rows: int, dimensions: int, *, steps: int) -> None:
        if dimensions % self.blocks:
            raise ConfigError(
                "a sketch does not divide into so many blocks",
                got=f"blocks={self.blocks}, {dimensions} numbers of a sketch",
                do="set strategies.dvemb_log.blocks to a divisor, e.g. the number of layers that are sketched",
            )
        kept = rows if self.curvature == "fisher" else 2 * rows
        megabytes = steps * kept * dimensions * 4 / 1e6
        if megabytes > self.max_mb:
            raise ConfigError(
                "the log of gradients would be larger than max_mb",
                got=f"{megabytes:.0f} MB: {steps} steps x {kept} rows x {dimensions} numbers x 4 bytes",
                allowed=f"strategies.dvemb_log.max_mb={self.max_mb}",
                do="lower strategies.dvemb_log.by.sketch.dimensions (or rank), budget.steps or "
                "trainer.global_batch_size of the valuation, or raise max_mb",
            )
