"""Evaluates on the validation rows at the start, at set fractions and at the end, before the save of that step.

Not through Lightning's validation loop, which is skipped when it falls on the step of a save, and whose `DataLoader`
draws from the global random state.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from regimen.core.errors import ConfigError, RunError
from regimen.core.files import write_atomically
from regimen.evaluation.perplexity import by_domain
from regimen.training.callbacks import summaries
from regimen.training.callbacks.metrics import MetricFiles
from regimen.training.context import RunContext
from regimen.training.sweep import Measured, Sweeper


class Evaluate(pl.Callback):
    """Measures per-domain loss, perplexity and bits per byte.

    fractions: of the run; 0 is before training, 1 the end, which is always evaluated.
    """

    def __init__(self, context: RunContext, files: MetricFiles, fractions: Sequence[float]) -> None:
        if any(not 0 <= f <= 1 for f in fractions):
            raise ConfigError("evaluation.at lists parts of the run", got=list(fractions), allowed="0 to 1")
        self.context, self.files = context, files
        self.steps = {round(f * context.total_steps) for f in fractions} | {context.total_steps}
        self.as_evaluated: Callable[[], AbstractContextManager[None]] = nullcontext  # puts averages of weights in place
        self.sweeper: Sweeper | None = None  # made when training starts, since it needs the trainer
        self.latest: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.latest = state_dict["latest"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.context.loader.stream.step == 0 and 0 in self.steps:
            self._evaluate(trainer, 0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.context.step is not None and self.context.step.number in self.steps:
            self._evaluate(trainer, self.context.step.number)

    def _evaluate(self, trainer: pl.Trainer, step: int) -> None:
        assert self.sweeper is not None
        index = self.sweeper.index
        ids = torch.arange(index.rows)
        with self.as_evaluated():
            measured = self.sweeper.measure(ids)
        bad = index.domain_of(ids)[~torch.isfinite(measured.loss)].unique()
        if len(bad):  # before the save of this step, so that no checkpoint holds such weights
            raise RunError(
                f"the loss is not a number on the validation rows at step {step}",
                got=f"domains {', '.join(index.domains[k] for k in bad.tolist())}",
                do="lower optimizer.lr, or set trainer.gradient_clip_val=1.0; earlier checkpoints are kept",
            )
        if step == self.context.total_steps and trainer.is_global_zero:
            self._keep_rows(ids, measured)
        scores = by_domain(index.domains, index.domain_of(ids), **measured._asdict())
        self.latest = {"step": step, **scores}
        row = {
            f"{name}/{unit}": value
            for name, score in (("micro", scores["micro"]), ("macro", scores["macro"]), *scores["domains"].items())
            for unit, value in score.items()
            if unit in ("loss", "bits_per_byte")
        }
        self.files.write_eval(trainer, step, row)
        summaries.log(trainer, step, {f"eval/{key}": value for key, value in row.items()})

    def _keep_rows(self, ids: Tensor, measured: Measured) -> None:
        """Leave the last losses of each validation row: (n,) id, domain, summed loss in nats, target tokens."""
        assert self.sweeper is not None
        content = io.BytesIO()
        np.savez(
            content,
            ids=ids.numpy(),
            domain=self.sweeper.index.domain_of(ids).numpy(),
            loss=measured.loss.numpy(),
            tokens=measured.tokens.long().numpy(),
        )
        write_atomically(self.context.folder / "validation_rows.npz", content.getvalue())
