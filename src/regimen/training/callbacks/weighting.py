"""Carries a weighter: how much each example of the batch at hand counts.

A weighter of scope `batch` needs the losses of the whole global batch: they are gathered once. Under accumulation the
micro-batches to come are measured by a forward pass in training mode under a forked random state, so that the weights
rest on the very losses that training will see, dropout included. The extra pass is charged as measuring.
A weighter of unit `token` has token losses gathered in place of those of rows, padded to the longest row of the batch.
Letters: B rows of the global batch, b of a micro-batch, A micro-batches, L positions, S token signals, K domains, C
columns: the loss and each token signal of a row; or of a token, with whether it is predicted after the loss.
"""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional

from regimen.core.learning import Learner
from regimen.core.seeding import generator
from regimen.core.signal import DomainSignal, Signal, TokenSignal
from regimen.core.strategy import Observation, WeighedBatch, Weighter
from regimen.training.callbacks import summaries
from regimen.training.callbacks.lessons import Lessons
from regimen.training.callbacks.strategies import StrategyCallback
from regimen.training.context import RunContext, Step, gathered, refuse_nan
from regimen.training.cost import rows_flops
from regimen.training.loader import Batch
from regimen.training.module import LanguageModule


class WeightingCallback(StrategyCallback[Weighter]):
    """Gives the module its `weigher`. log_every: steps between two lines of weights in the record."""

    kind = "weighter"

    def __init__(self, name: str, strategy: Weighter, context: RunContext, *, log_every: int = 10) -> None:
        super().__init__(name, strategy, None, context)
        self.log_every = log_every
        self._of_tokens = [signal for signal in strategy.needs() if isinstance(signal, TokenSignal)]
        self._of_domains = [signal for signal in strategy.needs() if isinstance(signal, DomainSignal)]
        self._of_rows = [s for s in strategy.needs() if not isinstance(s, TokenSignal | DomainSignal)]
        assert not self._of_rows or strategy.scope == "batch", f"{name} measures rows of the whole batch"
        self._by_token = strategy.unit == "token"
        assert all(s.per_token == self._by_token for s in self._of_tokens), f"{name} weighs {strategy.unit}s"
        self._surveyed: dict[Signal, Tensor] = {}  # (K, ...) of domains, (B, ...) of rows
        self._targets: dict[Signal, Tensor] = {}  # (M, ...) of the target set
        self._trainer: pl.Trainer | None = None
        self._module: LanguageModule | None = None
        self._window: Tensor | None = None  # (A, b) or (A, b, L) weights of this rank in the step at hand
        self._columns: list[Tensor] = []  # (b, C) or (b, L, C) each, of this rank's micro-batches
        self._everyone: Tensor | None = None  # (B, C) or (B, L, C) of all ranks, where they were gathered to weigh

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, LanguageModule)
        self._trainer, self._module = trainer, pl_module
        pl_module.weigher, pl_module.weighs_tokens = self.weigh, self._by_token

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if batch.micro == 0:
            self._surveyed, self._targets = {}, {}
            if self._begun(batch.step):
                self._prepare(trainer, batch.step)

    def _begun(self, step: int) -> bool:
        return step >= self.strategy.first_step(self.context.total_steps)

    def _prepare(self, trainer: pl.Trainer, step: int) -> None:
        """Teach the weighter and measure what it needs for the batch after `step` steps."""
        board, ids, total = self.context.board, self.context.loader.global_ids, self.context.total_steps
        assert board is not None
        rows = self._of_rows
        if isinstance(self.strategy, Learner):
            self.state = Lessons(self.name, self.strategy, self.context).before(trainer, self.state, step)
            rows = rows if self.strategy.weighs(step, total) else []
        self._surveyed = {s: board.values(s, ids, step=step) for s in (*self._of_domains, *rows)}
        renews = self.strategy.renews_target(step - self.strategy.first_step(total))
        renewed = self.strategy.needs_of_target() if renews else ()
        self._targets = {s: board.target_values(s, step=step) for s in renewed}
        self._scale_learning_rate(trainer, self.strategy.learning_rate_factor(self.state, step))

    def _scale_learning_rate(self, trainer: pl.Trainer, factor: float) -> None:
        """For the step at hand; the schedule sets the rate of the next one anew."""
        if factor == 1.0:
            return
        self.context.lr *= factor
        for group in trainer.optimizers[0].param_groups:
            group["lr"] *= factor

    def weigh(self, losses: Tensor, batch: Batch) -> Tensor:
        """Weights (b,), or (b, L) of tokens, for token losses (b, L) of a micro-batch."""
        if not self._begun(batch.step):
            return torch.ones_like(losses if self._by_token else losses[:, 0])
        if batch.micro == 0:
            self._columns, self._everyone = [], None
        if self.strategy.scope == "example":
            self._columns.append(self._measured(losses, batch))
            weights = self._weights(self._columns[-1], batch.ids.cpu(), batch.step)
        else:
            if batch.micro == 0:
                self._window = self._weigh_global(self._measured(losses, batch), batch)
            assert self._window is not None
            weights = self._window[batch.micro]
        return _fitted(weights, losses.shape[1]).to(losses) if self._by_token else weights.to(losses)

    def _weigh_global(self, columns: Tensor, batch: Batch) -> Tensor:
        """Weights (A, b) or (A, b, L) of this rank's micro-batches."""
        assert self._trainer is not None
        loader = self.context.loader
        mine = torch.cat([columns, *self._columns_to_come(batch)])  # (A * b, ...)
        self._everyone = gathered(self._trainer, mine)  # (B, ...) in the order of the global batch
        weights = self._weights(self._everyone, loader.global_ids, batch.step)
        return weights.unflatten(0, (loader.world, loader.accumulation, -1))[loader.rank]

    def _columns_to_come(self, batch: Batch) -> list[Tensor]:
        """Columns (b, ...) of each later micro-batch of this rank in the step at hand."""
        loader, module, trainer = self.context.loader, self._module, self._trainer
        if loader.accumulation == 1:
            return []
        assert module is not None and trainer is not None
        start, out = time.perf_counter(), []
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            for micro in range(1, loader.accumulation):
                later = trainer.strategy.batch_to_device(loader.micro_batch(micro), module.device)
                out.append(self._measured(module.token_losses(later), later))
        seconds, index = time.perf_counter() - start, self.context.index
        ids = loader.global_ids.view(loader.world, loader.accumulation, -1)[:, 1:].flatten()  # of all ranks
        flops = rows_flops(module.forward_flops, index.inputs_of(ids))
        tokens = int(index.tokens_of(ids).sum())
        self.context.clock.add("measuring", seconds=seconds, tokens=tokens, flops=flops)
        self.context.clock.add("training", seconds=-seconds)
        return out

    def _measured(self, losses: Tensor, batch: Batch) -> Tensor:
        """Columns (b, C) float64, or (b, L, C) float32 of tokens, of token losses (b, L)."""
        targets = batch.targets >= 0  # (b, L)
        names = {str(signal.reference) for signal in self._of_tokens}
        reference = {name: self.context.references[name].token_losses(batch) for name in names}  # (b, L) each
        found = [s.of_tokens(losses, reference[str(s.reference)], targets) for s in self._of_tokens]
        if not self._by_token:
            means = losses.sum(1) / batch.tokens.clamp(min=1)
            return torch.stack([column.double() for column in (means, *found)], 1)
        longest = int(self.context.index.inputs_of(self.context.loader.global_ids).max())  # on all ranks
        return torch.stack([_fitted(column.float(), longest) for column in (losses, targets, *found)], 2)

    def _weights(self, columns: Tensor, ids: Tensor, step: int) -> Tensor:
        """Checked weights (n,) or (n, L) for detached columns (n, ...) of rows `ids`."""
        index, loader = self.context.index, self.context.loader
        columns = columns.detach().cpu()
        losses = columns[..., 0].float()  # (n,) or (n, L)
        refuse_nan(index, step + 1, ids, losses.flatten(1).sum(1) if self._by_token else losses)
        tokens = index.tokens_of(loader.global_ids).double()
        empty = torch.zeros(len(index.domains), dtype=torch.float64)
        batch = WeighedBatch(
            index=index,
            ids=ids,
            domain=index.domain_of(ids),
            tokens=index.tokens_of(ids),
            domain_tokens=empty.index_add_(0, index.domain_of(loader.global_ids), tokens),
            values=self._values(columns),
            step=step,
            total_steps=self.context.total_steps,
            generator=generator(self.context.seed, self.name, step),
            targets=columns[..., 1] > 0 if self._by_token else None,
            target=self.context.target,
            target_values=self._targets,
            lr=self.context.lr,
        )
        return self.strategy.checked(self.strategy.weigh(self.state, losses, batch), losses)

    def _values(self, columns: Tensor) -> dict[Signal, Tensor]:
        first = 2 if self._by_token else 1
        return {**dict(zip(self._of_tokens, columns[..., first:].unbind(-1), strict=True)), **self._surveyed}

    def _watched(self, step: Step) -> Observation:
        """What was needed to weigh the batch is observed too, but for what is measured of each token."""
        assert self._trainer is not None
        seen = super()._watched(step)
        if self._of_tokens and self._everyone is None and not self._by_token:
            self._everyone = gathered(self._trainer, torch.cat(self._columns))  # (B, C)
        whole = self._everyone is not None and not self._by_token
        values = {**seen.values, **(self._values(self._everyone) if whole else self._surveyed)}
        return self._observation(step.number, step.ids, values, horizon=0, target_values=self._targets, lr=step.lr)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        step = self.context.step
        assert self._module is not None
        if step is None:
            return
        if step.number % self.log_every == 0 or step.number == 1:
            told = summaries.of_weights(step, self._module.objective.reduction)
            line = {**told, **self.strategy.shows(self.state, self.context.index)}
            self.context.write(trainer, {"step": step.number, "kind": self.kind, "strategy": self.name, **line})
            _log_histogram(trainer, step.number, step.weights)


def _fitted(values: Tensor, length: int) -> Tensor:
    """Values (b, length) of values (b, L), with zeros after them or without their end, which holds padding alone."""
    return functional.pad(values, (0, length - values.shape[1]))


def _log_histogram(trainer: pl.Trainer, step: int, weights: Tensor) -> None:
    for logger in trainer.loggers:
        if type(logger).__name__ == "WandbLogger":
            import wandb

            logger.log_metrics({"weights": wandb.Histogram(weights.tolist())}, step=step)  # type: ignore[dict-item]
        elif type(logger).__name__ == "TensorBoardLogger":
            logger.experiment.add_histogram("weights", weights, step)
