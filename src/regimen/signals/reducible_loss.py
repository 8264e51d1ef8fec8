"""Reducible loss: the part of a row's loss that a model which never trained on it shows to be learnable.

Paper: RHO-LOSS, arXiv 2206.07137, equation 3: loss under the model in training minus the irreducible loss, which is
that of a model trained on held-out data.
Letters: n rows asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Meter, Signal


@dataclass(frozen=True, kw_only=True)
class ReducibleLoss(Signal):
    """Mean token loss minus mean token loss under `reference`, nats per token, float64 (n,).

    0 for a row without target tokens. Noise that nobody can learn has a high loss under both, and a low value.
    reference: the folder of a finished run that was trained on other rows than those to be measured.
    """

    by_row: ClassVar[bool] = True
    forwards: ClassVar[float] = 2.0  # the reference is taken to be as large as the model
    reference: str | None = None

    def __post_init__(self) -> None:
        if self.reference is None:
            raise ConfigError(
                "the reducible loss has no reference model",
                got="reference=null",
                do="train with method=rho_loss, which trains one first, or set reference=FOLDER_OF_A_FINISHED_RUN",
            )

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        assert self.reference is not None
        total, count = meter.losses(ids)
        floor, _ = meter.under(self.reference).losses(ids)
        return (total - floor) / count.clamp(min=1)

    def models(self) -> tuple[str | None, ...]:
        return (None, self.reference)
