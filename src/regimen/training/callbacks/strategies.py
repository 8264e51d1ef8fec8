"""One callback per kind of strategy. They only carry: fetch signals, ask the strategy, hand its decision to the loader.

A decision is made on rank 0 and broadcast; batch t+1 obeys what was decided after step t.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Generic, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.plan import digest_of
from regimen.core.seeding import generator
from regimen.core.strategy import Kind, Mixer, Observation, Orderer, Selection, Selector, Strategy, advice, wrong_scope
from regimen.core.trigger import Trigger
from regimen.training.callbacks import summaries
from regimen.training.context import RunContext, Scored, Step

S = TypeVar("S", bound=Strategy)


class StrategyCallback(pl.Callback, Generic[S]):
    """Carries one strategy: `observe` after each optimizer step, `decide` when the trigger fires."""

    kind: ClassVar[Kind]

    def __init__(self, name: str, strategy: S, trigger: Trigger | None, context: RunContext) -> None:
        self.name, self.strategy, self.trigger, self.context = name, strategy, trigger, context
        self.state: Any = strategy.init(context.index)
        # A strategy that keeps the default `observe` costs nothing between decisions.
        self._observes = type(strategy).observe is not Strategy.observe

    @property
    def state_key(self) -> str:
        """One entry per strategy in a checkpoint."""
        return f"{self.kind}:{self.name}"

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state._asdict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = type(self.state)(**state_dict["state"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.trigger is not None and not self.trigger.count(self.context.total_steps):
            text = (
                f"{self.name} never decides in a run of {self.context.total_steps} steps: change when.start or when.at"
            )
            self.context.warn(trainer, 0, text)
        for text in advice(self.strategy, self.context.index):
            self.context.warn(trainer, 0, f"{self.name}: {text}")
        if self.context.loader.stream.step == 0 and self._due(0):
            self._decide_once(trainer, 0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = self.context.step
        if step is None:
            return
        if self._observes and self._begun(step.number - 1):
            self.state = self.strategy.observe(self.state, self._watched(step))
        if self._due(step.number):
            self._decide_once(trainer, step.number)

    # ---- what each kind fills in ---------------------------------------------------------------------------

    def decide(self, trainer: pl.Trainer, step: int) -> dict[str, Any]:
        """Make a decision, hand it to the loader, and return its line for the record."""
        raise NotImplementedError(self.kind)

    # ---- shared --------------------------------------------------------------------------------------------

    def _begun(self, step: int) -> bool:
        """Whether the strategy is at work in the batch after `step` steps."""
        return True

    def _due(self, step: int) -> bool:
        total = self.context.total_steps
        if self.trigger is None or step >= total or not self.trigger.fires(step, total):
            return False
        return self.strategy.ready(step, self.context.index)

    def _decide_once(self, trainer: pl.Trainer, step: int) -> None:
        before = self.context.clock.snapshot("measuring")
        line = self.decide(trainer, step)
        cost = self.context.clock.since("measuring", before)
        self.context.write(trainer, {"step": step, "kind": self.kind, "strategy": self.name, **line, "cost": cost})
        self.context.drain_stream_warnings(trainer, step)

    def _conclude(self, trainer: pl.Trainer, step: int, seen: Observation) -> Any:
        """The strategy's decision on `seen`: made and checked on rank 0, the same on all, noted in the state."""
        strategy: Any = self.strategy
        decision = strategy.checked(strategy.decide(self.state, seen), seen) if trainer.is_global_zero else None
        if trainer.world_size > 1:
            decision = trainer.strategy.broadcast(decision, src=0)
        for note in strategy.notes(self.state, decision, seen):
            self.context.warn(trainer, step, note)
        self.state = strategy.advance(self.state, decision, seen)
        return decision

    def gives(self) -> dict[str, Any]:
        """What the finished run hands to runs that build on it."""
        return self.strategy.gives(self.state, self.context.index)

    def _horizon(self, step: int) -> int:
        assert self.trigger is not None
        until = self.trigger.following(step, self.context.total_steps)
        return (until - step) * self.context.loader.stream.batch_size

    def _observation(
        self,
        step: int,
        ids: Tensor,
        values: dict[Any, Tensor],
        *,
        horizon: int,
        target_values: dict[Any, Tensor] | None = None,
        lr: float | None = None,
    ) -> Observation:
        index = self.context.index
        return Observation(
            step=step,
            total_steps=self.context.total_steps,
            index=index,
            ids=ids,
            domain=index.domain_of(ids),
            tokens=index.tokens_of(ids),
            values=values,
            horizon=horizon,
            generator=generator(self.context.seed, self.name, step),
            target=self.context.target,
            target_values=target_values or {},
            lr=self.context.lr if lr is None else lr,
        )

    def _watched(self, step: Step) -> Observation:
        values: dict[Any, Tensor] = {}
        for signal in self.strategy.watches():
            assert signal.free, f"{self.name} watches {signal}, which does not fall out of training"
            values[signal] = signal.measure(_StepMeter(self.context, step), step.ids)
        return self._observation(step.number, step.ids, values, horizon=0, lr=step.lr)

    def _measures(self, step: int) -> bool:
        assert self.trigger is not None
        return not self.strategy.measures_once or step == self.trigger.following(-1, self.context.total_steps)

    def seen(self, step: int, ids: Tensor) -> Observation:
        """Rows `ids` (n,) with all that the strategy needs of them and of the target set. Collective."""
        board = self.context.board
        assert board is not None
        needs = self.strategy.needs() if self._measures(step) else ()
        values = {signal: board.values(signal, ids, step=step) for signal in needs}
        wanted = {signal: board.target_values(signal, step=step) for signal in self.strategy.needs_of_target()}
        return self._observation(step, ids, values, horizon=self._horizon(step), target_values=wanted)

    def follow(self, seen: list[Observation]) -> None:
        """Have the record follow what it ordered or paced the rows of `seen` by, where it measured that now."""
        ids = torch.cat([one.ids for one in seen])
        by_id = ids.argsort()
        found = [score_of(one) for one in seen]
        scores = None if any(one is None for one in found) else torch.cat([s for s in found if s is not None])[by_id]
        self.context.scored = Scored(self.name, ids[by_id], scores)


def score_of(seen: Observation) -> Tensor | None:
    """The first number (n,) per row that a strategy measured; None where it measured none."""
    return next((values.double() for values in seen.values.values() if values.dim() == 1), None)


class _StepMeter:
    """Answers free signals from the step that ended instead of measuring again."""

    def __init__(self, context: RunContext, step: Step) -> None:
        self.index, self._step = context.index, step

    def losses(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        assert ids is self._step.ids
        return self._step.sums, self._step.tokens.double()


class SelectionCallback(StrategyCallback[Selector]):
    """Carries a selector: which rows may be drawn."""

    kind = "selector"

    def decide(self, trainer: pl.Trainer, step: int) -> dict[str, Any]:
        stream = self.context.loader.stream
        ids = stream.available()
        if not len(ids):
            raise ConfigError(
                f"{self.name} has no row to choose from at step {step}: all reached the repetition cap",
                do="raise dataset.max_epochs_per_domain (null: no cap) or lower the budget",
            )
        limit = self.strategy.candidates
        if limit is not None and limit < len(ids):
            pick = torch.randperm(len(ids), generator=generator(self.context.seed, self.name, "candidates", step))
            ids = ids[pick[:limit]].sort().values
        seen = self.seen(step, ids)
        chosen: Selection = self._conclude(trainer, step, seen)
        if self.strategy.followed and self._measures(step):
            self.follow([seen])
        plan = self.context.loader.plan.with_(
            keep=chosen.ids, repeats=chosen.repeats, sampling_weight=chosen.sampling_weight
        )
        self.context.loader.update(plan, rows=seen.horizon)
        line = summaries.of_selection(chosen, seen)
        summaries.log(trainer, step, {"selection/kept": line["kept"], "selection/share": line["kept"] / line["of"]})
        return line


class MixingCallback(StrategyCallback[Mixer]):
    """Carries a mixer: the share of target tokens of each domain."""

    kind = "mixer"
    _kept: tuple[Tensor, PoolIndex] | None = None  # the rows of a selector, counted once: a mixer may decide every step

    def decide(self, trainer: pl.Trainer, step: int) -> dict[str, Any]:
        ids = torch.empty(0, dtype=torch.int64) if self.context.step is None else self.context.step.ids
        seen = self.seen(step, ids)
        keep = self.context.loader.plan.keep
        if keep is not None:
            if self._kept is None or self._kept[0] is not keep:
                self._kept = keep, seen.index.kept(keep)
            seen = dataclasses.replace(seen, index=self._kept[1])  # keep, then mix
        shares: Tensor | None = self._conclude(trainer, step, seen)
        stream = self.context.loader.stream
        domains = self.context.index.domains
        realised = stream.realised() if stream.step else None
        if shares is None:
            natural = dict(zip(domains, self.context.index.natural().tolist(), strict=True))
            return {"digest": digest_of(None), "mixture": natural, "realised": realised, "draw": "shuffle"}
        mixture = dict(zip(domains, shares.tolist(), strict=True))
        draw, groups = self.strategy.draw, self.strategy.draw_groups
        self.context.loader.update(self.context.loader.plan.with_(mixture=mixture, draw=draw, draw_groups=groups))
        summaries.log(trainer, step, {f"mixture/{name}": share for name, share in mixture.items()})
        return {"digest": digest_of(shares), "mixture": mixture, "realised": realised, "draw": draw}


class OrderingCallback(StrategyCallback[Orderer]):
    """Carries an orderer: the sequence of the rows that the rest of the budget will serve."""

    kind = "orderer"

    def decide(self, trainer: pl.Trainer, step: int) -> dict[str, Any]:
        plan = self.context.loader.plan
        scope = "pool" if plan.mixture is None else "domain"
        if self.strategy.within not in (None, scope):
            raise wrong_scope(self.name, str(self.strategy.within))
        # An order decided before does not bind the rows that a new one is made for.
        self.context.loader.update(plan.with_(order=None))
        parts, line, everyone = [], {}, []
        for lane, ids in self.context.loader.stream.groups().items():
            seen = self.seen(step, ids)
            seen = dataclasses.replace(seen, generator=generator(self.context.seed, self.name, step, lane))
            ordered: Tensor = self._conclude(trainer, step, seen)
            parts.append(ordered)
            everyone.append(seen)
            line[lane] = summaries.of_order(ordered, seen)
        order = torch.cat(parts)
        self.follow(everyone)
        self.context.loader.update(self.context.loader.plan.with_(order=order))
        return {"digest": digest_of(order), "groups": line}
