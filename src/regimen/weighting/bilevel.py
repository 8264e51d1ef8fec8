"""The chain rule from a target's loss after one weighted step back to the weights, and to the scores they come from.

With theta' = theta - lr sum_i c_i w_i g_i, g_i the gradient of row i's loss at theta, and J = L(theta'):
    dJ/dw_i = - lr c_i <grad L(theta'), g_i>,
without any second derivative. For w = softmax(s / tau), dJ/ds_i = w_i / tau (dJ/dw_i - sum_j w_j dJ/dw_j).
Paper: DWM, arXiv 2507.16178; the same inner products are those of arXiv 1803.09050 and 1902.07379.
Letters: n rows of the step.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weight_gradient(products: Tensor, coefficients: Tensor, *, lr: float) -> Tensor:
    """dJ/dw (n,) of inner products <grad L(theta'), g_i> (n,), with c_i (n,) the part of w_i g_i in the step."""
    return -lr * (coefficients.double() * products.double())


def score_gradient(shares: Tensor, gradient: Tensor, *, tau: float) -> Tensor:
    """dJ/ds (n,) for w = softmax(s / tau) = `shares` (n,) and dJ/dw = `gradient` (n,).

    Zero to the last bit where dJ/dw is the same for all rows: it is shifted first, which changes nothing else.
    """
    shifted = gradient - gradient[:1]
    return shares / tau * (shifted - (shares * shifted).sum())


def entropy_gradient(shares: Tensor) -> Tensor:
    """d/dw (n,) of the entropy - sum_i w_i log w_i."""
    return -(shares.clamp(min=torch.finfo(shares.dtype).tiny).log() + 1)
