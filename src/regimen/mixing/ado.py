"""Adaptive Data Optimization: shares follow how fast each domain's loss still falls, by a power law fitted in training.

Paper: ADO, arXiv 2410.11820, section 3.  Source of the defaults: yidingjiang/ado.
Differs from the paper: `credit: h` is its h^s; the released code has (h (1 - h))^s, which is `credit: h(1-h)`. h is an
average of what was drawn, as in the code; by an independent copy (mixtera) the paper averages the policy. Shares are of
target tokens, and D counts rows (in the paper all rows have one length). The warm-up and the steps that fits leave out
may be parts of the run, and the smoothing window shrinks where fewer steps are done. The floor is at most 1/K, and not
given to domains without tokens. How laws are fitted: `loss_curve`.
Letters: K domains, t steps done, D rows; mu natural shares, rho preference, h what was drawn, pi the decided shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from regimen.core.checks import check_one_of
from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.signal import Signal
from regimen.core.strategy import Mixer, Observation
from regimen.mixing.common import LOSS, domain_losses
from regimen.mixing.loss_curve import fit_power_laws, odd_window, savitzky_golay, smoother

_FEWEST = 5  # points that three parameters are fitted to
_ENOUGH = 20  # points of a curve shorter than the window, which is then taken at a smaller stride


class AdoState(NamedTuple):
    """What has been seen of the curves, and the policy.

    steps: seen. losses, rows: (R, K) float64 of the last R <= window steps: mean losses, and rows served so far.
    smooth_losses, smooth_rows: (P, K) smoothed points whose windows are complete. laws: (K, 3) a, e, alpha; NaN before
    the first fit. fitted: step of the last fit, -1 before. drawn: (K,) h. mean: (K,) mean of rho over time.
    """

    steps: int
    losses: Tensor
    rows: Tensor
    smooth_losses: Tensor
    smooth_rows: Tensor
    laws: Tensor
    fitted: int
    drawn: Tensor
    mean: Tensor


@dataclass(frozen=True, kw_only=True)
class Ado(Mixer):
    """pi = (1 - blend) mean(rho) + blend rho, with rho in proportion to mu h^s (-dL/dD), floored.

    start: when the first law is fitted; until then the shares are natural. A whole number counts steps, a number below
        1 is a part of the run, here and in the next two.
    ignore: the first steps, which no fit uses.
    refit_every: between fits.
    window, order, stride: of the Savitzky-Golay filter, in steps; every `stride`-th smoothed loss is fitted.
    counts: `all`: D counts the rows of all domains, the released default; `domain`: those of the domain.
    credit: the share that a domain's progress is credited to, to the power s: `h` or `h(1-h)`.
    credit_exponent: s. credit_decay: weight of the past in h, in [0, 1).
    blend: part of rho in pi. floor: smallest entry of rho before it is normalised. least_alpha: smallest exponent.
    """

    start: float = 0.05
    ignore: float = 0.01
    refit_every: float = 1000
    window: int = 101
    order: int = 3
    stride: int = 10
    counts: Literal["all", "domain"] = "all"
    credit: Literal["h", "h(1-h)"] = "h"
    credit_exponent: float = 0.5
    credit_decay: float = 0.9
    blend: float = 0.1
    floor: float = 0.01
    least_alpha: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("start", 0), ("ignore", 0), ("refit_every", 1e-9)):
            value = getattr(self, name)
            if not value >= least or (value > 1 and value % 1 != 0):
                allowed = "a whole number of steps, or a part of the run below 1"
                raise ConfigError(f"{name} says when", got=value, allowed=allowed)
        if self.window < 5 or self.window % 2 == 0 or not 0 <= self.order < self.window or self.stride < 1:
            raise ConfigError(
                "the smoothing filter cannot work",
                got=f"window={self.window}, order={self.order}, stride={self.stride}",
                allowed="an odd window of 5 or more steps, 0 <= order < window, stride of 1 or more",
            )
        check_one_of("counts", self.counts, ("all", "domain"))
        check_one_of("credit", self.credit, ("h", "h(1-h)"))
        for name in ("credit_decay", "floor"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is a part", got=getattr(self, name), allowed=f"0 <= {name} < 1")
        if not 0 <= self.blend <= 1 or not self.credit_exponent >= 0 or not self.least_alpha >= 0:
            raise ConfigError(
                "blend is a part of 1, credit_exponent and least_alpha are 0 or more",
                got=f"blend={self.blend}, credit_exponent={self.credit_exponent}, least_alpha={self.least_alpha}",
            )

    def init(self, index: PoolIndex) -> AdoState:
        k = len(index.domains)
        none = torch.empty(0, k, dtype=torch.float64)
        laws = torch.full((k, 3), torch.nan, dtype=torch.float64)
        natural = index.natural()
        return AdoState(0, none, none.clone(), none.clone(), none.clone(), laws, -1, natural, natural.clone())

    def watches(self) -> tuple[Signal, ...]:
        return (LOSS,)

    def observe(self, state: AdoState, seen: Observation) -> AdoState:
        """The curves one step longer; where a fit is due, new laws, unless they are not finite."""
        state = self._point_made(self._added(state, seen), seen)
        first, every = _steps(self.start, seen.total_steps), max(1, _steps(self.refit_every, seen.total_steps))
        if state.steps < first or (state.fitted >= 0 and state.steps < state.fitted + every):
            return state
        losses, rows = self._curves(state, seen)
        if len(losses) < _FEWEST:
            return state
        laws = fit_power_laws(rows.clamp(min=1), losses.clamp(min=1e-6))
        finite = laws.isfinite().all(1, keepdim=True)  # (K, 1)
        return state._replace(laws=torch.where(finite, laws, state.laws), fitted=state.steps)

    def decide(self, state: AdoState, seen: Observation) -> Tensor:
        """Shares (K,) float64; natural before the first fit, 0 for a domain without tokens."""
        natural = seen.index.natural()
        preference = self._preference(state, seen)
        if preference is None:
            return natural
        shares = (1 - self.blend) * state.mean + self.blend * preference
        shares = torch.where(natural > 0, shares, 0.0)  # (K,)
        return shares / shares.sum()

    def advance(self, state: AdoState, decision: Tensor, seen: Observation) -> AdoState:
        preference = self._preference(state, seen)
        if preference is None:
            return state
        part = 1 / (seen.step + 1)
        return state._replace(mean=(1 - part) * state.mean + part * preference)

    def _preference(self, state: AdoState, seen: Observation) -> Tensor | None:
        """The preference rho (K,); None before the first fit."""
        if not bool(state.laws.isfinite().all()):
            return None
        natural = seen.index.natural()
        drawn = state.drawn if self.credit == "h" else state.drawn * (1 - state.drawn)  # (K,)
        speed = falling(state.laws, state.rows[-1], least_alpha=self.least_alpha)
        return preference(natural, drawn**self.credit_exponent, speed, floor=self.floor)

    def _added(self, state: AdoState, seen: Observation) -> AdoState:
        """With the losses, counts and drawn shares of the batch. A domain without a loss has its last one."""
        k = len(seen.index.domains)
        loss, present = domain_losses(seen)
        before = state.losses[-1:].squeeze(0) if len(state.losses) else loss[present].mean().expand(k)
        rows = torch.bincount(seen.domain, minlength=k).double()  # (K,)
        tokens = torch.zeros(k, dtype=torch.float64).index_add_(0, seen.domain, seen.tokens.double())
        served = rows.sum().expand(k) if self.counts == "all" else rows
        served = state.rows[-1] + served if len(state.rows) else served
        drawn = self.credit_decay * state.drawn + (1 - self.credit_decay) * tokens / tokens.sum().clamp(min=1)
        return state._replace(
            steps=state.steps + 1,
            losses=torch.cat([state.losses, torch.where(present, loss, before)[None]])[-self.window :],
            rows=torch.cat([state.rows, served[None]])[-self.window :],
            drawn=drawn,
        )

    def _point_made(self, state: AdoState, seen: Observation) -> AdoState:
        """With the points on the stride whose window the last step completed: half a window at first, then one."""
        half, complete = self.window // 2, state.steps - self.window
        if complete < 0:
            return state
        places = torch.arange(0 if complete == 0 else half, half + 1)  # in the window
        places = places[self._on_stride(places + complete, seen)]
        if not len(places):
            return state
        losses = smoother(self.window, self.order)[places] @ state.losses
        return state._replace(
            smooth_losses=torch.cat([state.smooth_losses, losses]),
            smooth_rows=torch.cat([state.smooth_rows, state.rows[places]]),
        )

    def _curves(self, state: AdoState, seen: Observation) -> tuple[Tensor, Tensor]:
        """Smoothed losses (P, K) and counts (P, K) to fit."""
        held = len(state.losses)
        losses = savitzky_golay(state.losses, window=odd_window(self.window, held), order=self.order)
        steps = torch.arange(held) + state.steps - held
        if held < self.window:
            skipped = min(_steps(self.ignore, seen.total_steps), held)
            stride = max(1, min(self.stride, (held - skipped) // _ENOUGH))
            return losses[skipped::stride], state.rows[skipped::stride]
        last = self._on_stride(steps, seen) & (torch.arange(held) > self.window // 2)
        return torch.cat([state.smooth_losses, losses[last]]), torch.cat([state.smooth_rows, state.rows[last]])

    def _on_stride(self, steps: Tensor, seen: Observation) -> Tensor:
        """Whether the losses of steps (n,), counted from 0, are fitted: (n,) bool."""
        ignored = _steps(self.ignore, seen.total_steps)
        return (steps >= ignored) & ((steps - ignored) % self.stride == 0)


def falling(laws: Tensor, counts: Tensor, *, least_alpha: float) -> Tensor:
    """-dL/dD (K,) of laws (K, 3) at counts (K,), with exponents of at least `least_alpha`."""
    a, _, alpha = laws.unbind(1)
    counts = counts.clamp(min=1)
    return alpha.clamp(min=least_alpha) * (a - alpha * counts.log()).exp() / counts


def preference(natural: Tensor, credit: Tensor, speed: Tensor, *, floor: float) -> Tensor:
    """The preference rho (K,) in proportion to natural * credit * speed, at least `floor` where a domain has tokens."""
    weight = natural * credit * speed
    weight = weight if bool(weight.sum() > 0) else natural
    held = natural > 0  # (K,)
    rho = (weight / weight.sum()).clamp(min=min(floor, 1 / int(held.sum())))
    rho = torch.where(held, rho, 0.0)
    return rho / rho.sum()


def _steps(amount: float, total: int) -> int:
    """Steps that a setting means: itself, or a part of the run."""
    return round(amount * total) if amount < 1 else int(amount)
