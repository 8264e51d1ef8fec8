"""Window assignment: each row is served in the part of the training where its score for that time is best.

Source: time-specific values of rows, as those of the co-state of PDS (arXiv 2410.07064) or of in-run influence (arXiv
2412.09538) at several times, before they are summed; the assignment itself is the transportation problem.
Letters: n rows of the group, W windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.ranks import stable_rank
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Orderer
from regimen.ordering.transport import assign


@dataclass(frozen=True, kw_only=True)
class WindowAssignment(Orderer):
    """W windows of as many rows (one more in some, where n does not divide), so filled that the scores' sum is largest.

    by: a signal of vectors (n, W): what a row is worth in window w of the sequence, higher is better.
    polarity: 1 as it is; -1 where lower is better.
    scale: `none` adds up the scores as they are. `zscore` first gives every window mean 0 and variance 1, for scores
        whose size changes over time for reasons of no interest; a window where all are equal becomes 0.
    inside: rows of a window are shuffled (`random`), or served `best` first.
    """

    by: Signal
    polarity: int = 1
    scale: Literal["none", "zscore"] = "none"
    inside: Literal["random", "best"] = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.polarity not in (1, -1):
            raise ConfigError("polarity says which scores are good", got=self.polarity, allowed="1 (high), -1 (low)")
        for name, allowed in (("scale", ("none", "zscore")), ("inside", ("random", "best"))):
            if getattr(self, name) not in allowed:
                got = f"{name}={getattr(self, name)}"
                raise ConfigError(f"unknown {name} of a window assignment", got=got, allowed=", ".join(allowed))

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Sort keys (n,) float64: the window plus a number in [0, 1).

        Raises ConfigError for scores that are not finite vectors, and for fewer rows than windows.
        """
        scores = seen.values[self.by]
        if scores.dim() != 2 or not bool(torch.isfinite(scores).all()):
            raise ConfigError(
                f"{type(self.by).__name__} gives no finite score for every window",
                got=f"values of shape {tuple(scores.shape)}",
                do="give a signal with a column per window, e.g. regimen.signals.file_windows.FileWindows",
            )
        n, windows = scores.shape
        if 0 < n < windows or (n and not windows):
            raise ConfigError(
                "there are fewer rows to order than windows",
                got=f"{n} rows, {windows} windows",
                do="raise the budget, keep more rows, or give scores for fewer windows",
            )
        by_id = seen.ids.argsort()  # (n,): which of equally good assignments is found must not hang on the order
        values = self.polarity * scores[by_id].double()  # (n, W)
        window = torch.empty(n, dtype=torch.int64)
        window[by_id] = assign(_scaled(values) if self.scale == "zscore" else values)  # (n,)
        return window + self._inside(scores, window, seen)

    def _inside(self, scores: Tensor, window: Tensor, seen: Observation) -> Tensor:
        """(n,) float64 in [0, 1): the place of a row in its window."""
        n = len(window)
        if self.inside == "best":
            own = scores.double().gather(1, window[:, None])[:, 0] if n else scores.new_zeros(0).double()  # (n,)
            return stable_rank(-self.polarity * own, ties=seen.ids) / max(n, 1)
        noise = torch.rand(n, generator=seen.generator, dtype=torch.float64)
        return noise[stable_rank(seen.ids, ties=seen.ids)]


def _scaled(values: Tensor) -> Tensor:
    """Values (n, W) with mean 0 and variance 1 in each column."""
    centred = values - values.mean(0)
    deviation = centred.square().mean(0).sqrt()  # (W,)
    return torch.where(deviation > 0, centred / deviation, 0.0)
