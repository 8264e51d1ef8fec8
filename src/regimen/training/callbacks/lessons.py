"""The lessons of a weighter that learns: what it measures and learns before a step of training.

Every rank measures its part of a lesson and learns the same from the whole. What is drawn depends on the run's seed and
the step alone, so that a run that goes on from a checkpoint repeats the lessons of the step that follows it, and the
steps of the model that they make.
Letters: n rows of a lesson, M rows of the target set, K domains.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.learning import Learner
from regimen.core.observation import WeighedBatch
from regimen.core.seeding import generator
from regimen.training.context import RunContext


class Lessons:
    """Gives the weighter called `name` its lessons."""

    def __init__(self, name: str, strategy: Learner, context: RunContext) -> None:
        self.name, self.strategy, self.context = name, strategy, context

    def before(self, trainer: pl.Trainer, state: Any, step: int) -> Any:
        """The state after the lessons that come before the step that follows `step` steps; they go to the record."""
        strategy, context = self.strategy, self.context
        count = strategy.lessons(step, context.total_steps)
        if not count:
            return state
        assert context.board is not None
        context.board.turn_to(step)
        before = context.clock.snapshot("measuring")
        seen, held_out = self.target_rows()
        for number in range(count):
            state = self._learnt(state, step, number, seen)
        if strategy.reports(step, context.total_steps):
            line = {"lessons": count, **self._losses(seen, held_out)}
            cost = context.clock.since("measuring", before)
            context.write(trainer, {"step": step, "kind": "lessons", "strategy": self.name, **line, "cost": cost})
        return state

    def target_rows(self) -> tuple[Tensor, Tensor]:
        """Ids of the target rows that lessons see, and of the others. Raises ConfigError if there is none to see."""
        target = self.context.target
        rows = 0 if target is None else target.rows
        order = torch.randperm(rows, generator=generator(self.context.seed, self.name, "held out"))
        held = round(self.strategy.held_out * rows)
        if held == rows:
            raise ConfigError(
                "no row of the target set is left to learn from",
                got=f"{rows} rows, strategies.{self.name}.held_out={self.strategy.held_out}",
                do="add rows to dataset.target, or lower held_out",
            )
        return order[held:].sort().values, order[:held].sort().values

    def _learnt(self, state: Any, step: int, number: int, seen: Tensor) -> Any:
        """The state after one lesson."""
        strategy, board = self.strategy, self.context.board
        assert board is not None
        draw = generator(self.context.seed, self.name, "lesson", step, number)
        ids = self.context.loader.global_ids
        if strategy.lesson_rows is not None:
            ids = self._drawn(strategy.lesson_rows, draw)
        targets = seen
        if strategy.target_rows is not None and strategy.target_rows < len(seen):
            targets = seen[torch.randperm(len(seen), generator=draw)[: strategy.target_rows]]
        batch = self._batch(ids, step, draw)
        learnt = strategy.lesson(state, batch, board.meter, targets)
        if strategy.keeps:
            board.forget()
        return learnt

    def _drawn(self, count: int, draw: torch.Generator) -> Tensor:
        """Ids (n,) of rows that may be served: any of them alike, or in the proportions of the mixture, where one may
        come twice.
        """
        loader, index = self.context.loader, self.context.index
        ids = loader.stream.available()
        if loader.plan.keep is not None:
            ids = ids[torch.isin(ids, loader.plan.keep)]
        if not len(ids):  # the last rows of the budget are being served
            ids = loader.global_ids
        if loader.plan.mixture is None:
            return ids[torch.randperm(len(ids), generator=draw)[:count]]
        shares = torch.tensor([loader.plan.mixture[name] for name in index.domains], dtype=torch.float64)
        owner = index.domain_of(ids)
        sizes = torch.bincount(owner, minlength=len(shares))
        chances = torch.where(sizes > 0, shares / index.mean_tokens(), 0.0)
        domains = torch.multinomial(chances, count, replacement=True, generator=draw)
        places = (torch.rand(count, generator=draw, dtype=torch.float64) * sizes[domains]).long()
        return torch.stack([ids[owner == k][place] for k, place in zip(domains, places, strict=True)])

    def _batch(self, ids: Tensor, step: int, draw: torch.Generator) -> WeighedBatch:
        board, index = self.context.board, self.context.index
        assert board is not None
        tokens, domain = index.tokens_of(ids), index.domain_of(ids)
        empty = torch.zeros(len(index.domains), dtype=torch.float64)
        return WeighedBatch(
            index=index,
            ids=ids,
            domain=domain,
            tokens=tokens,
            domain_tokens=empty.index_add_(0, domain, tokens.double()),
            values={signal: board.values(signal, ids, step=step) for signal in self.strategy.needs()},
            step=step,
            total_steps=self.context.total_steps,
            generator=draw,
            target=self.context.target,
            lr=self.context.lr,
        )

    def _losses(self, seen: Tensor, held_out: Tensor) -> dict[str, float | None]:
        """Mean losses of both parts of the target set under the model as it is; gap: how much higher the second is."""
        board = self.context.board
        assert board is not None
        meter = board.meter.target
        sums, tokens = meter.losses(torch.arange(meter.index.rows))
        means = sums / tokens.clamp(min=1)  # (M,)
        first = float(means[seen].mean())
        second = float(means[held_out].mean()) if len(held_out) else None
        return {"target_loss": first, "held_out_loss": second, "gap": None if second is None else second - first}
