"""Data value embeddings: by how much each row of each step of a finished run has moved its last parameters.

Paper: Capturing the Temporal Dependence of Training Data Influence, arXiv 2412.09538. Gradient descent moves
the parameters of step s by - sum_i c_i g_i, c_i the learning rate times the part of row i in the loss. Had row i not
been in step s, the last parameters would differ, to first order, by its embedding
    e_i = c_i prod_(k > s) (I - H_k) g_i,   later steps on the left,   H_k = sum_j c_j h_j,
h_j the Hessian of row j's loss. e_i . v, v a target's gradient at the last parameters, is by how much the target's loss
would be higher: positive is helpful. The recursion runs from the last step back with M = I - prod_(k > s) (I - H_k):
    e_i = c_i (g_i - M g_i) for the rows of step s, then M <- M + (I - M) H_s.
With the empirical Fisher matrix h_j = g_j g_j^T, (I - M) H_s = sum_j e_j g_j^T, so that no row is multiplied twice.
With `factors`, h_j is a sum of f f^T over other vectors: for a linear head on features x with a squared loss, f = x is
the Gauss-Newton matrix and the true Hessian; for a softmax, f = sqrt(p_a) (onehot_a - p) x^T of every class a.
Differs from the paper: computed in float64, so that M stays symmetric where it should; a recursion that runs away is
refused instead of left to overflow.
Which curvature matters: on twelve logistic regressions of 36 rows in six steps, values rank rows as leaving each out
does with a correlation of 0.85 to 0.99 with the Fisher matrix and 0.94 and more with the Gauss-Newton matrix; with
steps two and a half times as long the Fisher matrix can rank worse than no curvature at all.
Letters: T steps, B rows of a step, d numbers of a gradient, F factors of a step, G blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regimen.core.errors import ConfigError

LIMIT = 100.0  # entries of M; stable steps keep its eigenvalues within 0 and 2


class LoggedStep(NamedTuple):
    """The rows of one step. gradients: (B, d); shares: (B,) c_i.

    factors: (F, d) with their own shares (F,), where H is not the Fisher matrix.
    """

    gradients: Tensor
    shares: Tensor
    factors: Tensor | None = None
    factor_shares: Tensor | None = None


class Embedded(NamedTuple):
    """embeddings: T of (B, d) float64, in the order of the steps. passed: M (G, d/G, d/G) before the first step."""

    embeddings: list[Tensor]
    passed: Tensor


def embed(steps: Sequence[LoggedStep], *, blocks: int = 1, first: int = 0) -> Embedded:
    """Embeddings of the rows of steps that follow on each other, as if the last of them were the end.

    blocks: G; M is block-diagonal over equal runs of the d numbers, for gradients that come layer by layer.
    first: number of the first step, for the error. Raises ConfigError where the recursion diverges.
    """
    size = steps[0].gradients.shape[1] // blocks
    passed = torch.zeros(blocks, size, size, dtype=torch.float64)  # (G, d/G, d/G)
    out: list[Tensor] = []
    for number in range(len(steps) - 1, -1, -1):
        step = steps[number]
        gradients = _blocks(step.gradients, blocks)  # (G, B, d/G)
        found = step.shares.double()[:, None] * (gradients - gradients @ passed.mT)  # (G, B, d/G)
        out.append(found.transpose(0, 1).flatten(1))  # (B, d)
        if step.factors is None:
            passed = passed + found.mT @ gradients
        else:
            assert step.factor_shares is not None
            factors = _blocks(step.factors, blocks)  # (G, F, d/G)
            weighed = step.factor_shares.double()[:, None] * (factors - factors @ passed.mT)
            passed = passed + weighed.mT @ factors
        _refuse_divergence(passed, first + number)
    return Embedded(out[::-1], passed)


def stitch(parts: Sequence[Embedded]) -> Embedded:
    """The embeddings of a run from those of its parts, each embedded on its own, in the order of the run.

    With P = I - M of a part, what follows multiplies its embeddings by the product of the P of later parts.
    """
    identity = torch.eye(parts[0].passed.shape[1], dtype=torch.float64)
    after = identity.expand_as(parts[0].passed)  # (G, d/G, d/G)
    out: list[Tensor] = []
    for part in reversed(parts):
        moved = [_blocks(step, len(after)) @ after.mT for step in part.embeddings]  # (G, B, d/G) each
        out = [*(step.transpose(0, 1).flatten(1) for step in moved), *out]
        after = after @ (identity - part.passed)
    return Embedded(out, identity - after)


def _blocks(vectors: Tensor, blocks: int) -> Tensor:
    """(G, m, d/G) float64 of vectors (m, d)."""
    return vectors.double().view(len(vectors), blocks, -1).transpose(0, 1)


def _refuse_divergence(passed: Tensor, step: int) -> None:
    if bool((passed.abs() <= LIMIT).all()):  # NaN is not
        return
    raise ConfigError(
        "the embeddings diverge: a step is larger than the curvature of its rows allows",
        got=f"step {step}, counted from 0: entries of I - prod (I - H) up to {float(passed.abs().max()):.3g}",
        do="lower optimizer.lr of the valuation, warm it up for longer (optimizer.schedule.warmup), or take fewer "
        "parameters (by.sketch.parameters)",
    )
