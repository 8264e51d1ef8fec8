"""What strategies see: rows with their measurements, and for weighters the batch at hand.

Letters: n rows seen, B rows of the global batch, K domains, M rows of the target set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.signal import Signal


@dataclass(frozen=True, kw_only=True, eq=False)
class Observation:
    """What a strategy sees: in `observe` the global batch of the step that ended, in `decide` the rows asked for.

    step, total_steps: optimizer steps done and to be done in all.
    index: the pool's domains and row counts.
    ids: (n,) int64; domain: (n,) int64; tokens: (n,) int64 target tokens.
    values: (n,) float64 per signal that the strategy watches (in observe) or needs (in decide); (K, ...) per signal of
        domains. A weighter observes what it needed to weigh the batch, too.
    horizon: rows that will be served until this strategy decides again, or until the end.
    generator: seeded by (run seed, strategy name, step).
    target: the pool's target set, whose domains are the subtasks; None where it has none.
    target_values: (M, ...) of every row of the target set per signal that `needs_of_target` names.
    lr: learning rate, in `observe` of the step that ended, times the factor by which its gradient was clipped; in
        `decide` of the next one.
    """

    step: int
    total_steps: int
    index: PoolIndex
    ids: Tensor
    domain: Tensor
    tokens: Tensor
    values: Mapping[Signal, Tensor]
    horizon: int
    generator: torch.Generator
    target: PoolIndex | None = None
    target_values: Mapping[Signal, Tensor] = field(default_factory=dict)
    lr: float = 0.0

    @property
    def progress(self) -> float:
        """Part of the run that is done, 0 to 1."""
        return self.step / max(self.total_steps, 1)

    def scores(self, by: Signal) -> Tensor:
        """Values (n,) float64 of a signal to rank rows by. Raises ConfigError where one is NaN, which has no rank."""
        values = self.values[by]
        missing = values.isnan()
        if bool(missing.any()):
            raise ConfigError(
                f"{by} is NaN for {int(missing.sum())} of {len(values)} rows, which cannot be ranked",
                got=f"ids {self.ids[missing][:5].tolist()} ...",
                do="use another signal, or keep only rows that have a score",
            )
        return values


@dataclass(frozen=True, kw_only=True, eq=False)
class WeighedBatch:
    """The rows to weigh: of a micro-batch for `scope="example"`, of the whole global batch for `scope="batch"`.

    Where tokens are weighed (`unit="token"`), values of token signals are (n, L), and targets (n, L) bool tells which
    positions are predicted; rows are padded on the right to the longest.

    index: the pool's domains. ids, domain, tokens: (n,) int64. domain_tokens: (K,) float64 target tokens of each domain
    in the global batch. values: (n,) float64 per token signal that the weighter needs, (K, ...) per signal of domains,
    (B, ...) per signal of rows, which needs scope `batch`. target, target_values, lr: as in `Observation`.
    step: optimizer steps done. generator: seeded by (run seed, strategy, step).
    """

    index: PoolIndex
    ids: Tensor
    domain: Tensor
    tokens: Tensor
    domain_tokens: Tensor
    values: Mapping[Signal, Tensor]
    step: int
    total_steps: int
    generator: torch.Generator
    targets: Tensor | None = None
    target: PoolIndex | None = None
    target_values: Mapping[Signal, Tensor] = field(default_factory=dict)
    lr: float = 0.0
