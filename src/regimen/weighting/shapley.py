"""In-Run Data Shapley: the exact Shapley value of each row of a step, in the loss that the step takes off a target.

Paper: Data Shapley in One Training Run, arXiv 2406.11011. The players are the rows of one step; a
subset S is worth what the target's loss changes by when the parameters move by - sum_(i in S) c_i g_i, its Taylor
expansion cut after the first or second order. Values here are of the loss taken off, so that higher is better.
Letters: n rows, M target rows, d numbers of a gradient, v the target's mean gradient, H its Hessian, c steps of rows.
"""

from __future__ import annotations

from torch import Tensor


def first_order(steps: Tensor, wanted: Tensor) -> Tensor:
    """Values (n,): v . s_i, for the steps s_i = c_i g_i of rows (n, d) and v (d,)."""
    return steps @ wanted


def second_order(steps: Tensor, wanted: Tensor, curved: Tensor) -> Tensor:
    """Values (n,): v . s_i - s_i . H sum_j s_j / 2. curved: H sum_j s_j (d,), one Hessian-vector product."""
    return steps @ (wanted - curved / 2)


def fisher_product(gradients: Tensor, vector: Tensor) -> Tensor:
    """H vector (d,) with the empirical Fisher matrix, the mean of g g^T over gradients (M, d), in place of H."""
    return gradients.T @ (gradients @ vector) / len(gradients)
