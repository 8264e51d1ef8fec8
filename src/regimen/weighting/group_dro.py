"""Group DRO: domains count more, step by step, the higher their loss.

Paper: Distributionally Robust Neural Networks for Group Shifts, arXiv 1911.08731, algorithm 1 and section 3.3. The loss
of a step is sum_g q_g L_g, after q_g has grown by the factor exp(eta (L_g + C / sqrt(n_g))).
Source of the options: kohpangwei/group_DRO.
Differs from the paper: a domain that the batch lacks keeps its q, and those present share out what they had together;
in the paper's code it counts as one of loss 0 and shrinks. The adjustment is in what q follows alone, so the losses
that are reported are losses. With `reference`, q follows the loss in excess of a reference model's, without which
domains of high entropy win for ever; DoReMi's proxy, which hands on a mixture, is `doremi_proxy`.
Letters: B rows of the global batch, K domains, n_g rows of domain g in the pool.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, WeighedBatch, Weighter
from regimen.signals.excess import ExcessLoss
from regimen.signals.loss import Loss
from regimen.weighting.by_domain import domain_sizes, domain_weights


class GroupDroState(NamedTuple):
    """q: (K,) float64, sum 1. average: (K,) moving mean of what q follows; NaN for a domain never seen."""

    q: Tensor
    average: Tensor


@dataclass(frozen=True, kw_only=True)
class GroupDro(Weighter):
    """Weights that make the loss of a step sum_g q_g L_g over the domains of the global batch.

    step_size: eta, 0 or more.
    adjustment: C, 0 or more; favours domains of few rows, on which a model overfits.
    normalise: whether what q follows is divided by its sum over the domains present.
    rule: `ascent` is the paper's; `cvar` puts all weight on the domains with the highest moving mean of losses, up to
        `fraction` of the pool's rows, the last of them in part.
    fraction: of `cvar`, above 0, up to 1. gamma: of the moving mean, the part of the newest loss.
    reference: folder of a finished run, whose losses are taken off; null for plain losses.
    reduction: of the objective: L_g is the mean over a domain's tokens, or over its rows.
    """

    step_size: float = 0.01
    adjustment: float = 0.0
    normalise: bool = False
    rule: Literal["ascent", "cvar"] = "ascent"
    fraction: float = 0.2
    gamma: float = 0.1
    reference: str | None = None
    reduction: Literal["token_mean", "sample_mean"] = "token_mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("step_size", self.step_size), ("adjustment", self.adjustment)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name} of group_dro cannot be negative", got=value, allowed="0 or more")
        for name, value in (("fraction", self.fraction), ("gamma", self.gamma)):
            if not 0 < value <= 1:
                raise ConfigError(f"{name} of group_dro is a part", got=value, allowed=f"0 < {name} <= 1")
        for name, choice, allowed in (
            ("rule", self.rule, ("ascent", "cvar")),
            ("reduction", self.reduction, ("token_mean", "sample_mean")),
        ):
            if choice not in allowed:
                raise ConfigError(f"unknown {name} of group_dro", got=choice, allowed=", ".join(allowed))

    @property
    def scope(self) -> Literal["example", "batch"]:
        """The losses of domains are those of the whole batch."""
        return "batch"

    @property
    def excess(self) -> ExcessLoss:
        """What q follows with a reference model."""
        return ExcessLoss(reference=self.reference, clip="none")

    def needs(self) -> tuple[Signal, ...]:
        return () if self.reference is None else (self.excess,)

    def watches(self) -> tuple[Signal, ...]:
        return (Loss(),)

    def init(self, index: PoolIndex) -> GroupDroState:
        k = len(index.domains)
        return GroupDroState(
            torch.full((k,), 1 / k, dtype=torch.float64), torch.full((k,), torch.nan, dtype=torch.float64)
        )

    def weigh(self, state: GroupDroState, losses: Tensor, batch: WeighedBatch) -> Tensor:
        """Weights (B,); 0 for a row without target tokens."""
        q = self._stepped(state, losses, batch).q  # (K,)
        if self.rule == "cvar":
            q = self._greedy(self._stepped(state, losses, batch).average, batch.index)
        return domain_weights(q, batch, self.reduction).to(losses)

    def observe(self, state: GroupDroState, seen: Observation) -> GroupDroState:
        return self._stepped(state, seen.values[Loss()], seen)

    def gives(self, state: GroupDroState, index: PoolIndex) -> dict[str, Any]:
        """`mixture`: q at the end."""
        return {"mixture": dict(zip(index.domains, state.q.tolist(), strict=True))}

    def shows(self, state: GroupDroState, index: PoolIndex) -> dict[str, Any]:
        """q, and the moving mean of what it follows; null for a domain never seen."""
        mean = [None if math.isnan(value) else value for value in state.average.tolist()]
        q = self._greedy(state.average, index) if self.rule == "cvar" else state.q
        return {
            "q": dict(zip(index.domains, q.tolist(), strict=True)),
            "average": dict(zip(index.domains, mean, strict=True)),
        }

    def _stepped(self, state: GroupDroState, losses: Tensor, batch: WeighedBatch | Observation) -> GroupDroState:
        """The state after a batch of mean token losses (B,)."""
        sums = losses.double() * batch.tokens if self.reference is None else batch.values[self.excess]  # (B,)
        if self.reduction == "sample_mean":
            sums = sums / batch.tokens.clamp(min=1)
        size = domain_sizes(batch, self.reduction)  # (K,)
        here = size > 0
        mean = torch.zeros_like(size).index_add_(0, batch.domain, sums) / size.clamp(min=1)
        known = torch.where(state.average.isnan(), mean, (1 - self.gamma) * state.average + self.gamma * mean)
        average = torch.where(here, known, state.average)
        if self.rule == "cvar":
            return GroupDroState(state.q, average)
        followed = mean + self._adjustments(batch.index)
        if self.normalise:
            followed = followed / followed[here].sum()
        return GroupDroState(ascend(state.q, followed, here, step_size=self.step_size), average)

    def _adjustments(self, index: PoolIndex) -> Tensor:
        return self.adjustment / index.sizes.clamp(min=1).double().sqrt()  # (K,)

    def _greedy(self, average: Tensor, index: PoolIndex) -> Tensor:
        """Weights q (K,) of `cvar`: pool shares of the worst domains over `fraction`; one never seen comes last."""
        share = index.sizes.double() / index.sizes.sum()
        ranked = (average + self._adjustments(index)).nan_to_num(-torch.inf).argsort(descending=True, stable=True)
        left = (self.fraction - share[ranked].cumsum(0) + share[ranked]).clamp(min=0)  # before each domain is taken
        q = torch.zeros_like(share)
        q[ranked] = torch.minimum(share[ranked], left) / self.fraction
        return q


def ascend(q: Tensor, followed: Tensor, here: Tensor, *, step_size: float) -> Tensor:
    """Weights q (K,) after an exponentiated step of the domains `here` (K,) bool, whose sum stays; others stay."""
    if not bool(here.any()):
        return q
    raised = (q[here].log() + step_size * followed[here]).softmax(0)  # normalised in logs, which cannot overflow
    out = q.clone()
    out[here] = raised * q[here].sum()
    return out
