"""DoReMi's proxy: Group DRO over domains on the loss in excess of a reference; its mean weights are a mixture.

Paper: DoReMi, arXiv 2305.10429, algorithm 1.  Source of the options: sangmichaelxie/doremi, and DoGE's copy of it.
Differs from the paper: nothing in the defaults. The mean loss of a domain is that of its tokens in the global batch,
over all ranks and micro-batches. A domain that the batch lacks keeps its last score (the paper has every domain in
every batch, the released code does the same) and adds nothing to the loss.
Letters: B rows of the global batch, K domains; lambda excess by domain, alpha weights, u = 1/K.
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


class DoremiState(NamedTuple):
    """alpha: (K,) float64 weights. score: (K,) last lambda. total: (K,) sum of alpha over `steps` steps."""

    alpha: Tensor
    score: Tensor
    total: Tensor
    steps: int


@dataclass(frozen=True, kw_only=True)
class DoremiProxy(Weighter):
    """Weighs each domain's mean token loss by alpha, which grows where the model is furthest behind the reference.

    reference: folder of the finished reference run.
    eta: step size of the exponentiated ascent, 0 or more.
    smoothing: c, the part of alpha that is uniform after each step, in [0, 1].
    excess_clip: `token` sets the excess of each token below 0 to 0; `domain` that of a domain's mean, as DoGE's and
        Aioli's copies do.
    update: `before` weighs a batch by the alpha that it leads to, as the paper; under accumulation that costs an extra
        forward pass. `after` by the alpha of the step before.
    loss: `paper` is sum_i alpha_i (mean loss of domain i); `repo` divides the weighted loss of all tokens by the sum of
        their weights, as the released code, which is the same where all domains have as many tokens in the batch.
    """

    reference: str | None = None
    eta: float = 1.0
    smoothing: float = 1e-3
    excess_clip: Literal["token", "domain"] = "token"
    update: Literal["before", "after"] = "before"
    loss: Literal["paper", "repo"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.reference, str):
            raise ConfigError(
                "DoReMi's proxy has no reference model",
                got=f"strategies.doremi_proxy.reference={self.reference}",
                do="train with method=doremi, which trains the reference first, or set "
                "strategies.doremi_proxy.reference=FOLDER_OF_A_FINISHED_RUN",
            )
        if not 0 <= self.eta < math.inf:
            raise ConfigError("eta is a step size", got=self.eta, allowed="0 or more")
        if not 0 <= self.smoothing <= 1:
            raise ConfigError("smoothing is a part of the weights", got=self.smoothing, allowed="0 <= smoothing <= 1")
        for name, value, allowed in (
            ("excess_clip", self.excess_clip, ("token", "domain")),
            ("update", self.update, ("before", "after")),
            ("loss", self.loss, ("paper", "repo")),
        ):
            if value not in allowed:
                raise ConfigError(f"unknown {name} of DoReMi", got=value, allowed=", ".join(allowed))

    @property
    def excess(self) -> ExcessLoss:
        """The signal that drives the weights."""
        return ExcessLoss(reference=self.reference, clip="token" if self.excess_clip == "token" else "none")

    @property
    def scope(self) -> Literal["example", "batch"]:
        """Weights of this step rest on the excess of the whole batch; those of the step before do not."""
        return "batch" if self.update == "before" else "example"

    def needs(self) -> tuple[Signal, ...]:
        return (self.excess,)

    def init(self, index: PoolIndex) -> DoremiState:
        k = len(index.domains)
        zeros = torch.zeros(k, dtype=torch.float64)
        return DoremiState(torch.full((k,), 1 / k, dtype=torch.float64), zeros, zeros.clone(), 0)

    def weigh(self, state: DoremiState, losses: Tensor, batch: WeighedBatch) -> Tensor:
        """Weights (n,) that make the gradient of the step sum_i alpha_i grad(mean token loss of domain i)."""
        alpha = self._stepped(state, batch).alpha if self.update == "before" else state.alpha
        tokens = batch.domain_tokens  # (K,)
        if self.loss == "repo":
            return (alpha * tokens.sum() / (alpha * tokens).sum())[batch.domain].to(losses)
        return (alpha * tokens.sum() / tokens.clamp(min=1))[batch.domain].to(losses)

    def observe(self, state: DoremiState, seen: Observation) -> DoremiState:
        return self._stepped(state, seen)

    def gives(self, state: DoremiState, index: PoolIndex) -> dict[str, Any]:
        """`mixture`: the mean of alpha over the steps, the one before the first step left out."""
        mean = state.total / state.steps if state.steps else state.alpha
        return {"mixture": dict(zip(index.domains, mean.tolist(), strict=True))}

    def shows(self, state: DoremiState, index: PoolIndex) -> dict[str, Any]:
        """The mixture that it would give if it ended now."""
        return self.gives(state, index)

    def _stepped(self, state: DoremiState, batch: WeighedBatch | Observation) -> DoremiState:
        """The state after the batch."""
        columns = torch.stack([batch.values[self.excess], batch.tokens.double()])  # (2, B)
        sums = torch.zeros(2, len(state.alpha), dtype=torch.float64).index_add_(1, batch.domain, columns)  # (2, K)
        mean = (sums[0] / sums[1].clamp(min=1)).clamp(min=0)  # (K,)
        score = torch.where(sums[1] > 0, mean, state.score)
        alpha = ascend(state.alpha, score, eta=self.eta, smoothing=self.smoothing)
        return DoremiState(alpha, score, state.total + alpha, state.steps + 1)


def ascend(alpha: Tensor, score: Tensor, *, eta: float, smoothing: float) -> Tensor:
    """The weights (K,) after one exponentiated step along the excess `score` (K,), mixed with the uniform weights."""
    raised = (alpha.log() + eta * score).softmax(0)  # (K,): normalised in logs, which cannot overflow
    return (1 - smoothing) * raised + smoothing / len(alpha)
