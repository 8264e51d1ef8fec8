"""Signals: numbers measured on examples. Equal fields mean the same signal, so equal signals are measured once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

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


@dataclass(frozen=True, kw_only=True)
class Signal:
    """A number per example. Subclasses are frozen dataclasses; their fields say what is measured.

    free: the training forward already yields it for the rows of the batch.
    forwards: forward passes over an example that measuring it costs; the cost estimate uses it.
    """

    free: ClassVar[bool] = False
    forwards: ClassVar[float] = 1.0

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        """Values (n,) float64 for rows `ids` (n,). Collective: every rank calls it with the same ids."""
        raise NotImplementedError(type(self).__name__)
