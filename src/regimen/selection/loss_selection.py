"""Loss selection: draws rows without replacement and prefers one third of the losses: easy, medium or hard.

Source: the loss selector of DataFlex (OpenDCAI/DataFlex), from its rule and parameters as described; there is no paper.
Differs from the source: weights are turned into exponential arrival times, which draws from the same distribution as
successive draws without replacement but has no limit of 2^24 rows; the draw depends on the run's seed, the step and the
ids alone; by default `candidates` rows are scored, not the whole pool. A loss on a border counts to the outer third.
Letters: n rows to choose from, M kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Selection, Selector
from regimen.selection.common import amount, check_amount


@dataclass(frozen=True, kw_only=True)
class LossSelection(Selector):
    """Rows of the focused third have weight `focus_weight`, the others 1, both to the power 1 / temperature.

    by: the score, mean loss per token in the source.
    focus: `low`, `medium` or `high`.
    focus_weight: above 0; 1 is a uniform draw.
    quantiles: the two borders between the thirds, over the rows to choose from.
    temperature: above 0; lower is sharper.
    ratio, count: how many rows are kept, at most one of the two. Without them, as many as will be served until the next
        decision. Never more than there are to choose from.
    """

    by: Signal
    focus: Literal["low", "medium", "high"] = "medium"
    focus_weight: float = 5.0
    quantiles: Sequence[float] = (0.33, 0.66)
    temperature: float = 1.0
    ratio: float | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_amount(self.ratio, self.count)
        object.__setattr__(self, "quantiles", tuple(float(q) for q in self.quantiles))
        if self.focus not in ("low", "medium", "high"):
            raise ConfigError("focus names a third of the losses", got=self.focus, allowed="low, medium, high")
        if not 0 < self.focus_weight < float("inf"):
            raise ConfigError("focus_weight multiplies the odds of a row", got=self.focus_weight, allowed="above 0")
        if not self.temperature > 0:
            raise ConfigError("temperature divides the log of the weights", got=self.temperature, allowed="above 0")
        if len(self.quantiles) != 2 or not 0 <= self.quantiles[0] <= self.quantiles[1] <= 1:
            raise ConfigError("quantiles are two borders", got=list(self.quantiles), allowed="0 <= lower <= upper <= 1")

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Ids (M,) int64. Raises ConfigError for a score that is not finite or a ratio that keeps no row."""
        ids, by_id = seen.ids.sort()  # (n,)
        losses = seen.scores(self.by)[by_id]  # (n,)
        if not bool(torch.isfinite(losses).all()):
            raise ConfigError(f"{self.by} is infinite for some rows, so they have no quantiles", do="look at the model")
        wait = torch.empty(len(ids), dtype=torch.float64).exponential_(generator=seen.generator)  # (n,) > 0
        arrival = wait.log() - self._log_weights(losses)  # (n,) log of an exponential time with rate = weight
        return ids[arrival.argsort(stable=True)[: self._kept(seen)]]  # (M,)

    def notes(self, state: Any, decision: Selection, seen: Observation) -> list[str]:
        """A warning where every row that could be chosen from was kept, so that nothing was selected."""
        if len(decision.ids) < len(seen.ids):
            return []
        return [
            f"loss_selection kept all {len(seen.ids)} rows it could choose from, so it selected nothing: "
            "raise candidates, decide more often (when.steps), or set ratio"
        ]

    def _kept(self, seen: Observation) -> int:
        n = len(seen.ids)
        if self.ratio is not None:
            return amount(n, self.ratio, None)
        return min(n, self.count if self.count is not None else seen.horizon)

    def _log_weights(self, losses: Tensor) -> Tensor:
        """Log weights (n,) float64 of losses (n,) float64."""
        lower, upper = np.quantile(losses.numpy(), self.quantiles).tolist()  # torch.quantile stops at 2^24 values
        low, high = losses <= lower, losses >= upper  # (n,)
        focused: Tensor = {"low": low, "medium": ~(low | high), "high": high}[self.focus]  # (n,)
        return focused.double() * (math.log(self.focus_weight) / self.temperature)  # (n,)
