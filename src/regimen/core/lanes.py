"""Rows in the order of service: one lane over the whole pool without a mixture, one per domain with one.

A lane serves its rows in passes, each a seeded permutation or the plan's order, without replacement; when the plan
changes, the rows served least often come first, and no row is served more than `cap` times. Draws with replacement know
nothing of what was served.

Letters: N rows of the pool, M rows of a lane.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regimen.core.index import PoolIndex
from regimen.core.plan import Plan
from regimen.core.seeding import generator

_MOST = 255  # as often as a row's times served are told apart
_CHUNK = 1 << 24  # ids that are looked at together, where int64 copies of all would be large


def id_type(rows: int) -> torch.dtype:
    """The smallest type that holds every id of `rows` rows, and `rows` itself."""
    return torch.int32 if rows < 2**31 else torch.int64


def _picked(values: Tensor, ids: Tensor) -> Tensor:
    """values[ids] for ids of any type, with no int64 copy of them."""
    return values.index_select(0, ids)


@dataclass
class Lane:
    """A cursor over the rows `ids` (M,), sorted: `passes` passes done, `position` rows of the current `queue` served.

    ids: a range, which takes no memory, where no row is left out.
    drawn: rows of the current pass that the budget will reach, as it looked when the pass began; they are ordered
    first, the others follow. None before the pass has begun.
    queue: (M,) in the smallest type that holds an id, since it is kept for as long as the pass lasts.
    """

    name: str
    ids: Tensor | range
    passes: int = 0
    position: int = 0
    drawn: int | None = None
    queue: Tensor | None = None


class Lanes:
    """The lanes of one plan, and how often each row was served. cap: None for no repetition cap.

    needed: rows that the rest of the budget will take from a lane, by its name; asked when a pass is ordered.
    """

    def __init__(self, index: PoolIndex, *, seed: int, cap: int | None, needed: Callable[[str], int]) -> None:
        self.index, self.seed, self.cap, self._needed = index, seed, cap, needed
        self._dtype = id_type(index.rows)
        self._base = torch.zeros(index.rows, dtype=torch.uint8)  # times each row was served before the last rebuild
        self._rebuilt_at = 0
        self.install(Plan())

    def install(self, plan: Plan) -> None:
        """Lay out the rows of a plan; cursors start anew."""
        self.plan = plan
        self._rank: Tensor | None = None
        if plan.order is not None:
            self._rank = torch.full((self.index.rows,), self.index.rows, dtype=self._dtype)
            self._rank[plan.order] = torch.arange(len(plan.order), dtype=self._dtype)
        if plan.mixture is None:
            self.lanes = [Lane("all", range(self.index.rows) if plan.keep is None else plan.keep)]
        else:
            edges = self.index.offsets if plan.keep is None else torch.searchsorted(plan.keep, self.index.offsets)
            ends = list(itertools.pairwise(edges.tolist()))
            parts = [range(*end) if plan.keep is None else plan.keep[slice(*end)] for end in ends]
            self.lanes = [Lane(name, part) for name, part in zip(self.index.domains, parts, strict=True)]

    def rebuild(self, plan: Plan, *, step: int) -> None:
        """Change to another plan after `step` steps, remembering what was served."""
        self._base, self._rebuilt_at = self.counts(), step
        self.install(plan)

    def take(self, lane: Lane, n: int) -> Tensor:
        """Up to n rows of a lane, int64; fewer only where all its rows reached the cap."""
        parts: list[Tensor] = []
        while n > 0:
            part = self._current(lane)[lane.position : lane.position + n].long()
            parts.append(part)
            lane.position += len(part)
            n -= len(part)
            if n > 0:
                lane.passes, lane.position, lane.drawn, lane.queue = lane.passes + 1, 0, None, None
                if not len(self._current(lane)):
                    break
        return torch.cat(parts)

    def _current(self, lane: Lane) -> Tensor:
        """The rows of the current pass of a lane in the order of service."""
        if lane.queue is None:
            ids = self._shuffled(lane, lane.passes)
            if self._rank is not None:
                if lane.drawn is None:
                    lane.drawn = min(self._needed(lane.name), len(ids))
                halves = ids[: lane.drawn], ids[lane.drawn :]  # draw first, then order: a short budget sees all scores
                ids = torch.cat([part[_picked(self._rank, part).argsort(stable=True)] for part in halves])
            lane.queue = ids
        return lane.queue

    def _shuffled(self, lane: Lane, passes: int) -> Tensor:
        """The rows of one pass of a lane, in a seeded order that no strategy decided."""
        rng = generator(self.seed, "rows", lane.name, self._rebuilt_at, passes)
        ids = self._allowed(lane, passes)
        if not len(ids):
            return ids
        ids = self._expanded(ids, rng)
        ids = ids.index_select(0, torch.randperm(len(ids), generator=rng, dtype=id_type(len(ids))))
        if passes == 0 and self._rebuilt_at and self.plan.sampling_weight is None:  # a draw knows of no other
            served = _picked(self._base, ids)
            ids = torch.cat([ids[served == times] for times in torch.unique(served)])  # rows served least often first
        return ids

    def _allowed(self, lane: Lane, passes: int) -> Tensor:
        """The rows of a lane that pass `passes` may serve, sorted."""
        ids = lane.ids
        if isinstance(ids, range):
            ids = torch.arange(ids.start, ids.stop, dtype=self._dtype)
        ids = ids.to(self._dtype)
        if self.cap is None or self.plan.sampling_weight is not None:
            return ids
        left = self.cap - passes  # rows served fewer times before the last rebuild are served in this pass
        if left <= 0:
            return ids[:0]
        return ids if left > _MOST or not self._rebuilt_at else ids[_picked(self._base, ids) < left]

    def _expanded(self, ids: Tensor, rng: torch.Generator) -> Tensor:
        """Rows repeated, or drawn with replacement, as the plan says."""
        plan = self.plan
        if plan.repeats is None and plan.sampling_weight is None:
            return ids
        assert plan.keep is not None
        where = torch.searchsorted(plan.keep, ids.long())
        if plan.repeats is not None:
            return ids.repeat_interleave(plan.repeats[where])
        assert plan.sampling_weight is not None
        edges = plan.sampling_weight[where].double().cumsum(0)
        u = torch.rand(len(ids), generator=rng, dtype=torch.float64) * edges[-1]
        return ids[torch.searchsorted(edges, u, right=True).clamp(max=len(ids) - 1)]

    def groups(self, *, step: int) -> dict[str, Tensor]:
        """By lane, the sorted ids (n,) that the rest of the budget will draw in one pass: what an orderer orders."""
        now = self._base, self._rebuilt_at
        self._base, self._rebuilt_at = self.counts(), step  # as `rebuild` with an order will do
        groups: dict[str, Tensor] = {}
        for lane in self.lanes:
            ids = self._shuffled(lane, 0)
            drawn = ids[: min(self._needed(lane.name), len(ids))]
            if len(drawn):
                here = torch.zeros(self.index.rows, dtype=torch.bool)
                for part in torch.split(drawn, _CHUNK):
                    here[part.long()] = True
                groups[lane.name] = here.nonzero().flatten()
        self._base, self._rebuilt_at = now
        return groups

    def counts(self) -> Tensor:
        """(N,) uint8 times that each row was served, saturating at 255."""
        counts = self._base.to(torch.int32)
        for lane in self.lanes:
            if self.plan.sampling_weight is None:
                if lane.passes:
                    self._add_whole(counts, lane)
                served = []
            else:
                served = [self._shuffled(lane, p) for p in range(lane.passes)]
            if lane.position:
                served.append(self._current(lane)[: lane.position])
            for ids in served:
                for part in torch.split(ids, _CHUNK):
                    counts.index_add_(0, part, torch.ones_like(part, dtype=torch.int32))
        return counts.clamp_(max=_MOST).to(torch.uint8)

    def _add_whole(self, counts: Tensor, lane: Lane) -> None:
        """Add the whole passes of a lane to `counts` (N,). Each serves every row that it may, in whatever order."""
        ids = lane.ids
        where = slice(ids.start, ids.stop) if isinstance(ids, range) else ids
        times = torch.tensor(lane.passes, dtype=torch.int32)
        if self.cap is not None:
            times = (self.cap - self._base[where].int()).clamp_(0, lane.passes)
        if self.plan.repeats is not None:
            assert self.plan.keep is not None
            rows = torch.arange(ids.start, ids.stop) if isinstance(ids, range) else ids
            times = times * self.plan.repeats[torch.searchsorted(self.plan.keep, rows)].int()
        counts[where] += times

    def left(self) -> int | None:
        """Rows that the lanes can still serve from the last rebuild on; None without a cap on them."""
        if self.cap is None or self.plan.repeats is not None or self.plan.sampling_weight is not None:
            return None
        left = 0
        for lane in self.lanes:
            ids = lane.ids
            base = self._base[ids.start : ids.stop] if isinstance(ids, range) else _picked(self._base, ids)
            rows = torch.bincount(base, minlength=_MOST + 1)  # (256,) by times served
            left += int(((self.cap - torch.arange(_MOST + 1)).clamp(min=0) * rows).sum())
        return left

    def state_dict(self) -> dict[str, Any]:
        """The cursors, and what was served before the last rebuild."""
        return {
            "rebuilt_at": self._rebuilt_at,
            "base": self._base if self._rebuilt_at else None,
            "lanes": [{"passes": x.passes, "position": x.position, "drawn": x.drawn} for x in self.lanes],
        }

    def load_state_dict(self, state: dict[str, Any], plan: Plan) -> None:
        """Go on under `plan` from saved cursors."""
        self._rebuilt_at = state["rebuilt_at"]
        if state["base"] is not None:
            self._base = state["base"]
        self.install(plan)
        for lane, saved in zip(self.lanes, state["lanes"], strict=True):
            lane.passes, lane.position, lane.drawn = saved["passes"], saved["position"], saved["drawn"]
