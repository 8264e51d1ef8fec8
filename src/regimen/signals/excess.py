"""Excess loss: how much worse the model is than a reference model, on the rows that it is trained on.

Papers: DoReMi, arXiv 2305.10429, section 2; per token, Rho-1, arXiv 2404.07965, section 2.2.
Letters: b rows of a micro-batch, L target positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import TokenSignal


@dataclass(frozen=True, kw_only=True)
class ExcessLoss(TokenSignal):
    """Sum over a row's target tokens of loss minus reference loss, nats, float64 (b,).

    clip: `token` sets the excess of a token on which the model is already better to 0; `none` sums all.
    """

    free: ClassVar[bool] = True
    clip: Literal["token", "none"] = "token"

    def __post_init__(self) -> None:
        if self.clip not in ("token", "none"):
            raise ConfigError("unknown clip of the excess loss", got=self.clip, allowed="token, none")

    def of_tokens(self, losses: Tensor, reference: Tensor, targets: Tensor) -> Tensor:
        excess = (losses - reference).double() * targets  # (b, L)
        return (excess.clamp(min=0) if self.clip == "token" else excess).sum(1)


@dataclass(frozen=True, kw_only=True)
class TokenExcess(TokenSignal):
    """Loss minus reference loss of each target token, nats, (b, L); 0 where nothing is predicted."""

    free: ClassVar[bool] = True
    per_token: ClassVar[bool] = True

    def of_tokens(self, losses: Tensor, reference: Tensor, targets: Tensor) -> Tensor:
        return (losses - reference) * targets
