"""Shuffled weights: another weighter's weights, dealt at random to the rows of the same global batch. A control.

Not from a paper. The weights have the same values, hence the same effective sample size, and nothing to do with the
rows: what a weighter gains over this control comes from whom it weighs, not from the variance or the scale of its
weights. Where rows have unequal numbers of target tokens, the sum of weight times tokens changes with the permutation.
Letters: n rows of the global batch, L target positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, WeighedBatch, Weighter


@dataclass(frozen=True, kw_only=True)
class ShuffledWeights(Weighter):
    """The weights of weighter `of`, permuted among the rows of the batch, or the tokens, that have something to learn.

    of: any weighter, with all its settings.
    """

    of: Weighter

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.of, Weighter):
            raise ConfigError(
                "shuffled_weights wraps a weighter",
                got=self.of,
                allowed="a mapping with the _target_ of a weighter",
                do="e.g. '~strategies.shuffled_weights.of' "
                "'+strategies.shuffled_weights.of={_target_: regimen.weighting.focal.Focal}'",
            )

    @property
    def scope(self) -> Literal["example", "batch"]:
        """The whole batch is shuffled."""
        return "batch"

    @property
    def unit(self) -> Literal["row", "token"]:
        return self.of.unit

    def first_step(self, total_steps: int) -> int:
        """After both warm-ups, the later of the two."""
        return max(super().first_step(total_steps), self.of.first_step(total_steps))

    def init(self, index: PoolIndex) -> Any:
        return self.of.init(index)

    def watches(self) -> tuple[Signal, ...]:
        return self.of.watches()

    def needs(self) -> tuple[Signal, ...]:
        return self.of.needs()

    def needs_of_target(self) -> tuple[Signal, ...]:
        return self.of.needs_of_target()

    def renews_target(self, step: int) -> bool:
        return self.of.renews_target(step)

    def learning_rate_factor(self, state: Any, step: int) -> float:
        return self.of.learning_rate_factor(state, step)

    def observe(self, state: Any, seen: Observation) -> Any:
        return self.of.observe(state, seen)

    def gives(self, state: Any, index: PoolIndex) -> dict[str, Any]:
        return self.of.gives(state, index)

    def shows(self, state: Any, index: PoolIndex) -> dict[str, Any]:
        return self.of.shows(state, index)

    def weigh(self, state: Any, losses: Tensor, batch: WeighedBatch) -> Tensor:
        """Weights (n,) or (n, L): those of `of`, permuted by the batch's generator."""
        weights = self.of.weigh(state, losses, batch).clone()
        counted = batch.tokens > 0 if self.unit == "row" else batch.targets  # (n,) or (n, L)
        dealt = weights[counted]  # (m,)
        weights[counted] = dealt[torch.randperm(len(dealt), generator=batch.generator)]
        return weights
