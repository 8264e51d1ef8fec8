"""Online Data Mixing: a bandit with one arm per domain, rewarded by the loss of the domain that was drawn.

Paper: ODM, arXiv 2312.02406.  Source of the variants: alon-albalak/online-data-mixing.
Differs from the paper: nothing in the formulas of `paper`. The initial mixture of the warm-up is the pool's natural one
or uniform. The paper's sequences have one length; here an arm's probability is that of a row, and the shares of target
tokens that are decided are the ones that give rows this probability. A domain without rows is no arm, and a loss
that is not a number earns nothing.
The paper draws one domain for each of 8 micro-batches of a step, as `draw: one_domain` with `draw_groups: 8` does.
`loss / pi` is an unbiased estimate of a domain's loss for one draw per step; with 8 it is up to 8 times too large for a
rare domain, in the paper as here, and with `draw: multinomial` every domain is in every batch and rare ones gain most.
Letters: K domains, t the step that the policy will draw, from 1; eps_t its exploration; R rewards, pi the policy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from regimen.core.draw import row_probabilities
from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.plan import Draw
from regimen.core.signal import Signal
from regimen.core.strategy import Mixer, Observation
from regimen.mixing.common import LOSS, domain_losses

VARIANTS = ("paper", "repo_linear_ppl", "exp3")


class OdmState(NamedTuple):
    """rewards: (K,) float64 R. policy: (K,) float64 pi, the probability of each domain in the last draw."""

    rewards: Tensor
    policy: Tensor


@dataclass(frozen=True, kw_only=True)
class Odm(Mixer):
    """Domains with a high loss are drawn more often, with exploration that fades as 1 / sqrt(t).

    variant: `paper`: R a moving average of loss / pi, pi from exp(eps R). `repo_linear_ppl`, the released default: R a
        moving average of exp(loss), pi from R itself. `exp3`: R the sum of loss / (10 pi), pi from exp(eps R).
    smoothing: a, the weight of the past in the moving averages, in [0, 1). The released scripts of `repo_linear_ppl`
        use 0.5. `exp3` has no average and ignores it.
    warmup: part of the run that keeps the initial mixture and earns no reward. The step that eps_t counts runs on.
    initial: the mixture of the warm-up, `natural` or `uniform`.
    """

    draw: Draw = "one_domain"
    draw_groups: int = 8
    variant: Literal["paper", "repo_linear_ppl", "exp3"] = "paper"
    smoothing: float = 0.9
    warmup: float = 0.01
    initial: Literal["natural", "uniform"] = "natural"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in VARIANTS:
            raise ConfigError("unknown variant of ODM", got=f"variant={self.variant}", allowed=", ".join(VARIANTS))
        if not 0 <= self.smoothing < 1:
            raise ConfigError("smoothing is the weight of the past", got=self.smoothing, allowed="0 <= smoothing < 1")
        if not 0 <= self.warmup < 1:
            raise ConfigError("warmup is a part of the run", got=self.warmup, allowed="0 <= warmup < 1")
        if self.initial not in ("natural", "uniform"):
            raise ConfigError("unknown initial mixture", got=f"initial={self.initial}", allowed="natural, uniform")

    def init(self, index: PoolIndex) -> OdmState:
        return OdmState(torch.zeros(len(index.domains), dtype=torch.float64), self._first_policy(index))

    def watches(self) -> tuple[Signal, ...]:
        return (LOSS,)

    def observe(self, state: OdmState, seen: Observation) -> OdmState:
        """Rewards of the domains in the batch, from their mean loss per target token, where that is a number."""
        if seen.progress <= self.warmup:  # the batch of step s was drawn when s - 1 steps were done
            return state
        loss, present = domain_losses(seen)  # (K,), (K,)
        earned = self._earned(state, loss)  # (K,)
        return state._replace(rewards=torch.where(present & earned.isfinite(), earned, state.rewards))

    def decide(self, state: OdmState, seen: Observation) -> Tensor:
        """Shares (K,) float64 of target tokens that draw rows of each domain with the policy's probability."""
        if seen.progress < self.warmup:
            policy = self._first_policy(seen.index)
        else:
            held = seen.index.sizes > 0  # (K,): a domain without rows is no arm
            policy = torch.zeros_like(state.rewards)
            policy[held] = self._policy(state.rewards[held], seen.step + 1)
        shares = policy * seen.index.mean_tokens()  # (K,)
        return shares / shares.sum()

    def advance(self, state: OdmState, decision: Tensor, seen: Observation) -> OdmState:
        return state._replace(policy=row_probabilities(decision, seen.index.mean_tokens()))

    def _first_policy(self, index: PoolIndex) -> Tensor:
        rows = index.sizes.double()  # (K,)
        return rows / rows.sum() if self.initial == "natural" else (rows > 0) / (rows > 0).sum().double()

    def _earned(self, state: OdmState, loss: Tensor) -> Tensor:
        """Rewards (K,) after losses (K,)."""
        if self.variant == "exp3":
            return state.rewards + loss / 10 / state.policy
        gain = loss / state.policy if self.variant == "paper" else loss.exp()  # (K,)
        return self.smoothing * state.rewards + (1 - self.smoothing) * gain

    def _policy(self, rewards: Tensor, t: int) -> Tensor:
        return linear_policy(rewards, t) if self.variant == "repo_linear_ppl" else exponential_policy(rewards, t)


def exploration(k: int, t: int) -> float:
    """eps_t for K domains: 1/K until t = K ln K, then falling as 1 / sqrt(t)."""
    return 1 / k if t < 1 else min(1 / k, math.sqrt(math.log(k) / (k * t)))


def exponential_policy(rewards: Tensor, t: int) -> Tensor:
    """pi_t (K,) from rewards (K,): a softmax of eps_{t-1} R, mixed with eps_t for each domain."""
    k = len(rewards)
    eps = exploration(k, t)
    return (1 - k * eps) * (exploration(k, t - 1) * rewards).softmax(0) + eps


def linear_policy(rewards: Tensor, t: int) -> Tensor:
    """pi_t (K,) from rewards (K,) >= 0: their shares, mixed with eps_t for each domain; uniform before any reward."""
    k = len(rewards)
    total, eps = rewards.sum(), exploration(k, t)
    shares = torch.where(total > 0, rewards / total, 1 / k)
    return (1 - k * eps) * shares + eps
