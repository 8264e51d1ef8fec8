"""The stream of global batches: the ids of batch t are a function of (plan, seed, cursor) alone.

Without a mixture rows come from the whole pool at once; with one, each row's domain is drawn first. Every rank holds
the same stream, so all agree with no communication, and the number of ranks changes nothing.

Letters: N rows of the pool, B rows of the global batch, K domains, t optimizer steps done.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regimen.core.draw import draw_labels, row_probabilities
from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.lanes import Lane, Lanes
from regimen.core.plan import Plan
from regimen.core.seeding import generator

_ROW_FIELDS = ("keep", "repeats", "sampling_weight", "order")


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
        self.step = 0
        self.served_rows = torch.zeros(len(index.domains), dtype=torch.int64)
        self.warnings: list[str] = []
        self._carry = torch.zeros(len(index.domains), dtype=torch.float64)
        self._dry: set[str] = set()
        self._warned: set[str] = set()
        self._future: tuple[int, Plan, Tensor] | None = None  # step, plan, rows that each domain will be asked for
        self._lanes = Lanes(index, seed=seed, cap=max_epochs, needed=self._rows_needed)
        self._refuse_shortfall(None)

    # ---- the plan ---------------------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        return self._lanes.plan

    def update(self, plan: Plan, *, rows: int | None = None) -> None:
        """Obey `plan` from the next batch on. rows: how many it must serve before it may change (default: the rest)."""
        old = self.plan
        if old.mixture is not None and plan.mixture is None:
            raise ConfigError("a mixture was taken back in mid-run", do="give the natural shares instead")
        rows_changed = any(getattr(old, name) is not getattr(plan, name) for name in _ROW_FIELDS)
        if not rows_changed and (old.mixture is None) == (plan.mixture is None):
            self._lanes.plan = plan
            self._check_mixture()
            return
        self._lanes.rebuild(plan, step=self.step)
        self._dry = set()
        self._check_mixture()
        self._refuse_shortfall(rows)

    def _check_mixture(self) -> None:
        mixture = self.plan.mixture
        if mixture is None:
            return
        lost = [lane.name for lane in self._lanes.lanes if not len(lane.ids) and mixture[lane.name] > 0]
        if lost:
            self._warn(lost, f"no row is kept of {', '.join(lost)}: its share goes to the other domains")
        if self.plan.draw == "one_domain" and self.batch_size % self.plan.draw_groups:
            raise ConfigError(
                "the global batch cannot be cut into equal parts of one domain each",
                got=f"{self.batch_size} rows, draw_groups={self.plan.draw_groups}",
                allowed=[g for g in range(1, self.batch_size + 1) if self.batch_size % g == 0],
                do="set strategies.<mixer>.draw_groups to one of these, or strategies.<mixer>.draw=multinomial",
            )

    def _refuse_shortfall(self, rows: int | None) -> None:
        needed = (self.total_steps - self.step) * self.batch_size if rows is None else rows
        left = self._lanes.left()
        if left is not None and left < needed:
            kept = sum(len(lane.ids) for lane in self._lanes.lanes)
            raise ConfigError(
                "the budget is larger than the data with its repetition cap",
                got=f"{needed} rows to serve from step {self.step} on, "
                f"{left} left of {kept} rows x {self._lanes.cap} epochs",
                allowed=f"at most {left // self.batch_size} steps of {self.batch_size} rows",
                do="lower budget.steps (or .tokens, .epochs), raise dataset.max_epochs_per_domain, keep more rows, "
                "or set dataset.max_epochs_per_domain=null for no cap",
            )

    # ---- serving ----------------------------------------------------------------------------------------------

    def next(self) -> Tensor:
        """Ids (B,) int64 of the next global batch."""
        if self.plan.mixture is None:
            ids = self._lanes.take(self._lanes.lanes[0], self.batch_size)
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
        for attempt in range(len(self._lanes.lanes) + 1):
            for k in sorted(set(labels[ids < 0].tolist())):
                slots = ((labels == k) & (ids < 0)).nonzero().flatten()
                rows = self._take(self._lanes.lanes[k], len(slots))
                ids[slots[: len(rows)]] = rows
            open_slots = (ids < 0).nonzero().flatten()
            if not len(open_slots):
                return ids
            p = self._probabilities()
            rng = generator(self.seed, "relabel", self.step, attempt)
            labels[open_slots] = torch.multinomial(p, len(open_slots), replacement=True, generator=rng)
        raise self._ran_dry()

    def _take(self, lane: Lane, n: int) -> Tensor:
        """Up to n rows of a domain; one that runs dry is left out from then on."""
        if lane.name in self._dry:
            return torch.empty(0, dtype=torch.int64)
        rows = self._lanes.take(lane, n)
        if len(rows) < n:
            text = f"every row of {lane.name} was served {self._lanes.cap} times: the other domains fill its share"
            self._warn([lane.name], text)
        return rows

    def _labels(self, step: int, carry: Tensor) -> tuple[Tensor, Tensor]:
        plan, size = self.plan, self.batch_size
        p = self._probabilities()
        return draw_labels(p, size, draw=plan.draw, groups=plan.draw_groups, carry=carry, seed=self.seed, step=step)

    def _probabilities(self) -> Tensor:
        """(K,) row probabilities over the domains that still have rows."""
        mixture = self.plan.mixture
        assert mixture is not None
        lanes = self._lanes.lanes
        usable = torch.tensor([bool(len(lane.ids)) and lane.name not in self._dry for lane in lanes])
        shares = torch.tensor([mixture[lane.name] for lane in lanes], dtype=torch.float64) * usable
        if float(shares.sum()) <= 0:
            shares = usable.double()
        if float(shares.sum()) <= 0:
            raise self._ran_dry()
        return row_probabilities(shares, self.index.mean_tokens())

    def _rows_needed(self, lane: str) -> int:
        """Rows that the rest of the budget will take from a lane, if the mixture stays as it is."""
        if self.plan.mixture is None:
            return (self.total_steps - self.step) * self.batch_size
        if self._future is None or self._future[0] != self.step or self._future[1] is not self.plan:
            total, carry = torch.zeros(len(self.index.domains), dtype=torch.int64), self._carry
            for step in range(self.step, self.total_steps):
                labels, carry = self._labels(step, carry)
                total += torch.bincount(labels, minlength=len(total))
            self._future = (self.step, self.plan, total)
        return int(self._future[2][self.index.domains.index(lane)])

    # ---- looking ahead and back -------------------------------------------------------------------------------

    def available(self) -> Tensor:
        """(n,) int64 sorted ids of the rows of the pool that have not reached the repetition cap."""
        if self._lanes.cap is None:
            return torch.arange(self.index.rows)
        return (self.counts() < self._lanes.cap).nonzero().flatten()

    def groups(self) -> dict[str, Tensor]:
        """By lane, the sorted ids (n,) that the rest of the budget will draw in one pass: what an orderer orders."""
        return self._lanes.groups(step=self.step)

    def counts(self) -> Tensor:
        """(N,) uint8 times that each row was served, saturating at 255."""
        return self._lanes.counts()

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
            got=f"dataset.max_epochs_per_domain={self._lanes.cap}, "
            f"{sum(len(lane.ids) for lane in self._lanes.lanes)} rows kept",
            do="raise dataset.max_epochs_per_domain (null: no cap), keep more rows, or lower the budget",
        )

    # ---- state ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the batches to come: the cursor and the plan."""
        return {
            "step": self.step,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "pool": self.index.fingerprint,
            "carry": self._carry,
            "dry": sorted(self._dry),
            "warned": sorted(self._warned),
            "served_rows": self.served_rows.clone(),
            "lanes": self._lanes.state_dict(),
            "plan": plan_state(self.plan),
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
        self.step, self._carry = state["step"], state["carry"]
        self.served_rows = state["served_rows"].clone()
        self._lanes.load_state_dict(state["lanes"], Plan(**state["plan"]))
        self._dry, self._warned = set(state["dry"]), set(state["warned"])


def plan_state(plan: Plan) -> dict[str, Any]:
    """The plan as tensors, numbers, strings and dictionaries, so that `Plan(**plan_state(plan))` equals it."""
    mixture = None if plan.mixture is None else dict(plan.mixture)
    rows = {name: getattr(plan, name) for name in _ROW_FIELDS}
    return {**rows, "mixture": mixture, "draw": plan.draw, "draw_groups": plan.draw_groups}
