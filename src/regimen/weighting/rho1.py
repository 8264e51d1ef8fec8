"""RHO-1: of the target tokens of a batch, those count on which the model is furthest behind a reference model.

Paper: Rho-1: Not All Tokens Are What You Need, arXiv 2404.07965, section 2.2, selective language modelling. A token is
scored by its excess loss, l - l_ref; the loss is the mean of l over the k% of the tokens with the highest scores.
Differs from the paper: tokens are ranked over the whole global batch, all ranks and micro-batches, never per rank, so
that the choice does not depend on the hardware; the reference runs beside the model, one forward pass more, instead of
from stored losses. The reference of `method=rho1` is trained on the pool itself; the paper's, on clean text: give its
stage that text, or name the folder of a finished run.
The loss that is reported for a step is that of all tokens; that of the kept ones is `weighted_loss` in the record.
Letters: n rows of the global batch, L target positions, N target tokens of them, M kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any, Literal

import torch
from torch import Tensor

from regimen.core.errors import ConfigError, RunError
from regimen.core.signal import Signal
from regimen.core.strategy import WeighedBatch, Weighter
from regimen.signals.excess import TokenExcess


@dataclass(frozen=True, kw_only=True)
class Rho1(Weighter):
    """Weights N / M for the M = ceil(ratio N) target tokens with the highest excess loss, 0 for the others.

    Equal excesses are ranked by their place in the batch, the first first. With `objective.reduction=token_mean` the
    loss is the mean over the kept tokens.
    ratio: above 0, up to 1; 1 is plain cross-entropy. The paper takes 0.6 for 1.1 billion parameters, 0.7 for 7.
    reference: folder of a finished run, whose model reads the same tokens.
    """

    ratio: float = 0.6
    reference: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio <= 1:
            raise ConfigError("ratio is the part of the tokens to keep", got=self.ratio, allowed="0 < ratio <= 1")
        if not isinstance(self.reference, str):
            raise ConfigError(
                "RHO-1 has no reference model",
                got=f"strategies.rho1.reference={self.reference}",
                do="leave it as method=rho1 has it, which trains one first, or name the folder of a finished run",
            )

    @property
    def by(self) -> TokenExcess:
        """What tokens are ranked by."""
        return TokenExcess(reference=self.reference)

    @property
    def scope(self) -> Literal["example", "batch"]:
        """Tokens are ranked over the whole batch."""
        return "batch"

    @property
    def unit(self) -> Literal["row", "token"]:
        return "token"

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def weigh(self, state: Any, losses: Tensor, batch: WeighedBatch) -> Tensor:
        """Weights (n, L). Raises RunError where the reference gives a loss that is no number."""
        assert batch.targets is not None
        excess = batch.values[self.by][batch.targets]  # (N,)
        if not bool(torch.isfinite(excess).all()):
            raise RunError(
                f"the reference model's loss is not a number at step {batch.step + 1}",
                got=f"{int((~torch.isfinite(excess)).sum())} of {len(excess)} target tokens",
                do="name another run in strategies.rho1.reference",
            )
        weights = torch.zeros_like(losses)  # (n, L)
        kept = highest(excess, ceil(Fraction(str(self.ratio)) * len(excess)))  # (N,)
        weights[batch.targets] = kept.to(losses) * (len(kept) / max(int(kept.sum()), 1))
        return weights


def highest(values: Tensor, count: int) -> Tensor:
    """(N,) bool: the `count` highest of values (N,); of equal ones, the first."""
    if count >= len(values):
        return torch.ones_like(values, dtype=torch.bool)
    border = values.kthvalue(len(values) - count + 1).values
    kept = values > border
    kept[(values == border).nonzero()[: count - int(kept.sum()), 0]] = True
    return kept
