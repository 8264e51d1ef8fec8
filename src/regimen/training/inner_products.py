"""Inner products of the gradients of rows' losses with one vector, without those gradients.

All work on a function of the parameters, and change neither the parameters nor their `.grad`. They agree up to rounding
and, for `by_difference`, up to curvature. Cost beside a forward pass F and a backward pass 2 F:
`by_difference` 2 F and no memory; `by_double_backward` a pass of each kind and a second backward pass, 5 F together;
`by_forward_mode` 3 F, for each product of a layer has a derivative by either factor.
Sources: exact differentiation through a step as in arXiv 1803.09050 (section 3), forward mode as in `torch.func`.
Letters: b rows of a batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Values = Mapping[str, Tensor]  # by name of the parameter
Losses = Callable[[Values], Tensor]  # from parameters to the losses (b,) of rows


def by_difference(losses: Losses, at: Values, along: Values, *, c: float) -> Tensor:
    """(b,) <along, grad l_i(at)> as a central difference over c to either side; 0 where `along` is."""
    norm = float(norm_of(along))
    if norm == 0:
        return torch.zeros_like(losses(at))
    e = c / norm
    with torch.no_grad():
        ahead, behind = losses(moved(at, along, e)), losses(moved(at, along, -e))
    return (ahead - behind) / (2 * e)


def by_double_backward(losses: Losses, at: Values, along: Values) -> Tensor:
    """(b,) <along, grad l_i(at)>, the derivative by u_i of <along, grad sum_i u_i l_i>; it needs second derivatives."""
    leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
    found = losses(leaves)
    u = torch.ones_like(found, requires_grad=True)
    gradients = torch.autograd.grad((u * found).sum(), list(leaves.values()), create_graph=True, allow_unused=True)
    pairs = zip(gradients, along.values(), strict=True)
    product = sum((g * v).sum() for g, v in pairs if g is not None)
    assert isinstance(product, Tensor)
    return torch.autograd.grad(product, u)[0]


def by_forward_mode(losses: Losses, at: Values, along: Values) -> Tensor:
    """(b,) <along, grad l_i(at)> by one pass in forward mode."""
    with warnings.catch_warnings():  # torch scripts its own decompositions, of which it warns
        warnings.filterwarnings("ignore", ".*torch.jit.script.*", DeprecationWarning)
        product: Tensor = torch.func.jvp(losses, (dict(at),), (dict(along),))[1]
    return product.detach()


def by_row(losses: Losses, at: Values, along: Values) -> Tensor:
    """(b,) <along, grad l_i(at)> from the gradient of each row, one after another: the reference."""
    leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
    out = []
    for loss in losses(leaves):
        gradients = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
        pairs = zip(gradients, along.values(), strict=True)
        out.append(sum(float((g * v).sum()) for g, v in pairs if g is not None))
    return torch.tensor(out, dtype=torch.float64)


def norm_of(vector: Values) -> Tensor:
    """() float64 length of a vector over all parameters."""
    return torch.stack([part.double().square().sum() for part in vector.values()]).sum().sqrt()


def moved(at: Values, along: Values, length: float) -> dict[str, Tensor]:
    """New tensors: at + length * along."""
    return {name: value + length * along[name] for name, value in at.items()}
