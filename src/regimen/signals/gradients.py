"""Gradients of rows' losses, as sketches whose inner products are those of the gradients.

Letters: n rows asked for, M rows of the target set, d numbers of a sketch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.measuring import Sketch
from regimen.core.signal import Meter, Signal
from regimen.core.strategy import Observation

_PLAIN = Sketch()


@dataclass(frozen=True, kw_only=True)
class GradientSketch(Signal):
    """Sketches (n, d) float32 of the gradients of rows, not normalised; 0 for a row without target tokens.

    sketch: which gradients, and how they are made short.
    model: the folder of a finished run, or one of its checkpoints; null for the model in training.
    """

    by_row: ClassVar[bool] = True
    sketch: Sketch = _PLAIN
    model: str | None = None

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        at = meter if self.model is None else meter.under(self.model)
        return at.sketches(ids, self.sketch)

    def passes(self) -> float:
        return self.sketch.passes

    def backwards(self) -> float:
        return 1.0

    def models(self) -> tuple[str | None, ...]:
        return (self.model,)


def target_gradient(seen: Observation, by: GradientSketch) -> Tensor:
    """The mean (d,) float64 of the target rows' gradients. Raises ConfigError where the pool has no target set."""
    return target_gradients(seen, by).mean(0)  # (M, d) -> (d,)


def target_gradients(seen: Observation, by: GradientSketch) -> Tensor:
    """The target rows' gradients (M, d) float64. Raises ConfigError where the pool has no target set."""
    if seen.target is None:
        raise ConfigError(
            "rows are valued by the loss of a target set, and the dataset has none",
            do="set dataset.target.path=FILE or dataset.target.from=[domain,...]",
        )
    return seen.target_values[by].double()  # (M, d)
