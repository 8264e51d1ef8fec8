"""Gradients of rows as sums of outer products over tokens, and what can be had of them without the whole gradient.

Letters: b and M rows, T tokens, R and C rows and columns of a parameter.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """Gradients (b, R, C) of b rows: sums over T of the outer products of left (b, T, R) and right (b, T, C).

    left may be (b, T) int64 instead, which stands for one-hot vectors: an embedding's tokens.
    """

    left: Tensor
    right: Tensor

    @staticmethod
    def of_vectors(gradients: Tensor) -> Factors:
        """Gradients (b, R) of a parameter that is a vector, as a column."""
        return Factors(gradients[:, None], gradients.new_ones(len(gradients), 1, 1))

    @property
    def one_hot(self) -> bool:
        """Whether left holds ids."""
        return not self.left.is_floating_point()

    def over_rows(self) -> Factors:
        """The sum over rows, as the gradient of one."""
        left = self.left.flatten()[None] if self.one_hot else self.left.flatten(0, 1)[None]
        return Factors(left, self.right.flatten(0, 1)[None])

    def add_part(self, into: Tensor, start: int, *, first: bool) -> None:
        """Add rows `start` and on of the gradients to `into` (b, r, C) float32; first: it holds nothing yet."""
        rows = into.shape[1]
        if self.one_hot:
            if first:
                into.zero_()
            inside = (self.left >= start) & (self.left < start + rows)  # (b, T)
            place = self.left - start + torch.arange(len(into), device=into.device)[:, None] * rows  # (b, T)
            into.view(-1, into.shape[2]).index_add_(0, place[inside], self.right[inside].float())
            return
        left, right = _of_one_type(self.left[:, :, start : start + rows], self.right)  # (b, T, r), (b, T, C)
        if left.dtype != into.dtype:
            product = torch.bmm(left.mT, right)  # (b, r, C)
            into.copy_(product) if first else into.add_(product)
        else:
            torch.baddbmm(into, left.mT, right, beta=0 if first else 1, out=into)

    def entries(self) -> tuple[Tensor, Tensor]:
        """Of ids: places (b, T * C) int64 in the flattened gradients, and what to add there, float32."""
        columns = self.right.shape[2]
        places = self.left[..., None] * columns + torch.arange(columns, device=self.left.device)  # (b, T, C)
        return places.flatten(1), self.right.float().flatten(1)

    def projected(self, left: Tensor, right: Tensor) -> Tensor:
        """(b, k, k) float32: the gradients between projections (R, k) and (C, k)."""
        low = left[self.left] if self.one_hot else self.left.float() @ left  # (b, T, k)
        return torch.bmm(low.mT, self.right.float() @ right)


def inner_products(first: Factors, second: Factors) -> Tensor:
    """(b, M) float32 inner products of the gradients of b and M rows, from (T, T) products of their factors."""
    out = [_inner_left(row, first.one_hot, second).mul_(_inner_right(right, second)).sum((1, 2))
           for row, right in zip(first.left, first.right, strict=True)]  # fmt: skip
    return torch.stack(out)


def _inner_right(right: Tensor, second: Factors) -> Tensor:
    """(M, T', T) of one row's (T, C)."""
    return second.right.float() @ right.float().T


def _inner_left(left: Tensor, one_hot: bool, second: Factors) -> Tensor:
    """(M, T', T) of one row's (T, R), or (T,) ids."""
    if one_hot and second.one_hot:
        return (second.left[:, :, None] == left).float()
    if one_hot:
        return second.left[:, :, left].float()
    if second.one_hot:
        return left.float().T[second.left]
    return second.left.float() @ left.float().T


def _of_one_type(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Both in bfloat16 if either is, as autocast does; else in float32, for small products vanish in float16."""
    kind = torch.bfloat16 if torch.bfloat16 in (left.dtype, right.dtype) else torch.float32
    return left.to(kind), right.to(kind)
