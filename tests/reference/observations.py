"""Small observations for the reference tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regimen.core.index import PoolIndex
from regimen.core.seeding import generator
from regimen.core.signal import Signal
from regimen.core.strategy import Observation
from regimen.signals.loss import Loss

LOSS = Loss()


def index_of(rows: Sequence[int], tokens: int | Sequence[int] = 1) -> PoolIndex:
    """A pool with `rows` rows per domain, named a, b, c, ...; `tokens` per row, or per row of each domain."""
    counts = torch.tensor(rows)
    per_row = tokens if isinstance(tokens, int) else torch.tensor(tokens, dtype=torch.int32).repeat_interleave(counts)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return PoolIndex(domains=tuple("abcdefghijklmnopqrstuvwxyz"[: len(rows)]), offsets=offsets, target_tokens=per_row)


def seeing(
    scores: Sequence[float] | Tensor = (),
    *,
    ids: Sequence[int] | Tensor | None = None,
    index: PoolIndex | None = None,
    by: Signal = LOSS,
    step: int = 0,
    total_steps: int = 100,
    horizon: int = 1,
    seed: int = 0,
) -> Observation:
    """Rows `ids` (0, 1, ... if not given) with their scores."""
    values = torch.as_tensor(scores, dtype=torch.float64)
    rows = torch.arange(len(values)) if ids is None else torch.as_tensor(ids, dtype=torch.int64)
    if index is None:
        index = index_of([int(rows.max()) + 1 if len(rows) else 1])
    return Observation(
        step=step,
        total_steps=total_steps,
        index=index,
        ids=rows,
        domain=index.domain_of(rows),
        tokens=index.tokens_of(rows),
        values={by: values},
        horizon=horizon,
        generator=generator(seed),
    )
