"""Shows how far a run is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from regimen.core.errors import ConfigError
from regimen.training.context import RunContext

MODES = ("auto", "bar", "lines", "none")


class ShowProgress(pl.Callback):
    """Reports progress to the screen of rank 0.

    mode: `bar`, `lines`, `none`, or `auto` for a bar on a terminal and lines elsewhere. every: steps between lines.
    """

    def __init__(self, context: RunContext, title: str, *, mode: str, every: int) -> None:
        if mode not in MODES:
            raise ConfigError("unknown way to show progress", got=f"trainer.progress={mode}", allowed=", ".join(MODES))
        self.context, self.title, self.every = context, title, every
        terminal = sys.stderr.isatty()
        self.mode = ("bar" if terminal else "lines") if mode == "auto" else mode
        self._bar: Progress | None = None
        self._task: Any = None
        self._start, self._start_step = 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start, self._start_step = time.perf_counter(), self.context.loader.stream.step
        if self.mode == "bar" and trainer.is_global_zero:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
            total = self.context.total_steps
            self._task = self._bar.add_task(self.title, total=total, completed=self._start_step, note="")
            self._bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = self.context.step
        if step is None or not trainer.is_global_zero:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=step.number, note=self._note())
        elif self.mode == "lines" and (step.number % self._interval() == 0 or step.number == self.context.total_steps):
            print(f"{self.title}: step {step.number}/{self.context.total_steps}, {self._note()}", file=sys.stderr)

    def _interval(self) -> int:
        """At most ten lines a run, and none more often than `every` steps."""
        return max(self.every, -(-self.context.total_steps // 10))

    def _note(self) -> str:
        step = self.context.step
        assert step is not None
        rate = (step.number - self._start_step) / max(time.perf_counter() - self._start, 1e-9)
        loss = float(step.sums.sum() / step.tokens.sum().clamp(min=1))
        return f"loss {loss:.3f}, {rate * float(step.tokens.sum()):,.0f} tokens/s"

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
