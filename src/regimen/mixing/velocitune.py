"""Velocitune: domains that are slow to come from their initial to their target loss gain share.

Paper: Velocitune, arXiv 2411.14318.
Experimental: the paper was not at hand and no code is known. Of two secondary descriptions, one gives the velocity as
the part of the way to the target that is done, (L_0 - L) / (L_0 - L_target), one as what is left, 1 minus that;
in both, slower domains gain. Chosen: w_i becomes w_i exp(eta left_i), with left_i cut to [0, 1] and eta = 1. With the
part that is done and a negative sign the shares are the same, since the two differ by a factor common to all domains.
The size of eta, the cut and the average that is handed on are unconfirmed. The paper fits its targets by a scaling law.
Letters: K domains; w weights, L validation losses, L_0 at the first decision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

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

WHERE = "strategies.velocitune.targets"


class VelocituneState(NamedTuple):
    """log_weights: (K,) float64. first: (K,) losses at the first decision. total: (K,) sum of decided shares."""

    log_weights: Tensor
    first: Tensor
    total: Tensor
    decisions: int


@dataclass(frozen=True, kw_only=True)
class Velocitune(Mixer):
    """The first decision takes the initial shares, each later one multiplies them by exp(eta left), normalised.

    targets: loss in nats per token to be reached, by domain, of every domain of the pool. A domain that starts at or
        below its target has nothing left.
    initial: `natural` or `uniform`.
    eta: step size, 0 or more.
    max_rows: validation rows per domain that are measured; null for all.
    """

    targets: Mapping[str, float] | None = None
    initial: Literal["natural", "uniform"] = "natural"
    eta: float = 1.0
    max_rows: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets is None:
            raise ConfigError(
                "Velocitune has no target losses",
                got=f"{WHERE}=null",
                do=f"give the validation losses to be reached, e.g. '{WHERE}={{web: 2.9, code: 1.4}}'",
            )
        object.__setattr__(self, "targets", losses_by_name(self.targets, where=WHERE))
        check_one_of("initial", self.initial, INITIAL)
        if not 0 <= self.eta < math.inf:
            raise ConfigError("eta is a step size", got=self.eta, allowed="0 or more")
        self.needs()

    def needs(self) -> tuple[Signal, ...]:
        return (ValidationLoss(max_rows=self.max_rows),)

    def init(self, index: PoolIndex) -> VelocituneState:
        """The initial weights; targets that do not fit the domains are refused here."""
        self._target(index)
        zeros = torch.zeros(len(index.domains), dtype=torch.float64)
        return VelocituneState(initial_shares(self.initial, index).log(), zeros, zeros.clone(), 0)

    def decide(self, state: VelocituneState, seen: Observation) -> Tensor:
        """Shares (K,) float64; 0 for a domain without tokens."""
        return exponential_shares(self._stepped(state, seen).log_weights, seen.index)

    def advance(self, state: VelocituneState, decision: Tensor, seen: Observation) -> VelocituneState:
        return self._stepped(state, seen)._replace(total=state.total + decision, decisions=state.decisions + 1)

    def gives(self, state: VelocituneState, index: PoolIndex) -> dict[str, Any]:
        """`mixture`: the mean of the decided shares, which the paper's ablation trains on."""
        if not state.decisions:
            return {}
        return {"mixture": dict(zip(index.domains, (state.total / state.decisions).tolist(), strict=True))}

    def _stepped(self, state: VelocituneState, seen: Observation) -> VelocituneState:
        loss = seen.values[ValidationLoss(max_rows=self.max_rows)]  # (K,)
        if not state.decisions:
            return state._replace(first=loss)
        left = part_left(loss, first=state.first, target=self._target(seen.index))
        return state._replace(log_weights=(state.log_weights + self.eta * left).log_softmax(0))

    def _target(self, index: PoolIndex) -> Tensor:
        """Target losses (K,)."""
        assert self.targets is not None
        return for_every_domain(self.targets, index.domains, where=WHERE)


def part_left(loss: Tensor, *, first: Tensor, target: Tensor) -> Tensor:
    """Part (K,), in [0, 1], of the way from the first to the target loss that is left; 0 where there was none."""
    way = first - target  # (K,)
    left = ((loss - target) / torch.where(way > 0, way, 1.0)).clamp(0, 1)
    return torch.where((way > 0) | loss.isnan(), left, 0.0)
