"""Stops a run at the end of a step when a signal asks for it: every rank at the same one, after a save.

SIGTERM, SIGUSR1 and SIGUSR2 are what schedulers send before they take a machine away. A signal that comes while rows
are measured is heeded at the end of the step; measurements are kept in the store.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

from regimen.training.context import RunContext, gathered

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopOnSignal(pl.Callback):
    """Notes signals from the first step on, has all ranks agree on them, and ends the fit. Before the saving callback.

    Once they have agreed, `context.stopped_by` is the signal, the same on every rank.
    """

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self._told = 0
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning has set its own by now, which would end the step at hand or requeue without a save."""
        if threading.current_thread() is threading.main_thread():
            self._before = {which: signal.signal(which, self._note) for which in SIGNALS}

    def _note(self, which: int, frame: FrameType | None) -> None:
        self._told = self._told or which

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = self.context.step
        if step is None or step.number == self.context.total_steps:  # a run at its end is finished, not stopped
            return
        told = int(gathered(trainer, torch.tensor([self._told], dtype=torch.int64)).max())
        if told:
            self.context.stopped_by = signal.Signals(told)
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._give_back()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._give_back()

    def _give_back(self) -> None:
        for which, handler in self._before.items():
            signal.signal(which, signal.SIG_DFL if handler is None else handler)
        self._before = {}


def outer_handlers() -> dict[signal.Signals, Any]:
    """The handlers that whoever started the run has set, e.g. submitit's, which has the job requeued."""
    return {which: handler for which in SIGNALS if callable(handler := signal.getsignal(which))}
