"""Inner products of per-row gradients without the gradients, where that is cheaper.

The inner product of two rows' gradients of a matrix (R, C) is a sum over pairs of their tokens of the products of what
the layer read and of the gradients of what it gave: 2 T^2 numbers instead of R C. Papers: arXiv 2405.17420 (GREATS,
section 4), arXiv 2406.11011 (In-Run Data Shapley, section 4.2).

Letters: b and M rows, L target positions, T tokens, R and C rows and columns of a parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from regimen.training.factors import Factors, inner_products
from regimen.training.gradients import matrix_shape, named_parameters
from regimen.training.sketching import row_losses
from regimen.training.taps import Taps

_PART = 2**20  # numbers of gradients that are held at a time


class RowGradients:
    """The gradients of the losses of rows, kept as factors: what every layer read and gave for them.

    inputs, targets (b, L) int64, padded on the right; reduction of a row's token losses: `mean` or `sum`. parameters: a
    regular expression found in names, null for all that are trained. The model is in evaluation mode, gradients are
    enabled. Memory: about that of the forward pass again. Raises ConfigError as `Sketcher` does.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        positions: Tensor | None,
        *,
        parameters: str | None = None,
        reduction: str = "mean",
        chunk: int = 1024,
    ) -> None:
        chosen = named_parameters(model, parameters)
        self.rows = len(inputs)
        self.shapes = {name: matrix_shape(p) for name, p in chosen.items()}
        self.factors: dict[str, list[Factors]] = {name: [] for name in chosen}
        Taps(model, chosen).differentiate(
            lambda: row_losses(model, inputs, targets, positions, reduction=reduction, chunk=chunk),
            self.rows,
            lambda name, found, _: self.factors[name].append(found),
        )


def ghost_dots(first: RowGradients, second: RowGradients) -> Tensor:
    """(b, M) float64 inner products of the gradients of b and of M rows, over all their parameters."""
    out = torch.zeros(first.rows, second.rows, dtype=torch.float64)
    for name, shape in first.shapes.items():
        mine, theirs = first.factors[name], second.factors[name]
        if mine and theirs:
            out += _dots(mine, theirs, shape).double().cpu()
    return out


def squared_norms(gradients: RowGradients) -> Tensor:
    """(b,) float64 squared norms of the gradients of b rows, over all their parameters."""
    out = torch.zeros(gradients.rows, dtype=torch.float64)
    for name, shape in gradients.shapes.items():
        for row in range(gradients.rows if gradients.factors[name] else 0):
            own = [Factors(f.left[row : row + 1], f.right[row : row + 1]) for f in gradients.factors[name]]
            out[row] += float(_dots(own, own, shape))
    return out


def ghost_pays(tokens: int, others: int, shape: tuple[int, int]) -> bool:
    """Whether rows of `tokens` and of `others` tokens are multiplied without their gradients of a matrix `shape`."""
    return 2 * tokens * others <= shape[0] * shape[1]


def _dots(first: Sequence[Factors], second: Sequence[Factors], shape: tuple[int, int]) -> Tensor:
    """(b, M) float32 of one parameter, whose gradients are the sums of `first` and of `second`."""
    if all(ghost_pays(a.right.shape[1], b.right.shape[1], shape) for a in first for b in second):
        return torch.stack([inner_products(a, b) for a in first for b in second]).sum(0)
    rows, columns = shape
    count = len(first[0].right), len(second[0].right)
    step = max(1, _PART // (max(count) * columns))
    out = first[0].right.new_zeros(count, dtype=torch.float32)
    for start in range(0, rows, step):
        size = min(step, rows - start)
        out += _part(first, start, size, columns) @ _part(second, start, size, columns).T
    return out


def _part(found: Sequence[Factors], start: int, size: int, columns: int) -> Tensor:
    """(b, size * C) float32: rows `start` and on of the gradients."""
    into = found[0].right.new_empty(len(found[0].right), size, columns, dtype=torch.float32)
    for place, factors in enumerate(found):
        factors.add_part(into, start, first=place == 0)
    return into.flatten(1)


def dots_with(given: Mapping[str, Tensor], gradients: RowGradients) -> Tensor:
    """(b,) float64 inner products of the gradients of b rows with one given gradient, by name of the parameter.

    E.g. with the mean over a target set. Nothing of the size of a row's gradient is made, whatever its length.
    """
    out = torch.zeros(gradients.rows, dtype=torch.float64)
    for name, gradient in given.items():
        matrix = gradient.reshape(gradients.shapes[name]).float()
        for factors in gradients.factors[name]:
            moved = matrix[factors.left] if factors.one_hot else factors.left.float() @ matrix  # (b, T, C)
            out += (moved * factors.right.float()).sum((1, 2)).double().cpu()
    return out
