"""DoGE's proxy: domains whose gradients agree with those of the target domains gain weight; hands on the mean weights.

Paper: DoGE, arXiv 2310.15393, algorithm 1 and its out-of-domain form.  Source of the options: Olivia-fsm/DoGE.
Differs from the paper: gradients are those of the model in evaluation mode, without dropout. A domain that the batch
lacks has no gradient: it scores 0 and adds nothing to the step, whose weights then sum to less than 1. Weights are kept
as logarithms, so that none is lost to underflow.
Differs from its code: nothing with `clip: 5.0`, `normalise_scores: true`, `clip_scores: [0, 5]` and `absent: last`,
but that `clip` looks at the chosen parameters where the code looks at all, and that `last` remembers inner products,
where the code remembers gradients and takes their products with those of today. A branch of the code that would leave
out a domain's product with itself never runs.
Letters: n rows, K domains, G gradients' inner products (K, K), W scores, alpha weights, eta learning rate, T_k target
tokens of domain k in the global batch, N of all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from regimen.core.errors import ConfigError, RunError, closest
from regimen.core.index import PoolIndex
from regimen.core.schedule import schedule_factor
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, WeighedBatch, Weighter
from regimen.signals.domains import GradientGram


class DogeState(NamedTuple):
    """log_alpha: (K,) float64. gram: (K, K) last G of each pair. total: (K,) sum of alpha over `steps` steps."""

    log_alpha: Tensor
    gram: Tensor
    total: Tensor
    steps: int


@dataclass(frozen=True, kw_only=True)
class DogeProxy(Weighter):
    """Weighs each domain's mean token loss by alpha, with alpha_j <- alpha_j exp(eta W_j / mu), W_j = sum_i G_ji.

    The paper draws domains uniformly: use it with the mixer `uniform`. The gradient of a step is exactly
    sum_j alpha_j grad(mean token loss of domain j) for `objective.reduction=token_mean`; with `sample_mean` and rows of
    unequal length, a domain with short rows counts more, by mean tokens of a row of the batch over those of its rows.

    target: the domains i that are summed over; null for all.
    out_of_domain: the targets get no weight, and their rows serve to measure alone.
    lr, schedule: eta, the learning rate of the run and its schedule (kind, warmup, final, decay); null: constant.
    mu: above 0, how far alpha stays from where it was. The authors' settings are 0.01, and 0.05 out of domain.
    parameters: a regular expression for the names of parameters whose gradients are compared; null for all.
    clip: largest norm of a domain's gradient, in scores and in the step, as the code's 5; null for no limit.
    normalise_scores: divide W by the mean norm of the gradients of the domains that have weight.
    clip_scores: [low, high] of W; the code's [0, 5] turns scores of opposed domains to 0. Null for no limits.
    absent: what stands for the gradient of a domain that the batch lacks: `zero`, or the `last` one.
    """

    target: Sequence[str] | None = None
    out_of_domain: bool = False
    lr: float = 5e-4
    schedule: Mapping[str, Any] | None = None
    mu: float = 0.01
    parameters: str | None = None
    clip: float | None = None
    normalise_scores: bool = False
    clip_scores: Sequence[float] | None = None
    absent: Literal["zero", "last"] = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.absent not in ("zero", "last"):
            raise ConfigError("unknown absent of DoGE", got=self.absent, allowed="zero, last")
        if not (0 <= self.lr < math.inf and 0 < self.mu < math.inf):
            raise ConfigError("lr / mu is a step size", got=f"lr={self.lr}, mu={self.mu}", allowed="lr >= 0, mu > 0")
        self.rate(0, 1)  # refuses a schedule that cannot be
        if self.clip is not None and not self.clip > 0:
            raise ConfigError("clip is a norm", got=self.clip, allowed="above 0, or null for no limit")
        limits = None if self.clip_scores is None else tuple(float(limit) for limit in self.clip_scores)
        if limits is not None and not (len(limits) == 2 and limits[0] < limits[1]):
            raise ConfigError("clip_scores are two limits", got=self.clip_scores, allowed="[low, high], low < high")
        object.__setattr__(self, "clip_scores", limits)
        object.__setattr__(self, "target", None if self.target is None else tuple(self.target))
        if self.target == () or (self.out_of_domain and self.target is None):
            raise ConfigError(
                "DoGE has no target domain",
                got=f"target={self.target}, out_of_domain={self.out_of_domain}",
                do="set strategies.doge_proxy.target=[NAME,...], or target=null and out_of_domain=false for all",
            )

    @property
    def gram(self) -> GradientGram:
        """The signal that drives the weights. It is clipped here, so that the step can be clipped alike."""
        return GradientGram(parameters=self.parameters)

    def needs(self) -> tuple[Signal, ...]:
        return (self.gram,)

    def init(self, index: PoolIndex) -> DogeState:
        """Uniform weights. Raises ConfigError for a target that the pool lacks, or where no domain is left to weigh."""
        _, trained = self.roles(index)
        if not bool(trained.any()):
            raise ConfigError(
                "every domain of the pool is a target", got=", ".join(index.domains), do="set out_of_domain=false"
            )
        zeros = torch.zeros(len(trained), len(trained), dtype=torch.float64)
        return DogeState((trained.double() / trained.sum()).log(), zeros, zeros[0].clone(), 0)

    def roles(self, index: PoolIndex) -> tuple[Tensor, Tensor]:
        """(K,) bool each: the target domains, and those that get weight."""
        for name in self.target or ():
            if name not in index.domains:
                raise ConfigError(
                    f"the pool has no domain of this name{closest(name, index.domains)}",
                    got=f"strategies.doge_proxy.target: {name}",
                    allowed=", ".join(index.domains),
                )
        target = torch.tensor([self.target is None or name in self.target for name in index.domains])
        return target, ~target if self.out_of_domain else torch.ones_like(target)

    def weigh(self, state: DogeState, losses: Tensor, batch: WeighedBatch) -> Tensor:
        """Weights (n,): alpha N / T_k of the row's domain, with the alpha that this batch leads to, as in the paper."""
        alpha = self._stepped(state, batch, batch.step).log_alpha.exp()  # (K,)
        alpha = alpha * self._shrinking(batch.values[self.gram])
        tokens = batch.domain_tokens  # (K,)
        return (alpha * tokens.sum() / tokens.clamp(min=1))[batch.domain].to(losses)

    def observe(self, state: DogeState, seen: Observation) -> DogeState:
        return self._stepped(state, seen, seen.step - 1)

    def gives(self, state: DogeState, index: PoolIndex) -> dict[str, Any]:
        """`mixture`: the mean of alpha over the steps, the one before the first step left out."""
        mean = state.total / state.steps if state.steps else state.log_alpha.exp()
        return {"mixture": dict(zip(index.domains, mean.tolist(), strict=True))}

    def shows(self, state: DogeState, index: PoolIndex) -> dict[str, Any]:
        """The mixture that it would give if it ended now."""
        return self.gives(state, index)

    def rate(self, step: int, total: int) -> float:
        """The learning rate eta of the batch after `step` of `total` optimizer steps."""
        return self.lr * (1.0 if self.schedule is None else schedule_factor(self.schedule, total)(step))

    def _stepped(self, state: DogeState, seen: WeighedBatch | Observation, step: int) -> DogeState:
        """The state after a batch that came when `step` steps were done."""
        gram = seen.values[self.gram]  # (K, K)
        if not bool(gram.isfinite().all()):
            bad = [name for name, own in zip(seen.index.domains, gram.diagonal(), strict=True) if not own.isfinite()]
            raise RunError(
                f"the gradient of a domain is not a number at step {step + 1}",
                got=", ".join(bad),
                do="lower optimizer.lr, or set trainer.gradient_clip_val=1.0; earlier checkpoints are kept",
            )
        shrinking = self._shrinking(gram)
        gram = gram * shrinking[:, None] * shrinking
        if self.absent == "last":
            present = gram.diagonal() > 0  # (K,)
            gram = torch.where(present[:, None] & present, gram, state.gram)
        scores = self.scores(gram, *self.roles(seen.index))
        eta = self.rate(step, seen.total_steps)
        log_alpha = (state.log_alpha + eta * scores / self.mu).log_softmax(0)
        return DogeState(log_alpha, gram, state.total + log_alpha.exp(), state.steps + 1)

    def scores(self, gram: Tensor, target: Tensor, trained: Tensor) -> Tensor:
        """W (K,) of inner products (K, K)."""
        scores = gram[:, target].sum(1)
        if self.normalise_scores:
            scores = scores / (gram.diagonal().sqrt()[trained].mean() + 1e-6)
        return scores if self.clip_scores is None else scores.clamp(*self.clip_scores)

    def _shrinking(self, gram: Tensor) -> Tensor:
        """(K,) factors that bring each domain's gradient to a norm of at most `clip`."""
        if self.clip is None:
            return torch.ones(len(gram), dtype=torch.float64)
        return (self.clip / gram.diagonal().sqrt()).clamp(max=1)
