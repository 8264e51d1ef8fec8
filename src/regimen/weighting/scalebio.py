"""ScaleBiO: shares of domains in the loss, learnt for a target set with first derivatives alone, beside a second model.

Paper: ScaleBiO, arXiv 2406.19976, algorithm 1; code 2003pro/ScaleBiO. The problem min_p L1(w*(p)), w*(p) the minimiser
of L2(w, p) = sum_k p_k L_k(w), is turned into min_{p,w} max_u L1(w) + alpha (L2(w, p) - L2(u, p)), p = softmax(lambda).
In every step, on the same rows: u goes down L2(u, p); w goes down L1(w) + alpha L2(w, p); lambda follows
    d/d lambda_k = alpha p_k (g_k - sum_j p_j g_j),   g_k = L_k(w) - L_k(u),
0 for a domain that the batch lacks. All three use Adam. u is the model of the run: it alone approaches w*(p), while w
stays off by 1 / (1 + alpha) of the way to the target. w, kept in the state, starts where the model is.
L_k(w) - L_k(u) is small beside both, so w must move as u does: with another optimizer the one that is ahead lowers all
losses, of noise the least, and shares follow that. Hence w takes the run's learning rate, moments, decay and clipping.
Differs from the paper: w and its losses are measured with dropout off; u is not trained on alpha times its loss, and w
on 1 / (1 + alpha) of its own, factors to which Adam is blind, so that both are clipped alike; alpha does not grow,
there is one outer iteration; all parameters that are trained move, where the paper draws two layers at a time (LISA).
Beware: u's losses are those of training, in which dropout looks like being behind: set it to 0 in the model.
Memory: w and two moments beside the model's. Domains, not rows, are told apart.
Letters: B rows of the global batch, K domains, M target rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from regimen.core.checks import check_counts, check_positive
from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.learning import Learner
from regimen.core.signal import Meter, Signal
from regimen.core.strategy import Observation, WeighedBatch
from regimen.signals.loss import Loss
from regimen.weighting.bilevel import score_gradient
from regimen.weighting.by_domain import domain_coefficients, domain_means, domain_sizes, domain_weights
from regimen.weighting.descent import Moments, adam, clipped, no_moments


class ScaleBioState(NamedTuple):
    """scores: (K,) float64 lambda; their Adam moments. w: the second model by name of the parameter, empty before the
    first step; its moments. below: (K,) float64 L_k(w) on the batch at hand, before w's step on it.
    """

    scores: Tensor
    score_first: Tensor
    score_second: Tensor
    w: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    steps: int
    below: Tensor
    target_loss: float


@dataclass(frozen=True, kw_only=True)
class ScaleBio(Learner):
    """Weights that make the loss of a step sum_k p_k L_k over the domains of the global batch.

    alpha: price of w not being the minimiser, above 0; 10 for GPT-2, 100 for Yi-34B in the paper's code.
    lr: of w; null for the run's learning rate of the step. betas, decay, clip: of AdamW on w, as the run's; matrices
        decay. clip: largest norm of w's gradient; null for no limit. score_lr: of lambda; 0 keeps the shares even.
    report_every: steps between two lines of lessons in the record, for each of which the whole target set is measured.
    """

    whole_parameters: ClassVar[bool] = True  # on every rank
    model_copies: ClassVar[int] = 3  # w and its moments
    target_rows: int | None = 8
    alpha: float = 10.0
    lr: float | None = None
    betas: Sequence[float] = (0.9, 0.95)
    decay: float = 0.1
    clip: float | None = 1.0
    score_lr: float = 1e-2
    report_every: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "report_every")
        check_positive(self, "alpha", *([] if self.clip is None else ["clip"]))
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError("betas of scalebio are two parts", got=list(self.betas), allowed="0 to below 1")
        for name in ("lr", "decay", "score_lr"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"{name} of scalebio cannot be negative", got=f"{name}={value}", allowed="0 or more")

    def init(self, index: PoolIndex) -> ScaleBioState:
        zeros = torch.zeros(len(index.domains), dtype=torch.float64)
        return ScaleBioState(zeros, zeros, zeros, {}, {}, {}, 0, zeros, math.nan)

    def watches(self) -> tuple[Signal, ...]:
        return (Loss(),)

    def lessons(self, step: int, total_steps: int) -> int:
        return 1

    def reports(self, step: int, total_steps: int) -> bool:
        return step % self.report_every == 0

    def lesson(self, state: ScaleBioState, batch: WeighedBatch, meter: Meter, targets: Tensor) -> ScaleBioState:
        """The state after w's step on the rows that u is about to be trained on."""
        coefficients = self.alpha * domain_coefficients(state.scores.softmax(0), batch, self.reduction)  # (B,)
        found = meter.slope(batch.ids, coefficients, targets, at=state.w or None)
        moments = no_moments(found.at)
        if state.steps:  # a checkpoint brings them back on the CPU
            first = {name: value.to(found.at[name]) for name, value in state.first.items()}
            second = {name: value.to(found.at[name]) for name, value in state.second.items()}
            moments = Moments(first, second, state.steps)
        gradient = {name: value / (1 + self.alpha) for name, value in found.gradient.items()}
        w, moments = adam(
            *(found.at, clipped(gradient, self.clip), moments),
            lr=batch.lr if self.lr is None else self.lr,
            decay={name: self.decay * (value.dim() > 1) for name, value in found.at.items()},
            betas=(self.betas[0], self.betas[1]),
        )
        below = domain_means(found.losses, batch, self.reduction)
        return state._replace(
            w=w,
            first=moments.first,
            second=moments.second,
            steps=moments.steps,
            below=below,
            target_loss=found.target_loss,
        )

    def weigh(self, state: ScaleBioState, losses: Tensor, batch: WeighedBatch) -> Tensor:
        """Weights (B,); 0 for a row without target tokens."""
        return domain_weights(state.scores.softmax(0), batch, self.reduction).to(losses)

    def observe(self, state: ScaleBioState, seen: Observation) -> ScaleBioState:
        """The state after lambda's step: u's losses are those that it was trained on."""
        here = domain_sizes(seen, self.reduction) > 0  # (K,)
        above = domain_means(seen.values[Loss()], seen, self.reduction)
        slope = self.alpha * torch.where(here, state.below - above, 0.0)
        gradient = score_gradient(state.scores.softmax(0), slope, tau=1.0)
        moments = Moments({"": state.score_first}, {"": state.score_second}, state.steps - 1)
        scores, moments = adam({"": state.scores}, {"": gradient}, moments, lr=self.score_lr)
        return state._replace(scores=scores[""], score_first=moments.first[""], score_second=moments.second[""])

    def gives(self, state: ScaleBioState, index: PoolIndex) -> dict[str, Any]:
        """`mixture`: p at the end."""
        return {"mixture": self._named(state.scores.softmax(0), index)}

    def shows(self, state: ScaleBioState, index: PoolIndex) -> dict[str, Any]:
        """p, w's losses by domain on the last batch, 0 for one that it lacked, and w's on the target rows."""
        shares = self._named(state.scores.softmax(0), index)
        return {"shares": shares, "below": self._named(state.below, index), "target_loss_of_w": state.target_loss}

    @staticmethod
    def _named(values: Tensor, index: PoolIndex) -> dict[str, float]:
        return dict(zip(index.domains, values.tolist(), strict=True))
