"""Gathers the rows and losses of each optimizer step once, for everyone. Stands first among the callbacks."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from regimen.training.context import RunContext, Step, at_boundary, gathered, refuse_nan
from regimen.training.cost import rows_flops
from regimen.training.loader import Batch
from regimen.training.module import LanguageModule

_COLUMNS = ("sums", "weights", "squares", "weighed")


class GatherSteps(pl.Callback):
    """Fills `context.step` at step boundaries, charges training, and stops on a loss that is not a number."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self._window: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.context.lr = _learning_rate(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        context = self.context
        self._window.append(torch.stack([outputs[name].double() for name in _COLUMNS], 1))  # (b, 4)
        context.step = None
        if not at_boundary(trainer, batch_idx):
            return
        values = gathered(trainer, torch.cat(self._window))  # (B, 4): the stream is global, so ids need no gather
        self._window = []
        ids = context.loader.global_ids
        index = context.index
        domain, tokens = index.domain_of(ids), index.tokens_of(ids)
        lr = context.lr * _clipped(trainer, pl_module)
        assert isinstance(pl_module, LanguageModule)
        columns = dict(zip(_COLUMNS, values.unbind(1), strict=True))
        by_token = pl_module.weighs_tokens
        context.step = Step(trainer.global_step, ids, domain, tokens, **columns, by_token=by_token, lr=lr)
        context.lr = _learning_rate(trainer)  # Lightning has stepped the schedule by now
        self._charge(pl_module, float(tokens.sum()), index.inputs_of(ids))
        refuse_nan(index, trainer.global_step, ids, values[:, 0])
        context.drain_stream_warnings(trainer, trainer.global_step)

    def _charge(self, module: pl.LightningModule, tokens: float, lengths: Tensor) -> None:
        assert isinstance(module, LanguageModule)
        flops = rows_flops(module.training_flops, lengths)
        self.context.clock.add("training", tokens=tokens, flops=flops)


def _clipped(trainer: pl.Trainer, module: pl.LightningModule) -> float:
    """The factor by which the gradient of the step was made shorter."""
    assert isinstance(module, LanguageModule)
    limit, norm = trainer.gradient_clip_val, module.gradient_norm
    return 1.0 if limit is None or norm is None else min(float(limit) / (float(norm) + 1e-6), 1.0)


def _learning_rate(trainer: pl.Trainer) -> float:
    return float(trainer.optimizers[0].param_groups[0]["lr"])
