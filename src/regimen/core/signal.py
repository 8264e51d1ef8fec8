"""Signals: numbers measured on examples or domains. Equal fields mean the same signal, so it is measured once.

Letters: n rows asked for, b rows of a micro-batch, L target positions, K domains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from regimen.core.index import PoolIndex


class Meter(Protocol):
    """What a signal may use to measure. The training side implements it; every pass is charged to the cost clock."""

    @property
    def index(self) -> PoolIndex:
        """The pool that is measured."""
        ...

    def losses(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Summed target-token losses (n,) float64 in nats and target tokens (n,) of rows, under the current model.

        The model runs in evaluation mode; random states and module modes are restored afterwards.
        """
        ...

    def tokens(self, ids: Tensor) -> list[Tensor]:
        """The tokens (n_i,) int64 of each row."""
        ...

    def texts(self, ids: Tensor) -> list[str]:
        """The text of each row, without special tokens."""
        ...


class Surveyor(Protocol):
    """What a signal of domains may use to measure. All methods are collective: every rank calls them alike."""

    @property
    def index(self) -> PoolIndex:
        """The training rows."""
        ...

    def validation_losses(self, rows: int | None) -> tuple[Tensor, Tensor]:
        """Summed losses (K,) float64 in nats and target tokens (K,) of the first `rows` validation rows per domain."""
        ...

    def gradient_gram(self, ids: Tensor, *, parameters: str | None, clip: float | None) -> Tensor:
        """Inner products (K, K) float64 of the gradients of each domain's mean token loss over its rows in `ids`.

        Rows and columns of domains that `ids` does not hold are 0. parameters: a regular expression for the names of
        those that are differentiated, null for all. clip: largest norm of a domain's gradient.
        """
        ...

    def gradient_moments(self, ids: Tensor, *, parameters: str | None) -> Tensor:
        """(K, 3) float64: squared norm of the mean of per-row gradients, mean of their squared norms, rows."""
        ...

    def tokens(self, domain: int, limit: int) -> list[Tensor]:
        """Token rows (n_i,) int64 of a domain's training text, whole rows up to about `limit` tokens in all."""
        ...

    def texts(self, domain: int, limit: int) -> list[str]:
        """The text of about `limit` rows of a domain, spread evenly over it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Signal:
    """A number per example. Subclasses are frozen dataclasses; their fields say what is measured.

    free: the training forward already yields it for the rows of the batch.
    forwards: forward passes over an example that measuring it costs; the cost estimate uses it.
    """

    free: ClassVar[bool] = False
    forwards: ClassVar[float] = 1.0

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        """Values (n,), or (n, d) of vectors, float64 for rows `ids` (n,). Collective: every rank asks the same ids."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True, kw_only=True)
class TokenSignal(Signal):
    """A number per row of the batch that is trained on, made of its token losses and those of a reference model.

    Weighters alone can need it. reference: the folder of the finished run whose model is the reference.
    """

    reference: str | None = None

    def of_tokens(self, losses: Tensor, reference: Tensor, targets: Tensor) -> Tensor:
        """Values (b,) of token losses (b, L) under both models; targets (b, L) bool: whether a token is predicted."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True, kw_only=True)
class DomainSignal(Signal):
    """Numbers per domain.

    of_text: they depend on the pool's text alone, on no model and no draw, so that they may be kept for other runs.
    """

    of_text: ClassVar[bool] = False

    def survey(self, surveyor: Surveyor, ids: Tensor, generator: torch.Generator) -> Tensor:
        """Values (K,) or (K, ...) float64. ids (n,): the global batch, for a weighter the one about to be trained on.

        generator: seeded by (run seed, signal, step), the same on every rank.
        """
        raise NotImplementedError(type(self).__name__)

    def rows(self, *, batch: int, validation: int, domains: int) -> float:
        """Forward passes over a row that one survey costs, for a global batch of `batch` rows."""
        return 0.0
