"""Lanes said in the plainest way: every row of every pass is drawn again, all in int64. The lean ones must agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regimen.core.index import PoolIndex
from regimen.core.plan import Plan
from regimen.core.seeding import generator


@dataclass
class Lane:
    """A cursor over the rows `ids` (M,): `passes` passes done, `position` rows of the current `queue` served.

    drawn: rows of the current pass that the budget will reach, as it looked when the pass began; they are ordered
    first, the others follow. None before the pass has begun.
    """

    name: str
    ids: Tensor
    passes: int = 0
    position: int = 0
    drawn: int | None = None
    queue: Tensor | None = None


class PlainLanes:
    """The lanes of one plan, and how often each row was served. cap: None for no repetition cap.

    needed: rows that the rest of the budget will take from a lane, by its name; asked when a pass is ordered.
    """

    def __init__(self, index: PoolIndex, *, seed: int, cap: int | None, needed: Callable[[str], int]) -> None:
        self.index, self.seed, self.cap, self._needed = index, seed, cap, needed
        self._base = torch.zeros(index.rows, dtype=torch.uint8)  # times each row was served before the last rebuild
        self._rebuilt_at = 0
        self.install(Plan())

    def install(self, plan: Plan) -> None:
        """Lay out the rows of a plan; cursors start anew."""
        self.plan = plan
        self._rank: Tensor | None = None
        if plan.order is not None:
            self._rank = torch.full((self.index.rows,), self.index.rows, dtype=torch.int64)
            self._rank[plan.order] = torch.arange(len(plan.order))
        kept = torch.arange(self.index.rows) if plan.keep is None else plan.keep
        if plan.mixture is None:
            self.lanes = [Lane("all", kept)]
        else:
            owner = self.index.domain_of(kept)
            self.lanes = [Lane(name, kept[owner == k]) for k, name in enumerate(self.index.domains)]

    def rebuild(self, plan: Plan, *, step: int) -> None:
        """Change to another plan after `step` steps, remembering what was served."""
        self._base, self._rebuilt_at = self.counts(), step
        self.install(plan)

    def take(self, lane: Lane, n: int) -> Tensor:
        """Up to n rows of a lane; fewer only where all its rows reached the cap."""
        parts: list[Tensor] = []
        while n > 0:
            part = self._current(lane)[lane.position : lane.position + n]
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
                ids = torch.cat([part[self._rank[part].argsort(stable=True)] for part in halves])
            lane.queue = ids
        return lane.queue

    def _shuffled(self, lane: Lane, passes: int) -> Tensor:
        """The rows of one pass of a lane, in a seeded order that no strategy decided."""
        rng = generator(self.seed, "rows", lane.name, self._rebuilt_at, passes)
        ids = lane.ids
        if self.cap is not None and self.plan.sampling_weight is None:
            ids = ids[self._base[ids].long() + passes < self.cap]
        if not len(ids):
            return ids
        ids = self._expanded(ids, rng)
        ids = ids[torch.randperm(len(ids), generator=rng)]
        if passes == 0 and self._rebuilt_at and self.plan.sampling_weight is None:  # a draw knows of no other
            ids = ids[self._base[ids].argsort(stable=True)]  # rows served least often first
        return ids

    def _expanded(self, ids: Tensor, rng: torch.Generator) -> Tensor:
        """Rows repeated, or drawn with replacement, as the plan says."""
        plan = self.plan
        if plan.repeats is None and plan.sampling_weight is None:
            return ids
        assert plan.keep is not None
        where = torch.searchsorted(plan.keep, ids)
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
                groups[lane.name] = torch.unique(drawn)
        self._base, self._rebuilt_at = now
        return groups

    def counts(self) -> Tensor:
        """(N,) uint8 times that each row was served, saturating at 255."""
        counts = self._base.long()
        for lane in self.lanes:
            whole = [self._shuffled(lane, p) for p in range(lane.passes)]
            part = [self._current(lane)[: lane.position]] if lane.position else []
            for ids in whole + part:
                counts.index_add_(0, ids, torch.ones_like(ids))
        return counts.clamp(max=255).to(torch.uint8)

    def left(self) -> int | None:
        """Rows that the lanes can still serve from the last rebuild on; None without a cap on them."""
        if self.cap is None or self.plan.repeats is not None or self.plan.sampling_weight is not None:
            return None
        return sum(int((self.cap - self._base[lane.ids].long()).clamp(min=0).sum()) for lane in self.lanes)

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
