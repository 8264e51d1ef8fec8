"""The stream of global batches: the ids of batch t are a function of (plan, seed, cursor) alone.

Rows are served from lanes: one lane over the whole pool without a mixture, one per domain with one. A lane serves its
rows in passes, each a seeded permutation or the plan's order, without replacement; when the plan changes, the rows
served least often come first. No row is served more than `max_epochs` times.

Letters: N rows of the pool, M rows of a lane, B rows of the global batch, K domains, t optimizer steps done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regimen.core.draw import draw_labels, row_probabilities
from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.plan import Plan
from regimen.core.seeding import generator

_ROW_FIELDS = ("keep", "repeats", "sampling_weight", "order")


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


class Stream:
    """Serves global batches under a plan that may change between batches.

    seed: of the run. batch_size: B. total_steps: global batches of the whole run. max_epochs: repetition cap, None
    for no cap. Raises ConfigError where the budget needs more rows than the cap allows.
    """

    def __init__(
        self, index: PoolIndex, *, seed: int, batch_size: int, total_steps: int, max_epochs: int | None = 4
    ) -> None:
        self.index, self.seed, self.batch_size = index, seed, batch_size
        self.total_steps = total_steps
        self.cap = 255 if max_epochs is None else max_epochs
        self.uncapped = max_epochs is None
        self.step = 0
        self.served_rows = torch.zeros(len(index.domains), dtype=torch.int64)
        self.warnings: list[str] = []
        self._carry = torch.zeros(len(index.domains), dtype=torch.float64)
        self._base = torch.zeros(index.rows, dtype=torch.uint8)  # times each row was served before the last rebuild
        self._rebuilt_at = 0
        self._dry: set[str] = set()
        self._warned: set[str] = set()
        self.plan = Plan()
        self._install(self.plan)
        self._refuse_shortfall(None)

    # ---- the plan ---------------------------------------------------------------------------------------------

    def update(self, plan: Plan, *, rows: int | None = None) -> None:
        """Obey `plan` from the next batch on. rows: how many it must serve before it may change (default: the rest)."""
        old = self.plan
        if old.mixture is not None and plan.mixture is None:
            raise ConfigError("a mixture was taken back in mid-run", do="give the natural shares instead")
        rows_changed = any(getattr(old, name) is not getattr(plan, name) for name in _ROW_FIELDS)
        if not rows_changed and (old.mixture is None) == (plan.mixture is None):
            self.plan = plan
            self._set_mixture()
            return
        self._base, self._rebuilt_at = self.counts(), self.step
        self._install(plan)
        self._refuse_shortfall(rows)

    def _install(self, plan: Plan) -> None:
        self.plan = plan
        self._dry = set()
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
        self._set_mixture()

    def _set_mixture(self) -> None:
        mixture = self.plan.mixture
        if mixture is None:
            return
        shares = torch.tensor([mixture[name] for name in self.index.domains], dtype=torch.float64)
        empty = [name for lane, name in zip(self.lanes, self.index.domains, strict=True) if not len(lane.ids)]
        lost = [name for name in empty if mixture[name] > 0]
        if lost:
            self._warn(lost, f"no row is kept of {', '.join(lost)}: its share goes to the other domains")
        self._shares = shares
        if self.plan.draw == "one_domain" and self.batch_size % self.plan.draw_groups:
            raise ConfigError(
                "the global batch cannot be cut into equal parts of one domain each",
                got=f"{self.batch_size} rows, draw_groups={self.plan.draw_groups}",
                allowed=[g for g in range(1, self.batch_size + 1) if self.batch_size % g == 0],
                do="set strategies.<mixer>.draw_groups to one of these, or strategies.<mixer>.draw=multinomial",
            )

    def _refuse_shortfall(self, rows: int | None) -> None:
        needed = (self.total_steps - self.step) * self.batch_size if rows is None else rows
        if self.uncapped or self.plan.repeats is not None or self.plan.sampling_weight is not None:
            return
        left = sum(int((self.cap - self._base[lane.ids].long()).clamp(min=0).sum()) for lane in self.lanes)
        if left < needed:
            raise ConfigError(
                "the budget is larger than the data with its repetition cap",
                got=f"{needed} rows to serve from step {self.step} on, "
                f"{left} left of {sum(len(lane.ids) for lane in self.lanes)} rows x {self.cap} epochs",
                allowed=f"at most {left // self.batch_size} steps of {self.batch_size} rows",
                do="lower budget.steps (or .tokens, .epochs), raise dataset.max_epochs_per_domain, keep more rows, "
                "or set dataset.max_epochs_per_domain=null for no cap",
            )

    # ---- serving ----------------------------------------------------------------------------------------------

    def next(self) -> Tensor:
        """Ids (B,) int64 of the next global batch."""
        if self.plan.mixture is None:
            ids = self._take(self.lanes[0], self.batch_size)
            if len(ids) < self.batch_size:
                raise self._ran_dry()
        else:
            ids = self._mixed_batch()
        self.served_rows += torch.bincount(self.index.domain_of(ids), minlength=len(self.served_rows))
        self.step += 1
        return ids

    def _mixed_batch(self) -> Tensor:
        ids = torch.full((self.batch_size,), -1, dtype=torch.int64)
        labels, self._carry = self._labels(self.step, self._carry)
        for attempt in range(len(self.lanes) + 1):
            for k in sorted(set(labels[ids < 0].tolist())):
                slots = ((labels == k) & (ids < 0)).nonzero().flatten()
                rows = self._take(self.lanes[k], len(slots))
                ids[slots[: len(rows)]] = rows
            open_slots = (ids < 0).nonzero().flatten()
            if not len(open_slots):
                return ids
            p = self._probabilities()
            rng = generator(self.seed, "relabel", self.step, attempt)
            labels[open_slots] = torch.multinomial(p, len(open_slots), replacement=True, generator=rng)
        raise self._ran_dry()

    def _labels(self, step: int, carry: Tensor) -> tuple[Tensor, Tensor]:
        plan, size = self.plan, self.batch_size
        p = self._probabilities()
        return draw_labels(p, size, draw=plan.draw, groups=plan.draw_groups, carry=carry, seed=self.seed, step=step)

    def _probabilities(self) -> Tensor:
        """(K,) row probabilities over the domains that still have rows."""
        usable = torch.tensor([bool(len(lane.ids)) and lane.name not in self._dry for lane in self.lanes])
        shares = self._shares * usable
        if float(shares.sum()) <= 0:
            shares = usable.double()
        if float(shares.sum()) <= 0:
            raise self._ran_dry()
        return row_probabilities(shares, self.index.mean_tokens())

    def _take(self, lane: Lane, n: int) -> Tensor:
        """Up to n rows of a lane; fewer only where its repetition cap is reached."""
        parts: list[Tensor] = []
        while n > 0 and lane.name not in self._dry:
            part = self._current(lane)[lane.position : lane.position + n]
            parts.append(part)
            lane.position += len(part)
            n -= len(part)
            if n > 0:
                lane.passes, lane.position, lane.drawn, lane.queue = lane.passes + 1, 0, None, None
                if not len(self._current(lane)):
                    text = f"every row of {lane.name} was served {self.cap} times: the other domains fill its share"
                    self._warn([lane.name], text)
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    def _current(self, lane: Lane) -> Tensor:
        """The rows of the current pass of a lane in the order of service."""
        if lane.queue is None:
            ids = self._shuffled(lane, lane.passes)
            if self._rank is not None:
                if lane.drawn is None:
                    lane.drawn = min(self._rows_needed(lane), len(ids))
                halves = ids[: lane.drawn], ids[lane.drawn :]  # draw first, then order: architecture rule 6
                ids = torch.cat([part[self._rank[part].argsort(stable=True)] for part in halves])
            lane.queue = ids
        return lane.queue

    def _shuffled(self, lane: Lane, passes: int) -> Tensor:
        """The rows of one pass of a lane, in a seeded order that no strategy decided."""
        rng = generator(self.seed, "rows", lane.name, self._rebuilt_at, passes)
        ids = lane.ids
        if not self.uncapped and self.plan.sampling_weight is None:
            ids = ids[self._base[ids].long() + passes < self.cap]
        if not len(ids):
            return ids
        ids = self._expanded(ids, rng)
        ids = ids[torch.randperm(len(ids), generator=rng)]
        if passes == 0 and self._rebuilt_at:
            ids = ids[self._base[ids].argsort(stable=True)]  # rows served least often first
        return ids

    def _expanded(self, ids: Tensor, rng: torch.Generator) -> Tensor:
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

    def _rows_needed(self, lane: Lane) -> int:
        """Rows that the rest of the budget will take from a lane, if the mixture stays as it is."""
        if self.plan.mixture is None:
            return (self.total_steps - self.step) * self.batch_size
        k, total, carry = self.index.domains.index(lane.name), 0, self._carry
        for step in range(self.step, self.total_steps):
            labels, carry = self._labels(step, carry)
            total += int((labels == k).sum())
        return total

    # ---- looking ahead and back -------------------------------------------------------------------------------

    def available(self) -> Tensor:
        """(n,) int64 sorted ids of the rows of the pool that have not reached the repetition cap."""
        if self.uncapped:
            return torch.arange(self.index.rows)
        return (self.counts() < self.cap).nonzero().flatten()

    def groups(self) -> dict[str, Tensor]:
        """By lane, the sorted ids (n,) that the rest of the budget will draw in one pass: what an orderer orders."""
        now = self._base, self._rebuilt_at
        self._base, self._rebuilt_at = self.counts(), self.step  # as `update` with an order will do
        groups: dict[str, Tensor] = {}
        for lane in self.lanes:
            ids = self._shuffled(lane, 0)
            drawn = ids[: min(self._rows_needed(lane), len(ids))]
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

    def realised(self) -> dict[str, float]:
        """Share of target tokens served so far, by domain (by mean tokens per row)."""
        tokens = self.served_rows.double() * self.index.mean_tokens()
        shares = tokens / tokens.sum().clamp(min=1)
        return dict(zip(self.index.domains, shares.tolist(), strict=True))

    def _warn(self, names: list[str], text: str) -> None:
        self._dry.update(names)
        if text not in self._warned:
            self._warned.add(text)
            self.warnings.append(text)

    def _ran_dry(self) -> ConfigError:
        return ConfigError(
            f"the data ran out at step {self.step}: every row that may be drawn reached its repetition cap",
            got=f"dataset.max_epochs_per_domain={self.cap}, {sum(len(lane.ids) for lane in self.lanes)} rows kept",
            do="raise dataset.max_epochs_per_domain (null: no cap), keep more rows, or lower the budget",
        )

    # ---- state ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the batches to come: the cursor and the plan."""
        plan = self.plan
        return {
            "step": self.step,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "pool": self.index.fingerprint,
            "rebuilt_at": self._rebuilt_at,
            "base": self._base if self._rebuilt_at else None,
            "carry": self._carry,
            "dry": sorted(self._dry),
            "served_rows": self.served_rows.clone(),
            "warned": sorted(self._warned),
            "lanes": [{"passes": x.passes, "position": x.position, "drawn": x.drawn} for x in self.lanes],
            "plan": plan_state(plan),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved cursor; refuses one of another seed, batch size or pool."""
        for name, mine in (("seed", self.seed), ("batch_size", self.batch_size), ("pool", self.index.fingerprint)):
            if state[name] != mine:
                raise ConfigError(
                    f"the checkpoint was made with another {name.replace('_', ' ')}",
                    got=mine,
                    allowed=state[name],
                    do="resume with the data and settings of the run, or start a new run",
                )
        self.step, self._rebuilt_at, self._warned = state["step"], state["rebuilt_at"], set(state["warned"])
        self._carry, self.served_rows = state["carry"], state["served_rows"].clone()
        if state["base"] is not None:
            self._base = state["base"]
        self._install(Plan(**state["plan"]))
        self._dry = set(state["dry"])
        for lane, saved in zip(self.lanes, state["lanes"], strict=True):
            lane.passes, lane.position, lane.drawn = saved["passes"], saved["position"], saved["drawn"]


def plan_state(plan: Plan) -> dict[str, Any]:
    """The plan as tensors, numbers, strings and dictionaries, so that `Plan(**plan_state(plan))` equals it."""
    mixture = None if plan.mixture is None else dict(plan.mixture)
    rows = {name: getattr(plan, name) for name in _ROW_FIELDS}
    return {**rows, "mixture": mixture, "draw": plan.draw, "draw_groups": plan.draw_groups}
