"""Measure rows under the current model without disturbing training. Implements the `Meter` that signals use.

Letters: n rows asked for, W ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from regimen.core.index import PoolIndex
from regimen.core.measuring import GRADIENT
from regimen.data.pool import RowTable
from regimen.training.context import gathered
from regimen.training.cost import CostClock, rows_flops
from regimen.training.examples import ExampleRows
from regimen.training.loader import Batch, collate
from regimen.training.module import LanguageModule
from regimen.training.predictions import predicted_losses

CPU_TOKENS = 1024  # of a part: what a layer makes of more does not stay in a core's cache


class Measured(NamedTuple):
    """Per row (n,) float64: summed loss in nats and target tokens; loss and bytes of the tokens that stand for text."""

    loss: Tensor
    tokens: Tensor
    text_loss: Tensor
    text_bytes: Tensor


@contextmanager
def undisturbed(module: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """Evaluation mode, without gradients unless they are asked for; modes and random states come back as they were."""
    modes = {m: m.training for m in module.modules()}
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), torch.set_grad_enabled(gradients):
        module.eval()
        try:
            yield
        finally:
            for m, mode in modes.items():
                m.training = mode  # not m.train(): that would reach into submodules left in evaluation mode


def part_sizes(lengths: Tensor, *, most: int, tokens: int | None) -> list[int]:
    """How many rows each part of a sweep has: at most `most`, and no more than `tokens` with the padding.

    lengths: (n,) of the rows, ascending. A row that is longer than `tokens` is a part of its own; null is no limit.
    """
    sizes, done = [], 0
    while done < len(lengths):
        size = min(most, len(lengths) - done)
        if tokens is not None:
            size = max(1, min(size, tokens // max(int(lengths[done + size - 1]), 1)))
        sizes.append(size)
        done += size
    return sizes


class Sweeper:
    """Forward passes over rows of a table, spread over the ranks, charged to `purpose` on the clock.

    batch_size: rows per forward pass on one rank. gradient_rows: rows at most whose activations are held at once.
    token_bytes: (V,) UTF-8 bytes that each token stands for. tokenizer: folder of the one that made the rows.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: LanguageModule,
        table: RowTable | ExampleRows,
        *,
        clock: CostClock,
        purpose: str,
        batch_size: int,
        gradient_rows: int,
        token_bytes: Tensor,
        tokenizer: Path,
        document_mask: bool,
    ) -> None:
        self.trainer, self.module, self.table, self.tokenizer = trainer, module, table, tokenizer
        self.clock, self.purpose = clock, purpose
        self.batch_size, self.gradient_rows = batch_size, gradient_rows
        self.token_bytes, self.document_mask = token_bytes, document_mask

    def on(self, module: LanguageModule, table: RowTable | ExampleRows) -> Sweeper:
        """A sweeper of other rows under another model."""
        other = copy.copy(self)
        other.module, other.table = module, table
        return other

    @property
    def index(self) -> PoolIndex:
        """The rows that are measured."""
        return self.table.index

    def tokens(self, ids: Tensor) -> list[Tensor]:
        """The tokens (n_i,) int64 of rows `ids` (n,)."""
        with self.clock.timed(self.purpose):
            found = self.table.read(ids)
            return [row[:length] for row, length in zip(found.tokens, found.lengths.tolist(), strict=True)]

    def texts(self, ids: Tensor) -> list[str]:
        """The text of rows `ids` (n,), without special tokens."""
        from transformers import AutoTokenizer

        rows = [row.tolist() for row in self.tokens(ids)]
        with self.clock.timed(self.purpose):
            tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
            return list(tokenizer.batch_decode(rows, skip_special_tokens=True))

    def losses(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Summed losses (n,) float64 in nats and target tokens (n,) of rows `ids` (n,)."""
        measured = self.measure(ids)
        return measured.loss, measured.tokens

    def measure(self, ids: Tensor) -> Measured:
        """Measure rows `ids` (n,). Collective: all ranks call it with the same ids, and forward equally often."""
        return Measured(*self.spread(ids, self._forward, passes=1.0).double().unbind(1))

    def spread(
        self,
        ids: Tensor,
        of: Callable[[Tensor], Tensor],
        *,
        passes: float,
        backwards: float = 0.0,
        gradients: bool = False,
        rows: int | None = None,
    ) -> Tensor:
        """Values (n, d) on the CPU for rows `ids` (n,), measured a part at a time over the ranks and charged.

        of: from ids (b,) to values (b, d). passes: forward passes over a row that they cost. backwards: backward passes
        among them, each counted as two. rows: of a part, at most; null for `batch_size`. Collective: every rank makes
        the same number of parts, padded with the last row.
        """
        world, rank = self.trainer.world_size, self.trainer.global_rank
        by_length = self.index.inputs_of(ids).argsort(stable=True)  # rows of one length together: little padding
        per_rank = -(-len(ids) // world)
        padded = by_length[torch.arange(per_rank * world).clamp(max=len(ids) - 1)]
        by_rank = padded.view(world, -1)
        lengths = self.index.inputs_of(ids)[by_rank].amax(0)  # (per_rank,), ascending: parts are alike on all ranks
        limit = CPU_TOKENS if self.module.device.type == "cpu" else None
        sizes = part_sizes(lengths, most=min(self.batch_size, rows or self.batch_size), tokens=limit)
        with self.clock.timed(self.purpose), undisturbed(self.module, gradients=gradients):
            mine = [of(ids[part]).cpu() for part in torch.split(by_rank[rank], sizes)]
            everyone = gathered(self.trainer, torch.cat(mine))  # (per_rank, d) -> (W * per_rank, d)
        self.charge(ids, passes=passes, backwards=backwards)
        out = torch.empty(len(ids), *everyone.shape[1:], dtype=everyone.dtype)
        out[padded] = everyone
        return out

    def charge(self, ids: Tensor, *, passes: float, backwards: float = 0.0, times: int = 1) -> None:
        """Charge for `passes` over rows `ids` (n,), among them `backwards` backward passes, each counted as two.

        A backward pass is for the weights that are trained: cheaper where adapters alone are. times: how often all that
        was done.
        """
        inputs, tokens = self.index.inputs_of(ids), float(self.index.tokens_of(ids).sum())
        flops = rows_flops(self.module.forward_flops, inputs) * (passes - GRADIENT * backwards)
        flops += rows_flops(self.module.training_flops, inputs) * backwards
        self.clock.add(self.purpose, tokens=tokens * times, flops=flops * times)

    def batch(self, ids: Tensor) -> Batch:
        """Rows `ids` (n,) on the device of the model."""
        rows = collate(self.table, ids, document_mask=self.document_mask)
        batch = Batch(**rows, step=-1, micro=0, global_rows=len(ids), global_tokens=0)
        moved: Batch = self.trainer.strategy.batch_to_device(batch, self.module.device)
        return moved

    def token_losses(self, ids: Tensor) -> tuple[Tensor, Batch]:
        """Token losses (n, L) float32 of rows `ids` (n,), in one forward pass on this rank; and the rows."""
        batch = self.batch(ids)
        with self.trainer.precision_plugin.forward_context():
            given = batch.inputs, batch.targets, batch.positions
            return predicted_losses(self.module.model, *given, chunk=self.module.objective.chunk), batch

    def _forward(self, ids: Tensor) -> Tensor:
        """(n, 4) float64: the columns of `Measured`."""
        token_losses, batch = self.token_losses(ids)
        losses = token_losses.double()  # (n, L)
        text = self.token_bytes.to(losses.device)[batch.targets.clamp(min=0)] * (batch.targets >= 0)
        columns = losses.sum(1), batch.tokens.double(), (losses * (text > 0)).sum(1), text.sum(1).double()
        return torch.stack(columns, 1)
