"""Aioli: from time to time short runs on each domain show what it does for every other, which sets the shares.

Paper: Aioli, arXiv 2411.05735, algorithm 1 (LearnParams: algorithm 2).  Source of the defaults: HazyResearch/aioli.
Differs from the paper: nothing in the formulas. `ema` is the released default; without it (null) the shares are carried
over from update to update. A sweep that the run is too short to finish is not begun: the shares stay. Entries of A that
are all equal, which normalising cannot scale, count as the same number.
Letters: J domains that have rows; A (J, J) what training on j (column) takes off the loss of i (row), p shares, h the
share of the domain in turn during a sweep, W (J, J) the mixtures of a sweep.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.signal import Signal
from regimen.core.strategy import Mixer, Observation
from regimen.signals.domains import ValidationLoss


class AioliState(NamedTuple):
    """Where the sweep is, and what was learned.

    live: (J,) int64 domains with rows. order: (rounds * J,) int64 places in `live`, in turn; empty outside a sweep.
    turn: parts of the sweep that are over. losses: (J,) at the last measurement. drops: (J, J) sums of loss drops.
    effects: (J, J) average of A over the updates. exponents: (J,) of the shares. updates: made so far.
    """

    live: Tensor
    order: Tensor
    turn: int
    losses: Tensor
    drops: Tensor
    effects: Tensor
    exponents: Tensor
    updates: int


@dataclass(frozen=True, kw_only=True)
class Aioli(Mixer):
    """Every `update_steps` steps, a sweep over the domains estimates A; then p in proportion to exp(eta sum_i A_ij).

    lp_rounds, lp_steps: a sweep gives each domain its turn `lp_rounds` times, for `lp_steps` steps each.
    h: share of the domain in turn, the rest being shared equally by the others; in (0, 1], not 1/J.
    eta: step size, 0 or more.
    ema: weight of the earlier A in the average that the shares follow, starting from uniform shares at each update;
        null: the shares of the last update times exp(eta sum_i A_ij).
    update_steps: from the start of one sweep to that of the next; more than lp_rounds * lp_steps * J.
    normalise: shift A so that no entry is negative, and scale its entries to the sum 1.
    max_rows: validation rows per domain that are measured; null for all.
    """

    lp_rounds: int = 4
    lp_steps: int = 4
    h: float = 0.625
    eta: float = 0.2
    ema: float | None = 0.1
    update_steps: int = 250
    normalise: bool = True
    max_rows: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.lp_rounds, self.lp_steps, self.update_steps) < 1:
            got = f"lp_rounds={self.lp_rounds}, lp_steps={self.lp_steps}, update_steps={self.update_steps}"
            raise ConfigError("lp_rounds, lp_steps and update_steps are counts", got=got, allowed="1 or more")
        if not 0 < self.h <= 1:
            raise ConfigError("h is the share of the domain in turn", got=self.h, allowed="0 < h <= 1")
        if not 0 <= self.eta < math.inf:
            raise ConfigError("eta is a step size", got=self.eta, allowed="0 or more")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ConfigError("ema is the weight of the past", got=self.ema, allowed="0 <= ema < 1, or null")
        self.needs()

    def needs(self) -> tuple[Signal, ...]:
        return (ValidationLoss(max_rows=self.max_rows),)

    def init(self, index: PoolIndex) -> AioliState:
        """Uniform shares. Raises ConfigError where a sweep does not fit between updates, or h is 1/J."""
        live = torch.nonzero(index.sizes).squeeze(1)  # (J,)
        j = len(live)
        if j > 1 and self._sweep(j) >= self.update_steps:
            raise ConfigError(
                "a sweep over the domains takes longer than the time between updates",
                got=f"lp_rounds={self.lp_rounds} * lp_steps={self.lp_steps} * {j} domains = {self._sweep(j)} steps, "
                f"update_steps={self.update_steps}",
                allowed="fewer steps than update_steps",
                do="lower strategies.aioli.lp_rounds or .lp_steps, or raise strategies.aioli.update_steps",
            )
        if j > 1 and abs(self.h - 1 / j) < 1e-6:
            raise ConfigError(
                "with this h every mixture of a sweep is uniform, which shows nothing",
                got=f"strategies.aioli.h={self.h} with {j} domains",
                do=f"set strategies.aioli.h above 1/{j}, e.g. {(1 + 1 / j) / 2:.3g}",
            )
        none, zeros = torch.empty(0, dtype=torch.int64), torch.zeros(j, dtype=torch.float64)
        square = torch.zeros(j, j, dtype=torch.float64)
        return AioliState(live, none, 0, zeros, square, square.clone(), zeros.clone(), 0)

    def ready(self, step: int, index: PoolIndex) -> bool:
        """At the start of a sweep and at the end of each of its parts."""
        j = int((index.sizes > 0).sum())
        if j < 2:
            return step == 0
        into = step % self.update_steps
        return into <= self._sweep(j) and into % self.lp_steps == 0

    def decide(self, state: AioliState, seen: Observation) -> Tensor:
        """Shares (K,) float64; 0 for a domain without rows in the pool."""
        after = self._advanced(state, seen)
        j = len(after.live)
        if j > 1 and after.turn < len(after.order):
            shares = sweep_mixtures(j, self.h)[after.order[after.turn]]
        else:
            shares = after.exponents.softmax(0)
        return torch.zeros(len(seen.index.domains), dtype=torch.float64).index_copy_(0, after.live, shares)

    def advance(self, state: AioliState, decision: Tensor, seen: Observation) -> AioliState:
        return self._advanced(state, seen)

    def _sweep(self, j: int) -> int:
        return self.lp_rounds * self.lp_steps * j

    def _advanced(self, state: AioliState, seen: Observation) -> AioliState:
        """With the losses of this moment taken in."""
        j = len(state.live)
        if j < 2:
            return state
        losses = seen.values[ValidationLoss(max_rows=self.max_rows)][state.live]  # (J,)
        into = seen.step % self.update_steps
        if into == 0:
            return self._begun(state, losses, seen)
        if not len(state.order):
            return state
        if into != (state.turn + 1) * self.lp_steps:
            raise ConfigError(
                "Aioli has missed a moment at which it measures",
                got=f"step {seen.step}, {state.turn} of {len(state.order)} parts of the sweep over",
                do="leave strategies.aioli.when at every step: Every with steps=1, start=0",
            )
        drops = state.drops.clone()
        drops[:, state.order[state.turn]] += state.losses - losses
        state = state._replace(turn=state.turn + 1, losses=losses, drops=drops)
        return self._learned(state) if state.turn == len(state.order) else state

    def _begun(self, state: AioliState, losses: Tensor, seen: Observation) -> AioliState:
        """A new sweep, if the run is long enough to finish it."""
        j = len(state.live)
        if seen.step + self._sweep(j) >= seen.total_steps:
            if seen.step == 0:
                raise ConfigError(
                    "the run ends before Aioli has swept over the domains once",
                    got=f"a sweep of {self._sweep(j)} steps, a run of {seen.total_steps}",
                    do="lower strategies.aioli.lp_rounds or .lp_steps, or train longer",
                )
            return state._replace(order=state.order[:0], turn=0)
        # Not the generator itself: `decide` and `advance` must draw the same order, on every rank.
        draws = torch.Generator().manual_seed(seen.generator.initial_seed())
        order = torch.cat([torch.randperm(j, generator=draws) for _ in range(self.lp_rounds)])
        return state._replace(order=order, turn=0, losses=losses, drops=torch.zeros_like(state.drops))

    def _learned(self, state: AioliState) -> AioliState:
        """With A from the drops of the sweep, and the exponents that follow."""
        effects = learned_effects(state.drops / self.lp_rounds, self.h)
        effects = normalised(effects) if self.normalise else effects
        if self.ema is None:
            exponents = state.exponents + self.eta * effects.sum(0)
        else:
            kept = self.ema if state.updates else 0.0
            effects = (1 - kept) * effects + kept * state.effects
            exponents = self.eta * effects.sum(0)  # (J,)
        return state._replace(effects=effects, exponents=exponents, updates=state.updates + 1)


def sweep_mixtures(j: int, h: float) -> Tensor:
    """W (J, J) float64: row j is the mixture while domain j has its turn."""
    mixtures = torch.full((j, j), (1 - h) / (j - 1), dtype=torch.float64)
    return mixtures.fill_diagonal_(h)


def learned_effects(drops: Tensor, h: float) -> Tensor:
    """A (J, J) from the drops (J, J) of the loss of i while j had its turn, which are A W^T."""
    effects: Tensor = torch.linalg.solve(sweep_mixtures(len(drops), h), drops.T).T
    return effects


def normalised(effects: Tensor) -> Tensor:
    """Effects (J, J) without negative entries that sum to 1."""
    shifted = effects - effects.min().clamp(max=0)
    total = shifted.sum()
    return torch.full_like(shifted, 1 / shifted.numel()) if bool(total == 0) else shifted / total
