"""A signal to make room: every rank stops after the same step, with one checkpoint, and the run goes on exactly there.

A signal reaches the ranks at different moments, or one of them alone; what they do about it is agreed at step ends.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytorch_lightning as pl
import torch

from regimen.training.context import RunContext

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
"""What clusters send before a time limit (the first two, as asked for) and when a job must go (the last)."""


class NoteSignals(pl.Callback):
    """Notes that a signal came, from the first measurement on. Stands first, since measuring begins with training.

    Lightning's own handler of SIGTERM talks to the other ranks at once, which may be in another collective call: it is
    replaced. A handler that somebody has set for the others (submitit requeues the job) stands until the first batch,
    because before it there is nothing to save. Lightning puts all handlers back when training ends.
    """

    def __init__(self) -> None:
        self.noted = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        unhandled = [s for s in SIGNALS if signal.getsignal(s) == signal.SIG_DFL]
        self._note({signal.SIGTERM, *unhandled})

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._note(set(SIGNALS))

    def _note(self, signals: set[signal.Signals]) -> None:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            for each in signals:
                signal.signal(each, self._came)

    def _came(self, number: int, frame: Any) -> None:
        self.noted = number


class StopTogether(pl.Callback):
    """Ends training after the step at whose end any rank has noted a signal. Stands before what saves.

    `context.stopped_by` tells which signal, on every rank: where they noted several, the largest number. The last step
    is left alone: a run that is done is not preempted.
    """

    def __init__(self, context: RunContext, notes: NoteSignals) -> None:
        self.context, self.notes = context, notes

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = self.context.step
        if step is None or step.number == self.context.total_steps:
            return
        noted = torch.tensor(self.notes.noted, device=trainer.strategy.root_device)
        if trainer.world_size > 1:
            noted = trainer.strategy.reduce(noted, reduce_op="max")
        if int(noted):
            self.context.stopped_by = signal.Signals(int(noted))
            trainer.should_stop = True
