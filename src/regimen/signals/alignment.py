"""How far a step on each row would lower the loss of a target: inner products of gradients.

Letters: n rows asked for, M rows of the target set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.lookahead import PASSES, Lookahead
from regimen.core.seeding import generator
from regimen.core.signal import Meter, Signal

_BY = Lookahead(lr=0.0)


@dataclass(frozen=True, kw_only=True)
class TargetAlignment(Signal):
    """Inner products (n,) of the gradients of rows' mean losses with that of the target set's mean loss.

    by: how they are taken; its lr must be 0, for a step is no property of a single row.
    target_rows: rows of the target set, drawn once for the run by `seed`; null takes all, whose gradient is measured
        for every batch.
    """

    by: Lookahead = _BY
    target_rows: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.by.lr:
            raise ConfigError(
                "the target's gradient is taken where the model is", got=f"by.lr={self.by.lr}", allowed="0"
            )
        check_target_rows(self.target_rows)

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        """(n,). Raises ConfigError where the pool has no target set."""
        targets = some_of(meter.target.index.rows, self.target_rows, generator("target rows", self.seed))
        return meter.lookahead(ids, targets, self.by).products

    def passes(self) -> float:
        return PASSES[self.by.estimator]

    def aims(self) -> bool:
        return True


def check_target_rows(rows: int | None) -> None:
    """Raises ConfigError for a number of target rows that is none."""
    if rows is not None and rows < 1:
        raise ConfigError("target_rows counts rows", got=rows, allowed="1 or more, or null for all")


def some_of(rows: int, count: int | None, draw: torch.Generator) -> Tensor:
    """`count` of `rows` rows drawn at random, ids in order; all of them for null or where there are no more."""
    if count is None or count >= rows:
        return torch.arange(rows)
    return torch.randperm(rows, generator=draw)[:count].sort().values
