"""Carries a weighter: how much each example of the batch at hand counts.

A weighter of scope `batch` needs the losses of the whole global batch: they are gathered once. Under accumulation the
micro-batches to come are measured by a forward pass in training mode under a forked random state, so that the weights
rest on the very losses that training will see, dropout included. The extra pass is charged as measuring.
"""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from regimen.core.seeding import generator
from regimen.core.strategy import WeighedBatch, Weighter
from regimen.training.callbacks import summaries
from regimen.training.callbacks.strategies import StrategyCallback
from regimen.training.context import RunContext, gathered, refuse_nan
from regimen.training.loader import Batch
from regimen.training.module import LanguageModule


class WeightingCallback(StrategyCallback[Weighter]):
    """Gives the module its `weigher`. log_every: steps between two lines of weights in the record."""

    kind = "weighter"

    def __init__(self, name: str, strategy: Weighter, context: RunContext, *, log_every: int = 10) -> None:
        super().__init__(name, strategy, None, context)
        self.log_every = log_every
        self._trainer: pl.Trainer | None = None
        self._module: LanguageModule | None = None
        self._window: Tensor | None = None  # (A, b) weights of this rank in the step at hand

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, LanguageModule)
        self._trainer, self._module = trainer, pl_module
        pl_module.weigher = self.weigh

    def weigh(self, losses: Tensor, batch: Batch) -> Tensor:
        """Weights (b,) for mean losses (b,) of a micro-batch."""
        if self.strategy.scope == "example":
            return self._weights(losses.float(), batch.ids.cpu(), batch.step).to(losses)
        if batch.micro == 0:
            self._window = self._weigh_global(losses, batch)
        assert self._window is not None
        return self._window[batch.micro].to(losses)

    def _weigh_global(self, losses: Tensor, batch: Batch) -> Tensor:
        assert self._trainer is not None
        loader = self.context.loader
        mine = torch.cat([losses, *self._losses_to_come(batch)]).float()  # (A * b,)
        everyone = gathered(self._trainer, mine)  # (B,) in the order of the global batch
        weights = self._weights(everyone, loader.global_ids, batch.step)
        return weights.view(loader.world, loader.accumulation, -1)[loader.rank]

    def _losses_to_come(self, batch: Batch) -> list[Tensor]:
        """Mean losses (b,) of each later micro-batch of this rank in the step at hand."""
        loader, module, trainer = self.context.loader, self._module, self._trainer
        if loader.accumulation == 1:
            return []
        assert module is not None and trainer is not None
        start, out, tokens = time.perf_counter(), [], 0
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            for micro in range(1, loader.accumulation):
                later = trainer.strategy.batch_to_device(loader.micro_batch(micro), module.device)
                sums = module.token_losses(later).sum(1)
                out.append(sums / later.tokens.clamp(min=1))
                tokens += int(later.tokens.sum())
        world_tokens = tokens * loader.world
        seconds = time.perf_counter() - start
        flops = world_tokens * module.forward_flops(batch.inputs.shape[1])
        self.context.clock.add("measuring", seconds=seconds, tokens=world_tokens, flops=flops)
        self.context.clock.add("training", seconds=-seconds)
        return out

    def _weights(self, losses: Tensor, ids: Tensor, step: int) -> Tensor:
        """Checked weights (n,) for detached losses (n,) of rows `ids`."""
        index = self.context.index
        batch = WeighedBatch(
            ids=ids,
            domain=index.domain_of(ids),
            tokens=index.tokens_of(ids),
            step=step,
            total_steps=self.context.total_steps,
            generator=generator(self.context.seed, self.name, step),
        )
        losses = losses.detach().cpu()
        refuse_nan(index, step + 1, ids, losses)
        return self.strategy.checked(self.strategy.weigh(self.state, losses, batch), losses)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        step = self.context.step
        if step is None:
            return
        if step.number % self.log_every == 0 or step.number == 1:
            line = summaries.of_weights(step.weights)
            self.context.write(trainer, {"step": step.number, "kind": self.kind, "strategy": self.name, **line})
            _log_histogram(trainer, step.number, step.weights)


def _log_histogram(trainer: pl.Trainer, step: int, weights: Tensor) -> None:
    for logger in trainer.loggers:
        if type(logger).__name__ == "WandbLogger":
            import wandb

            logger.log_metrics({"weights": wandb.Histogram(weights.tolist())}, step=step)  # type: ignore[dict-item]
        elif type(logger).__name__ == "TensorBoardLogger":
            logger.experiment.add_histogram("weights", weights, step)
