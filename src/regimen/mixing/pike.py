"""PiKE: domains gain rows where their gradient is long, and lose them where it is noisy.

Paper: PiKE, arXiv 2502.06244, its algorithm.
Differs from the paper: counts of a batch are `draw: fixed_counts`, B w rounded by largest remainders with what rounding
left over carried to the next batch: each batch has counts within 1 of B w that sum to B, and a domain with B w below
1/2, which the paper's rounding never draws, is drawn now and then. The squared norm and the variance are unbiased
estimates from rows drawn for them, out of the batch; the first may come out below 0. w counts rows, and the shares of
target tokens that are decided are the ones that give rows this probability. The balanced form is not here: it also
weighs the losses, which no mixer does.
Letters: K domains, n rows of a domain that are measured, g its gradient, s its variance, b rows of the global batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from regimen.core.errors import ConfigError, RunError
from regimen.core.index import PoolIndex
from regimen.core.plan import Draw
from regimen.core.signal import Signal
from regimen.core.strategy import Mixer, Observation
from regimen.signals.domains import GradientMoments


class PikeState(NamedTuple):
    """log_w: (K,) float64, logarithms of the rows' shares, -inf for a domain without rows."""

    log_w: Tensor


@dataclass(frozen=True, kw_only=True)
class Pike(Mixer):
    """At every decision w_k <- w_k exp(zeta1 |g_k|^2 - zeta2 s_k / (2 b)), normalised.

    zeta1, zeta2: 0 or more, what a long gradient adds and what its variance takes away.
    batch_rows: b.
    rows_per_domain: rows of each domain that are drawn at a decision to estimate g and s, at least 2.
    parameters: a regular expression for the names of parameters that are differentiated; null for all.
    initial: w before the first decision, `uniform` or `natural`.
    """

    draw: Draw = "fixed_counts"
    zeta1: float = 1e-2
    zeta2: float = 1e-2
    batch_rows: int = 256
    rows_per_domain: int = 8
    parameters: str | None = None
    initial: Literal["uniform", "natural"] = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.zeta1 < math.inf and 0 <= self.zeta2 < math.inf):
            got = f"zeta1={self.zeta1}, zeta2={self.zeta2}"
            raise ConfigError("zeta1 and zeta2 of PiKE cannot be negative", got=got, allowed="0 or more")
        if self.batch_rows < 1:
            raise ConfigError("batch_rows counts rows of the global batch", got=self.batch_rows, allowed="1 or more")
        if self.initial not in ("uniform", "natural"):
            raise ConfigError("unknown initial mixture", got=f"initial={self.initial}", allowed="uniform, natural")
        _ = self.moments  # refuses its own fields

    @property
    def moments(self) -> GradientMoments:
        """The signal that drives the shares."""
        return GradientMoments(rows_per_domain=self.rows_per_domain, parameters=self.parameters)

    def needs(self) -> tuple[Signal, ...]:
        return (self.moments,)

    def init(self, index: PoolIndex) -> PikeState:
        filled = index.sizes > 0
        first = filled.double() if self.initial == "uniform" else index.sizes.double()
        return PikeState((first / first.sum()).log())

    def decide(self, state: PikeState, seen: Observation) -> Tensor:
        """Shares (K,) float64 of target tokens that draw rows of each domain with probability w."""
        shares = self._log_w(state, seen).exp() * seen.index.mean_tokens()  # (K,)
        return shares / shares.sum()

    def advance(self, state: PikeState, decision: Tensor, seen: Observation) -> PikeState:
        return PikeState(self._log_w(state, seen))

    def _log_w(self, state: PikeState, seen: Observation) -> Tensor:
        """Logarithms (K,) of the rows' shares from now on."""
        moments = seen.values[self.moments]  # (K, 3)
        if not bool(moments.isfinite().all()):
            bad = [d for d, row in zip(seen.index.domains, moments, strict=True) if not bool(row.isfinite().all())]
            raise RunError(
                f"the gradient of a domain is not a number at step {seen.step}",
                got=", ".join(bad),
                do="lower optimizer.lr, or set trainer.gradient_clip_val=1.0; earlier checkpoints are kept",
            )
        square, variance = unbiased(moments)
        gain = self.zeta1 * square - self.zeta2 / (2 * self.batch_rows) * variance  # (K,)
        return (state.log_w + gain).log_softmax(0)


def unbiased(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Estimates (K,) of |g|^2 and s from (K, 3): squared norm of the mean of n gradients, mean of their squares, n.

    The first is |g|^2 + s / n on average, the second |g|^2 + s. One row alone has no variance.
    """
    of_mean, mean_square, n = moments.unbind(1)
    variance = (mean_square - of_mean) * n / (n - 1).clamp(min=1)
    return of_mean - variance / n.clamp(min=1), variance
