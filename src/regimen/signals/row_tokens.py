"""The tokens of rows, for strategies that read them themselves.

Letters: n rows asked for, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Meter, Signal


@dataclass(frozen=True, kw_only=True)
class RowTokens(Signal):
    """Token ids (n, T) int64 of the first T = `length` tokens of rows, -1 past their end. No model is run."""

    forwards: ClassVar[float] = 0.0
    by_row: ClassVar[bool] = True
    length: int = 512

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError("length counts tokens", got=self.length, allowed="1 or more")

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        out = torch.full((len(ids), self.length), -1, dtype=torch.int64)
        for row, tokens in zip(out, meter.tokens(ids), strict=True):
            kept = tokens[: self.length]
            row[: len(kept)] = kept
        return out
