"""Inner products of rows' gradients with one vector, and their lengths, by several ways that agree.

The ways are those of section 4 of PDS (arXiv 2410.07064) and of forward-mode differentiation (Pearlmutter's trick).
Letters: P numbers of all parameters, b rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from regimen.training.inner_products import Values, by_difference, by_forward_mode

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
    dots = None if vector is None else _along(losses, theta, vector, given, backend=backend, epsilon=epsilon)
    some = dots if dots is not None else lengths
    assert some is not None, "nothing to measure"
    return torch.stack([torch.zeros_like(some) if x is None else x for x in (dots, lengths)], 1)


def _along(losses: Losses, theta: Tensor, vector: Tensor, given: Given, *, backend: str, epsilon: float) -> Tensor:
    def of(at: Values) -> Tensor:
        return losses(at["theta"], given)

    at, along = {"theta": theta.detach()}, {"theta": vector}
    return by_forward_mode(of, at, along) if backend == "jvp" else by_difference(of, at, along, c=epsilon)


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
