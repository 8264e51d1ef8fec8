"""Inner products of rows' gradients with one vector, and their lengths, by several ways that agree.

The ways are those of section 4 of PDS (arXiv 2410.07064) and of forward-mode differentiation (Pearlmutter's trick).
Letters: P numbers of all parameters, b rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Given = Sequence[Any]  # tensors (b, ...) of rows, or None
Losses = Callable[[Tensor, Given], Tensor]  # theta (P,), rows -> losses (b,), of each row alone


def row_products(
    losses: Losses, theta: Tensor, vector: Tensor | None, given: Given, *, backend: str, norms: bool, epsilon: float
) -> Tensor:
    """(b, 2) of rows at theta (P,): inner products of gradients with vector (P,), 0 for None, and lengths.

    backend: `jvp`, `finite_difference`, `vmap` or `loop`, as in `core.descent.Descent`. norms: whether lengths are
    needed; otherwise they may be 0. epsilon: of finite differences.
    """
    if backend in ("vmap", "loop"):
        make = _by_vmap if backend == "vmap" else _by_loop
        return make(losses, theta, vector, given)
    lengths = _by_loop(losses, theta, None, given)[:, 1] if norms else None
    if vector is None:
        dots = None
    elif backend == "jvp":
        dots = _forward_mode(losses, theta, vector, given)
    else:
        dots = _difference(losses, theta, vector, given, epsilon)
    some = dots if dots is not None else lengths
    assert some is not None, "nothing to measure"
    return torch.stack([torch.zeros_like(some) if x is None else x for x in (dots, lengths)], 1)


def _forward_mode(losses: Losses, theta: Tensor, vector: Tensor, given: Given) -> Tensor:
    with torch.no_grad(), warnings.catch_warnings():
        # PyTorch compiles some of its own forward rules when they are first needed, and warns of how it does.
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        with forward_ad.dual_level():
            out = losses(forward_ad.make_dual(theta.detach(), vector), given)
            tangent = forward_ad.unpack_dual(out).tangent
            return torch.zeros_like(out) if tangent is None else tangent.clone()


def _difference(losses: Losses, theta: Tensor, vector: Tensor, given: Given, epsilon: float) -> Tensor:
    length = vector.norm()
    shift = epsilon * vector / length.clamp(min=torch.finfo(vector.dtype).tiny)
    with torch.no_grad():
        dots: Tensor = (losses(theta + shift, given) - losses(theta - shift, given)) * (length / (2 * epsilon))
        return dots


def _by_loop(losses: Losses, theta: Tensor, vector: Tensor | None, given: Given) -> Tensor:
    out = []
    for row in range(len(given[0])):
        with torch.enable_grad():
            at = theta.detach().requires_grad_()
            one = [None if x is None else x[row : row + 1] for x in given]
            (found,) = torch.autograd.grad(losses(at, one).sum(), at)
        out.append(torch.stack([_dot(found, vector), found.norm()]))
    return torch.stack(out)


def _by_vmap(losses: Losses, theta: Tensor, vector: Tensor | None, given: Given) -> Tensor:
    places = [place for place, x in enumerate(given) if x is not None]

    def loss(at: Tensor, *row: Tensor) -> Tensor:
        whole: list[Tensor | None] = [None] * len(given)
        for place, x in zip(places, row, strict=True):
            whole[place] = x[None]
        return losses(at, whole).sum()

    rows = [given[place] for place in places]
    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, *[0] * len(rows)))(theta.detach(), *rows)  # (b, P)
    dots = torch.zeros_like(found[:, 0]) if vector is None else found @ vector
    return torch.stack([dots, found.norm(dim=1)], 1)


def _dot(found: Tensor, vector: Tensor | None) -> Tensor:
    return found.new_zeros(()) if vector is None else found @ vector
