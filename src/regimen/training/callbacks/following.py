"""The record of a curriculum as it was served: what the scores, domains and forgetting were in each 1% of training.

Letters: n rows with a score, B rows of the global batch, K domains.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from regimen.core.seeding import generator
from regimen.training.callbacks import summaries
from regimen.training.context import RunContext, Scored
from regimen.training.sweep import Sweeper
from regimen.training.tensors import externalise, internalise

PARTS = 100  # of a run


class FollowScores(pl.Callback):
    """Writes a line per 1% of training where a strategy ordered rows, or paced them, by a score.

    A line tells the mean and the deviation of the score over the rows served since the last one, the shares of domains
    among them, and the loss of a fixed sample of at most `decile_rows` of the rows with the lowest 10% of the first
    decision's scores: when their time has passed, it tells whether they are forgotten. 0 rows: it is not measured.
    """

    state_key = "followed"

    def __init__(self, context: RunContext, *, decile_rows: int) -> None:
        total = context.total_steps
        self.context, self.decile_rows = context, decile_rows
        self.marks = {round(part * total / PARTS) for part in range(1, PARTS + 1)}
        self.as_evaluated: Callable[[], AbstractContextManager[None]] = nullcontext
        self.sweeper: Sweeper | None = None  # made when training starts, since it needs the trainer
        self._scored: Scored | None = None
        self._lowest = torch.empty(0, dtype=torch.int64)
        self._rank = 0
        self._clear()

    def _clear(self) -> None:
        self._rows, self._sums = 0, torch.zeros(3, dtype=torch.float64)  # scores: their number, sum and squares
        self._domains = torch.zeros(len(self.context.index.domains), dtype=torch.int64)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._rank = trainer.global_rank

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._turn_to(self.context.scored)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = self.context.step
        if step is None:
            return
        if self._scored is not None:
            self._add(self._scored, step.ids, step.domain)
            if step.number in self.marks:
                self._tell(trainer, step.number, self._scored.strategy)
        self._turn_to(self.context.scored)  # after the rows that the last decision has served

    def _turn_to(self, scored: Scored | None) -> None:
        self._scored = scored
        if scored is None or scored.scores is None or len(self._lowest) or not self.decile_rows:
            return
        lowest = scored.ids[scored.scores.argsort(stable=True)][: max(len(scored.ids) // 10, 1)]
        drawn = torch.randperm(len(lowest), generator=generator(self.context.seed, "lowest decile"))
        self._lowest = lowest[drawn[: self.decile_rows]].sort().values

    def _add(self, scored: Scored, ids: Tensor, domain: Tensor) -> None:
        self._rows += len(ids)
        self._domains += torch.bincount(domain, minlength=len(self._domains))
        if scored.scores is None:
            return
        place = torch.searchsorted(scored.ids, ids).clamp(max=len(scored.ids) - 1)  # (B,)
        found = scored.scores[place][scored.ids[place] == ids]  # rows that it scored
        self._sums += torch.stack([torch.tensor(float(len(found))).double(), found.sum(), (found**2).sum()])

    def _tell(self, trainer: pl.Trainer, step: int, strategy: str) -> None:
        shares = (self._domains.double() / max(self._rows, 1)).tolist()
        line = {
            "rows": self._rows,
            "score": self._score(),
            "domains": dict(zip(self.context.index.domains, shares, strict=True)),
            "lowest_decile": self._loss(),
        }
        self.context.write(trainer, {"step": step, "kind": "course", "strategy": strategy, **line})
        told = {f"course/{key}": value[name] for key, name in _TRACKED if (value := line[key])}  # type: ignore[index]
        summaries.log(trainer, step, told)
        self._clear()

    def _score(self) -> dict[str, float] | None:
        number, total, squares = self._sums.tolist()
        if not number:
            return None
        mean = total / number
        return {"mean": mean, "deviation": max(squares / number - mean * mean, 0.0) ** 0.5}

    def _loss(self) -> dict[str, float] | None:
        """Loss per token of the sample of the lowest decile. Collective."""
        if not len(self._lowest):
            return None
        assert self.sweeper is not None
        with self.as_evaluated():
            measured = self.sweeper.measure(self._lowest)
        return {"loss": float(measured.loss.sum() / measured.tokens.sum().clamp(min=1)), "rows": len(self._lowest)}

    def state_dict(self) -> dict[str, Any]:
        scored = None if self._scored is None else self._scored._asdict()
        scored = externalise(scored, self.context.loader.plans, write=self._rank == 0)
        counts = {"rows": self._rows, "sums": self._sums.clone(), "domains": self._domains.clone()}
        return {"scored": scored, "lowest": self._lowest, **counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        scored = internalise(state_dict["scored"], self.context.loader.plans)
        self.context.scored = None if scored is None else Scored(**scored)
        self._lowest, self._rows = state_dict["lowest"], state_dict["rows"]
        self._sums, self._domains = state_dict["sums"], state_dict["domains"]


_TRACKED = (("score", "mean"), ("lowest_decile", "loss"))
