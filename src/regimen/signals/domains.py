"""Numbers per domain: validation losses, and gradients of the domains' losses.

Letters: K domains, n rows of the global batch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.measuring import GRADIENT
from regimen.core.signal import DomainSignal, Surveyor


@dataclass(frozen=True, kw_only=True)
class ValidationLoss(DomainSignal):
    """Mean loss (K,) of the validation tokens of each domain, nats per token, under the model in evaluation mode.

    max_rows: validation rows per domain that are measured; null for all.
    """

    max_rows: int | None = None

    def __post_init__(self) -> None:
        if self.max_rows is not None and self.max_rows < 1:
            raise ConfigError(
                "max_rows counts validation rows per domain", got=self.max_rows, allowed="1 or more, null"
            )

    def survey(self, surveyor: Surveyor, ids: Tensor, generator: torch.Generator) -> Tensor:
        total, tokens = surveyor.validation_losses(self.max_rows)
        return total / tokens.clamp(min=1)

    def rows(self, *, batch: int, validation: int, domains: int) -> float:
        return float(validation if self.max_rows is None else min(validation, self.max_rows * domains))


@dataclass(frozen=True, kw_only=True)
class GradientGram(DomainSignal):
    """Inner products (K, K) of the gradients of each domain's mean token loss on the rows of the batch.

    A domain that the batch does not hold has a row and a column of zeros.
    parameters: a regular expression that the names of the parameters must contain; null for all.
    clip: largest norm of a domain's gradient; null for no limit.
    """

    forwards: ClassVar[float] = GRADIENT
    parameters: str | None = None
    clip: float | None = None

    def __post_init__(self) -> None:
        _check_pattern(self.parameters)
        if self.clip is not None and self.clip <= 0:
            raise ConfigError("clip is a norm", got=self.clip, allowed="above 0, or null for no limit")

    def survey(self, surveyor: Surveyor, ids: Tensor, generator: torch.Generator) -> Tensor:
        return surveyor.gradient_gram(ids, parameters=self.parameters, clip=self.clip)

    def backwards(self) -> float:
        return 1.0

    def rows(self, *, batch: int, validation: int, domains: int) -> float:
        return self.passes() * batch


@dataclass(frozen=True, kw_only=True)
class GradientMoments(DomainSignal):
    """(K, 3): squared norm of the mean gradient, mean squared norm of per-row gradients, rows, on fresh training rows.

    rows_per_domain: rows of each domain that are drawn for it, at least 2.
    parameters: a regular expression that the names of the parameters must contain; null for all.
    """

    forwards: ClassVar[float] = GRADIENT
    rows_per_domain: int = 8
    parameters: str | None = None

    def __post_init__(self) -> None:
        _check_pattern(self.parameters)
        if self.rows_per_domain < 2:
            raise ConfigError("a variance needs two rows", got=self.rows_per_domain, allowed="rows_per_domain >= 2")

    def survey(self, surveyor: Surveyor, ids: Tensor, generator: torch.Generator) -> Tensor:
        drawn = [
            surveyor.index.ids(k)[torch.randperm(size, generator=generator)[: self.rows_per_domain]]
            for k, size in enumerate(surveyor.index.sizes.tolist())
        ]
        return surveyor.gradient_moments(torch.cat(drawn), parameters=self.parameters)

    def backwards(self) -> float:
        return 1.0

    def rows(self, *, batch: int, validation: int, domains: int) -> float:
        return self.passes() * self.rows_per_domain * domains


def _check_pattern(pattern: str | None) -> None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ConfigError(
            "parameters is not a regular expression", got=f"{pattern}: {error}", do="e.g. parameters='layers\\.0\\.mlp'"
        ) from error
