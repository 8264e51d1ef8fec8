"""Embedded value: how much higher a target's loss would be, had a finished run not trained on a row.

Paper: Capturing the Temporal Dependence of Training Data Influence, arXiv 2412.09538: the inner product of a row's
value embedding with the target's gradient at the run's last parameters. A run is logged once and asked for any target.
Letters: n rows asked for, S rows with an embedding, M target rows, d numbers of a sketch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.measuring import Sketch
from regimen.core.signal import Meter, Signal

_SKETCH = Sketch(dimensions=1024)


@dataclass(frozen=True, kw_only=True)
class EmbeddedValue(Signal):
    """Values (n,) float64 of rows, in nats of the target's mean loss, high is helpful; NaN for rows not trained on.

    embeddings, embedded: .npy files of the embeddings (S, d), and of the rows (S,) that they belong to.
    run: the folder of the finished run that made them. curvature, sketch: those that it was logged with.
    """

    forwards: ClassVar[float] = 0.0
    embeddings: str | None = None
    embedded: str | None = None
    run: str | None = None
    curvature: Literal["fisher", "ggn"] = "fisher"
    sketch: Sketch = _SKETCH

    def __post_init__(self) -> None:
        if self.embeddings is None or self.embedded is None or self.run is None:
            raise ConfigError(
                "no finished run with value embeddings is given",
                got=f"embeddings={self.embeddings}, embedded={self.embedded}, run={self.run}",
                do="type method=dvemb, which trains one first",
            )

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        """Values (n,). Raises ConfigError for no target set, and for embeddings of another sketch."""
        assert self.embeddings is not None and self.embedded is not None and self.run is not None
        made = np.load(self.embeddings)  # (S, d)
        target = meter.under(self.run).target
        gradient = target.sketches(torch.arange(target.index.rows), self.sketch).double().mean(0)  # (M, d) -> (d,)
        if made.shape[1] != len(gradient):
            raise ConfigError(
                "the embeddings were made with another sketch",
                got=f"{made.shape[1]} numbers, {len(gradient)} of the target's gradient",
                do="give the selector the sketch of the log",
            )
        found = torch.full((meter.index.rows,), torch.nan, dtype=torch.float64)  # (N,)
        found[torch.from_numpy(np.load(self.embedded))] = torch.from_numpy(made).double() @ gradient
        return found[ids]

    def models(self) -> tuple[str | None, ...]:
        return (self.run,)

    def aims(self) -> bool:
        return True
