"""What the callbacks of one run share. The way is one round: callbacks write to the loader, nothing reads from them."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from regimen.core.errors import RunError
from regimen.core.files import JsonLines
from regimen.core.index import PoolIndex
from regimen.signals.board import SignalBoard
from regimen.training.cost import CostClock
from regimen.training.loader import PlannedLoader
from regimen.training.reference import Reference


@dataclass
class Step:
    """The global batch of the optimizer step that just ended, the same on every rank.

    ids, domain, tokens: (B,) int64; sums: (B,) float64 summed losses in nats; weights: (B,) float64.
    squares, weighed: (B,) float64. Where tokens are weighed (`by_token`), a row's weight is the mean of theirs, and its
    square the mean of their squares; weighed sums token losses times weights.
    lr: learning rate of the step, times the factor by which its gradient was clipped.
    """

    number: int
    ids: Tensor
    domain: Tensor
    tokens: Tensor
    sums: Tensor
    weights: Tensor
    squares: Tensor
    weighed: Tensor
    by_token: bool = False
    lr: float = 0.0

    @property
    def losses(self) -> Tensor:
        """(B,) float64 mean token loss per row."""
        return self.sums / self.tokens.clamp(min=1)


class Scored(NamedTuple):
    """What a strategy ordered or paced rows by: ids (n,) int64 ascending, scores (n,) float64; None for vectors."""

    strategy: str
    ids: Tensor
    scores: Tensor | None


@dataclass
class RunContext:
    """One run: its folder, seed, data, and where decisions, costs and measurements go.

    step: filled by `GatherSteps` at every step boundary, None inside an accumulation window.
    board: made when training starts, since measuring needs the trainer.
    references: finished models that weighters compare with, by the folder of their run.
    target: the target set, whose domains are the subtasks. lr: learning rate of the next step.
    scored: what the last decision ordered or paced rows by.
    stopped_by: the signal that ended training before its last step, agreed by all ranks.
    """

    folder: Path
    seed: int
    loader: PlannedLoader
    clock: CostClock
    total_steps: int
    record: JsonLines
    board: SignalBoard | None = None
    step: Step | None = None
    warnings: list[str] = field(default_factory=list)
    references: dict[str, Reference] = field(default_factory=dict)
    target: PoolIndex | None = None
    lr: float = 0.0
    stopped_by: signal.Signals | None = None
    scored: Scored | None = None

    @property
    def index(self) -> PoolIndex:
        """The training rows."""
        return self.loader.stream.index

    def write(self, trainer: pl.Trainer, line: dict[str, Any]) -> None:
        """Add a line to the record, on rank 0."""
        if trainer.is_global_zero:
            self.record.append(line)

    def warn(self, trainer: pl.Trainer, step: int, text: str) -> None:
        """Put a warning into the record and the summary."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.write(trainer, {"step": step, "kind": "warning", "text": text})

    def drain_stream_warnings(self, trainer: pl.Trainer, step: int) -> None:
        """Record what the stream had to do otherwise than planned."""
        stream = self.loader.stream
        for text in stream.warnings:
            self.warn(trainer, step, text)
        stream.warnings.clear()


def at_boundary(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether the micro-batch that ended completes an optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def gathered(trainer: pl.Trainer, local: Tensor) -> Tensor:
    """(W * n, ...) values of all ranks in rank order, for (n, ...) of this one."""
    if trainer.world_size == 1:
        return local.cpu()
    local = local.to(trainer.strategy.root_device).contiguous()
    everyone = [torch.empty_like(local) for _ in range(trainer.world_size)]
    torch.distributed.all_gather(everyone, local)
    return torch.cat(everyone).cpu()


def refuse_nan(index: PoolIndex, step: int, ids: Tensor, losses: Tensor) -> None:
    """Raises RunError, with the rows `ids` (n,) to blame, where one of `losses` (n,) is not a finite number."""
    bad = ~torch.isfinite(losses)
    if not bool(bad.any()):
        return
    names = sorted({index.domains[k] for k in index.domain_of(ids[bad]).tolist()})
    raise RunError(
        f"the loss is not a number at step {step}",
        got=f"{int(bad.sum())} of {len(bad)} rows, ids {ids[bad][:8].tolist()}, domains {', '.join(names)}",
        do="lower optimizer.lr, set trainer.gradient_clip_val=1.0 or trainer.precision=32-true, or look at these rows; "
        "checkpoints from before this step are kept",
    )
