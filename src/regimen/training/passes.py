"""How prompts are run through a model: in parts that fit the memory, over the ranks, and charged.

Letters: n prompts, b of a part of them, W ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regimen.training.cost import rows_flops


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How a model is run: on which device and ranks, on how much at once, in which precision, and who is charged.

    tokens: of a part of the prompts, at most, padding and answers included; a longer prompt is a part of its own.
    gathered: (W * n, ...) of all ranks in rank order, for (n, ...) of this one. precision: surrounds a forward pass.
    timed: surrounds all work. charge: takes tokens read or written, and their FLOPs.
    flops: of one token of a text of so many, an affine function.
    """

    device: torch.device | str = "cpu"
    tokens: int = 4096
    rank: int = 0
    world: int = 1
    gathered: Callable[[Tensor], Tensor] = lambda local: local
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext
    timed: Callable[[], AbstractContextManager[Any]] = nullcontext
    charge: Callable[[float, float], None] = lambda tokens, flops: None
    flops: Callable[[int], float] = lambda context: 0.0

    def spread(self, lengths: Tensor, work: Callable[[Tensor], Tensor]) -> Tensor:
        """Values (n, ...) of places 0 to n-1: parts of places (b,), worked on one after another, over the ranks.

        lengths: (n,) tokens of each. Every rank works on equally many parts, in which the last place may come twice.
        """
        order = lengths.argsort(descending=True, stable=True)  # alike lengths together; what needs most memory first
        parts, done = [], 0
        while done < len(order):
            size = self.world * max(self.tokens // int(lengths[order[done]]), 1)
            part = order[done : done + size]
            done += len(part)
            parts.append(part[torch.arange(-(-len(part) // self.world) * self.world).clamp(max=len(part) - 1)])
        everyone = self.gathered(torch.cat([work(part[self.rank :: self.world]) for part in parts]))
        places = torch.cat([part[rank :: self.world] for rank in range(self.world) for part in parts])
        out = torch.empty(len(lengths), *everyone.shape[1:], dtype=everyone.dtype)
        out[places] = everyone.cpu()
        return out

    def pay(self, read: Tensor, wrote: Tensor | None = None) -> None:
        """Charge prompts of `read` (n,) tokens, and `wrote` (n,) tokens after them, each read on with a cache."""
        tokens, flops = float(read.sum()), rows_flops(self.flops, read)
        if wrote is not None:
            fixed, k, n = self.flops(0), wrote.double(), read.double()
            contexts = (k * n + k * (k + 1) / 2).sum()  # of all tokens written
            tokens, flops = tokens + float(k.sum()), flops + fixed * float(k.sum())
            flops += (self.flops(1) - fixed) * float(contexts)
        self.charge(tokens, flops)

    def everywhere(self, so: bool) -> bool:
        """Whether something is so on all ranks."""
        return so if self.world == 1 else bool(self.gathered(torch.tensor([so])).all())
