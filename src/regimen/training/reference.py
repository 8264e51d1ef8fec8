"""A finished model that the one in training is compared with, token by token.

Letters: b rows of a micro-batch, L target positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regimen.training.cost import CostClock, forward_flops, rows_flops
from regimen.training.cross_entropy import token_losses
from regimen.training.loader import Batch


class Reference:
    """A frozen model in evaluation mode. Each rank runs it on its own rows; the passes are charged as measuring.

    chunk: tokens whose logits are upcast to float32 at a time. world: ranks.
    """

    def __init__(self, model: nn.Module, *, chunk: int, clock: CostClock, world: int) -> None:
        self.model = model.eval().requires_grad_(False)
        self.chunk, self.clock, self.world = chunk, clock, world
        self._flops: dict[int, float] = {}

    @torch.no_grad()
    def token_losses(self, batch: Batch) -> Tensor:
        """(b, L) float32 token losses under the reference; 0 where nothing is predicted."""
        with self.clock.timed("measuring"):
            self.model.to(batch.inputs.device)
            output = self.model(input_ids=batch.inputs, position_ids=batch.positions, use_cache=False)
            losses = token_losses(output.logits, batch.targets, chunk=self.chunk)
        flops = rows_flops(self._forward_flops, batch.lengths) * self.world
        self.clock.add("measuring", tokens=float(batch.tokens.sum()) * self.world, flops=flops)
        return losses

    def _forward_flops(self, context: int) -> float:
        if context not in self._flops:
            self._flops[context] = forward_flops(self.model, context)
        return self._flops[context]
