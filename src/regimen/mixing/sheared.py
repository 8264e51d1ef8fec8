"""Dynamic batch loading of Sheared-LLaMA: domains whose validation loss is above a reference gain share.

Paper: Sheared LLaMA, arXiv 2310.06694, algorithm 1.  Source of the options: princeton-nlp/LLM-Shearing.
Experimental: the paper was not at hand; its rule is stated here as two other sources give it.
Differs from the paper: `excess: signed` with `smoothing: 1e-4` is the released code, which does not set negative
differences to 0. As there, validation losses drive the shares; a domain without validation rows stays where it is.
Letters: K domains; w weights, L validation losses, L_ref their reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from regimen.core.checks import check_one_of
from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.signal import Signal
from regimen.core.strategy import Mixer, Observation
from regimen.mixing.common import (
    INITIAL,
    exponential_shares,
    for_every_domain,
    initial_shares,
    losses_by_name,
)
from regimen.signals.domains import ValidationLoss

WHERE = "strategies.sheared.reference"


class ShearedState(NamedTuple):
    """log_weights: (K,) float64. started: whether the first decision, which takes the initial shares, was made."""

    log_weights: Tensor
    started: bool


@dataclass(frozen=True, kw_only=True)
class Sheared(Mixer):
    """At each decision but the first, w_i becomes w_i exp(eta max(L_i - L_ref_i, 0)), normalised.

    reference: loss in nats per token by domain, of every domain of the pool.
    initial: shares until the first change, `natural` or `uniform`.
    eta: step size, 0 or more; 1 in the paper.
    excess: `clipped` at 0 or `signed`, see above.
    smoothing: part of the weights that is made uniform after each step, in [0, 1].
    max_rows: validation rows per domain that are measured; null for all.
    """

    reference: Mapping[str, float] | None = None
    initial: Literal["natural", "uniform"] = "natural"
    eta: float = 1.0
    excess: Literal["clipped", "signed"] = "clipped"
    smoothing: float = 0.0
    max_rows: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reference is None:
            raise ConfigError(
                "dynamic batch loading has no reference losses",
                got=f"{WHERE}=null",
                do=f"give the validation losses to be reached, e.g. '{WHERE}={{web: 2.9, code: 1.4}}', or take them "
                "from a stage that trains a reference",
            )
        object.__setattr__(self, "reference", losses_by_name(self.reference, where=WHERE))
        check_one_of("initial", self.initial, INITIAL)
        check_one_of("excess", self.excess, ("clipped", "signed"))
        if not 0 <= self.eta < math.inf:
            raise ConfigError("eta is a step size", got=self.eta, allowed="0 or more")
        if not 0 <= self.smoothing <= 1:
            raise ConfigError("smoothing is a part of the weights", got=self.smoothing, allowed="0 <= smoothing <= 1")
        self.needs()

    def needs(self) -> tuple[Signal, ...]:
        return (ValidationLoss(max_rows=self.max_rows),)

    def init(self, index: PoolIndex) -> ShearedState:
        """The initial weights; a reference that does not fit the domains is refused here."""
        self._target(index)
        return ShearedState(initial_shares(self.initial, index).log(), False)

    def decide(self, state: ShearedState, seen: Observation) -> Tensor:
        """Shares (K,) float64; 0 for a domain without tokens."""
        return exponential_shares(self._stepped(state, seen).log_weights, seen.index)

    def advance(self, state: ShearedState, decision: Tensor, seen: Observation) -> ShearedState:
        return self._stepped(state, seen)

    def _stepped(self, state: ShearedState, seen: Observation) -> ShearedState:
        if not state.started:
            return state._replace(started=True)
        loss = seen.values[ValidationLoss(max_rows=self.max_rows)]  # (K,)
        excess = torch.where(loss == 0, 0.0, loss - self._target(seen.index))  # 0: nothing was measured
        excess = excess.clamp(min=0) if self.excess == "clipped" else excess
        log_weights = (state.log_weights + self.eta * excess).log_softmax(0)
        if self.smoothing:
            log_weights = ((1 - self.smoothing) * log_weights.exp() + self.smoothing / len(loss)).log()
        return ShearedState(log_weights, True)

    def _target(self, index: PoolIndex) -> Tensor:
        """L_ref (K,)."""
        assert self.reference is not None
        return for_every_domain(self.reference, index.domains, where=WHERE)
