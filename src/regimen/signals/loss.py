"""The loss of an example under the model that is being trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regimen.core.signal import Meter, Signal


@dataclass(frozen=True, kw_only=True)
class Loss(Signal):
    """Mean loss of a row's target tokens, nats per token, float64 (n,); 0 for a row without target tokens.

    In training it falls out of the forward pass (with dropout, where the model has any); at a decision the rows asked
    for are swept in evaluation mode.
    """

    free: ClassVar[bool] = True
    by_row: ClassVar[bool] = True

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        total, count = meter.losses(ids)
        return total / count.clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Length(Signal):
    """Target tokens of a row, float64 (n,). Read from the pool: it costs nothing."""

    free: ClassVar[bool] = True
    forwards: ClassVar[float] = 0.0

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        return meter.index.tokens_of(ids).to(torch.float64)
