"""Small observations for the reference tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from regimen.core.index import PoolIndex
from regimen.core.seeding import generator
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, WeighedBatch
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


def weighing(
    domain: Sequence[int] | Tensor,
    *,
    tokens: Sequence[int] | Tensor | None = None,
    values: Mapping[Signal, Tensor] | None = None,
    index: PoolIndex | None = None,
    step: int = 0,
    total_steps: int = 100,
    targets: Tensor | None = None,
    seed: int = 0,
) -> WeighedBatch:
    """A global batch of rows 0, 1, ... of these domains, of one target token each if not given."""
    owner = torch.as_tensor(domain, dtype=torch.int64)
    ids = torch.arange(len(owner))
    counts = torch.ones_like(ids) if tokens is None else torch.as_tensor(tokens, dtype=torch.int64)
    if index is None:
        index = index_of([max(len(ids), 1)] * (int(owner.max()) + 1 if len(owner) else 1))
    domain_tokens = torch.zeros(len(index.domains), dtype=torch.float64).index_add_(0, owner, counts.double())
    return WeighedBatch(
        index=index,
        ids=ids,
        domain=owner,
        tokens=counts,
        domain_tokens=domain_tokens,
        values=dict(values or {}),
        step=step,
        total_steps=total_steps,
        generator=generator(seed),
        targets=targets,
    )


def observing(batch: WeighedBatch, values: Mapping[Signal, Tensor] | None = None) -> Observation:
    """What a weighter sees after the step on `batch`."""
    return Observation(
        step=batch.step + 1,
        total_steps=batch.total_steps,
        index=batch.index,
        ids=batch.ids,
        domain=batch.domain,
        tokens=batch.tokens,
        values={**batch.values, **(values or {})},
        horizon=0,
        generator=generator(0),
    )
