"""The only way data reaches training: this rank's micro-batches of the planned stream, with no lag and exact state.

It is a sized, stateful iterable and not a `torch.utils.data.DataLoader`, which would run index decisions ahead of
training. Letters: B rows of the global batch, b of a micro-batch, W ranks, A micro-batches per step and rank, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.plan import Plan
from regimen.core.stream import Stream
from regimen.data.pool import RowTable
from regimen.training.cross_entropy import IGNORE
from regimen.training.examples import ExampleRows
from regimen.training.tensors import externalise, internalise


class Batch(NamedTuple):
    """A micro-batch.

    inputs, targets: (b, L) int64; targets are IGNORE where nothing is predicted. positions: (b, L) int64 inside each
    document, or None where attention crosses documents. ids, domain, tokens, lengths: (b,) int64; tokens counts
    targets, lengths what the model reads of a row, without padding.
    step: optimizer steps done. micro: which of the A micro-batches. global_rows, global_tokens: of the global batch.
    """

    inputs: Tensor
    targets: Tensor
    positions: Tensor | None
    ids: Tensor
    domain: Tensor
    tokens: Tensor
    lengths: Tensor
    step: int
    micro: int
    global_rows: int
    global_tokens: int


def collate(table: RowTable | ExampleRows, ids: Tensor, *, document_mask: bool) -> dict[str, Any]:
    """The tensors of rows `ids` (b,): inputs, targets and positions (b, L), and ids, domain, tokens, lengths (b,).

    Rows are padded on the right, so that under causal attention no token of a row sees the padding.
    """
    rows = table.read(ids, positions=document_mask)
    inputs, targets = rows.tokens[:, :-1], rows.tokens[:, 1:]
    tokens = lengths = rows.lengths - 1
    if rows.targets is not None:
        learnt = rows.targets[:, 1:]  # (b, L): neither prompts nor padding
        targets, tokens = targets.masked_fill(~learnt, IGNORE), learnt.sum(1)
    elif bool((lengths < targets.shape[1]).any()):
        past_end = torch.arange(targets.shape[1]) >= lengths[:, None]
        targets = targets.masked_fill(past_end, IGNORE)
    positions = None if rows.positions is None else rows.positions[:, :-1]
    domain = table.index.domain_of(ids)
    return {
        "inputs": inputs,
        "targets": targets,
        "positions": positions,
        "ids": ids,
        "domain": domain,
        "tokens": tokens,
        "lengths": lengths,
    }


class PlannedLoader:
    """Serves rank `rank` of `world` its contiguous slice of each global batch, cut into `accumulation` micro-batches.

    plans: folder where a checkpoint leaves the large tensors of the plan, under their digests.
    group_by_length: rows of alike lengths share a micro-batch; which rows a global batch holds stays the plan's.
    """

    def __init__(
        self,
        table: RowTable,
        stream: Stream,
        *,
        rank: int = 0,
        world: int = 1,
        accumulation: int = 1,
        document_mask: bool = False,
        plans: Path,
        group_by_length: bool = False,
    ) -> None:
        if stream.batch_size % (world * accumulation):
            raise ConfigError(
                "the global batch does not divide over the ranks and micro-batches",
                got=f"{stream.batch_size} rows over {world} ranks x {accumulation} micro-batches",
                do="set trainer.global_batch_size to a multiple, or change trainer.micro_batch_size or trainer.devices",
            )
        self.table, self.stream = table, stream
        self.rank, self.world, self.accumulation = rank, world, accumulation
        self.document_mask, self.plans, self.group_by_length = document_mask, plans, group_by_length
        self.global_ids = torch.empty(0, dtype=torch.int64)  # (B,) of the step being trained
        self._micro = 0

    def __len__(self) -> int:
        """Micro-batches of the whole run."""
        return self.stream.total_steps * self.accumulation

    def __iter__(self) -> Iterator[Batch]:
        while self.stream.step < self.stream.total_steps or self._micro:
            if self._micro == 0:
                self.global_ids = self._grouped(self.stream.next())
            micro = self._micro
            self._micro = (micro + 1) % self.accumulation
            yield self.micro_batch(micro)

    def _grouped(self, ids: Tensor) -> Tensor:
        """Ids (B,) so that each micro-batch, over all ranks, holds the next longer ones."""
        if not self.group_by_length:
            return ids
        by_length = ids[self.table.index.inputs_of(ids).argsort(stable=True)]
        return by_length.view(self.accumulation, self.world, -1).transpose(0, 1).reshape(-1)

    def micro_batch(self, micro: int) -> Batch:
        """One micro-batch of this rank in the step being trained."""
        ids = self.global_ids.view(self.world, self.accumulation, -1)[self.rank, micro]
        return Batch(
            **collate(self.table, ids, document_mask=self.document_mask),
            step=self.stream.step - 1,
            micro=micro,
            global_rows=len(self.global_ids),
            global_tokens=int(self.table.index.tokens_of(self.global_ids).sum()),
        )

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        return self.stream.plan

    def update(self, plan: Plan, *, rows: int | None = None) -> None:
        """Obey a new plan from the next batch on; at step boundaries only."""
        assert self._micro == 0, "a plan changes at step boundaries only"
        self.stream.update(plan, rows=rows)

    def state_dict(self) -> dict[str, Any]:
        """The cursor and the plan, with the names of files for its large tensors."""
        state = self.stream.state_dict()
        return {"stream": externalise(state, self.plans, write=self.rank == 0), "micro": self._micro}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved cursor; a half-done accumulation window is refused, since its gradients are gone."""
        if state["micro"]:
            raise ConfigError(
                "the checkpoint was saved inside an accumulation window",
                got=f"micro-batch {state['micro']}",
                do="resume from a checkpoint that this project saved: it saves at step boundaries",
            )
        self.stream.load_state_dict(internalise(state["stream"], self.plans))
