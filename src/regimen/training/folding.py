"""Where per-row gradients go: random signs and a fold, the whole vector, or projections of both factors.

The fold is a CountSketch (Charikar et al. 2002) whose hash is cheap: a parameter is cut into blocks of d numbers, and
block after block is multiplied by random signs and added to d numbers, turned by a random shift. Two numbers of a block
never meet, two of different blocks or parameters meet with probability 1 / d, so inner products are unbiased with a
variance of at most 2 |x|^2 |y|^2 / d. Without the shifts, all of a column of a matrix whose width divides d would
meet in few places.

Signs and shifts are drawn on the CPU from (seed, name, shape) alone: they are the same on every device and whatever
other parameters are chosen. Memory: one byte per number of the chosen parameters.

Letters: b rows, d dimensions, P numbers of all parameters, m of a part, n of one parameter, k rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from regimen.core.seeding import generator


class Sink(Protocol):
    """Takes the gradients of b rows part by part."""

    dimensions: int

    def empty(self, rows: int) -> Tensor:
        """What parts are added to, for b = `rows`."""
        ...

    def add(self, out: Tensor, name: str, start: int, values: Tensor) -> None:
        """Add `values` (b, m) float32: numbers `start` and on of parameter `name`, flattened."""
        ...

    def scatter(self, out: Tensor, name: str, places: Tensor, values: Tensor) -> None:
        """Add `values` (b, u) float32: numbers `places` (b, u) int64 of parameter `name`; the others are 0."""
        ...

    def finish(self, out: Tensor) -> Tensor:
        """(b, dimensions) float32, of what parts were added to."""
        ...


_SHORT = 128  # dimensions: below, a call per block costs more than gathering (3.6 times at 64, and half at 256)


class _Random(NamedTuple):
    """signs (n,) int8; shifts: one per block, in [0, d)."""

    signs: Tensor
    shifts: Tensor


class Fold:
    """Random signs and a fold to `dimensions`. shapes: by name of a parameter."""

    def __init__(
        self, shapes: Mapping[str, torch.Size], *, dimensions: int, seed: int, device: torch.device | str
    ) -> None:
        self.dimensions, self.device = dimensions, device
        self._random = {name: _drawn(seed, name, shape, dimensions, device) for name, shape in shapes.items()}

    def empty(self, rows: int) -> Tensor:
        """(b, 2 d): a shifted block is added in one piece, and what lies beyond d comes back at the end."""
        return torch.zeros(rows, 2 * self.dimensions, device=self.device)

    def add(self, out: Tensor, name: str, start: int, values: Tensor) -> None:
        """See `Sink.add`."""
        signs, shifts = self._random[name]
        signs = signs[start : start + values.shape[1]].float()  # (m,)
        add = _add_at_once if values.is_cuda or self.dimensions < _SHORT else _add_by_block
        add(out, values, signs, shifts, start)

    def scatter(self, out: Tensor, name: str, places: Tensor, values: Tensor) -> None:
        """See `Sink.scatter`."""
        signs, shifts = self._random[name]
        targets = places % self.dimensions + shifts.to(places.device)[places // self.dimensions]  # (b, u)
        out.scatter_add_(1, targets, values * signs[places])

    def finish(self, out: Tensor) -> Tensor:
        """See `Sink.finish`."""
        low, high = out.split(self.dimensions, dim=1)
        return low + high


def _drawn(seed: int, name: str, shape: torch.Size, d: int, device: torch.device | str) -> _Random:
    size = math.prod(shape)
    draw = generator(seed, "sketch", name, *shape)
    signs = torch.randint(0, 2, (size,), dtype=torch.int8, generator=draw).mul_(2).sub_(1)
    shifts = torch.randint(0, d, (-(-size // d),), generator=draw)
    return _Random(signs.to(device), shifts)


def _add_by_block(out: Tensor, values: Tensor, signs: Tensor, shifts: Tensor, start: int) -> None:
    """Block after block, each read once. out (b, 2d), values (b, m), signs (m,)."""
    d, stop = out.shape[1] // 2, start + len(signs)
    turns: list[int] = shifts[start // d : -(-stop // d)].tolist()
    for place, turn in enumerate(turns, start // d):
        low, high = max(start, place * d), min(stop, (place + 1) * d)
        target = turn + low - place * d
        part = slice(low - start, high - start)
        out[:, target : target + high - low].addcmul_(values[:, part], signs[part])


def _add_at_once(out: Tensor, values: Tensor, signs: Tensor, shifts: Tensor, start: int) -> None:
    """The same in few calls, in an order that does not change from run to run: for GPUs, and for very short blocks."""
    d, stop = out.shape[1] // 2, start + len(signs)
    first, last = start // d, -(-stop // d)
    blocks = F.pad(values * signs, (start - first * d, last * d - stop)).unflatten(1, (-1, d))  # (b, blocks, d)
    turns = shifts[first:last, None].to(out.device)
    source = (torch.arange(d, device=out.device) - turns) % d  # (blocks, d): what each place takes
    out[:, :d] += blocks.gather(2, source.expand(len(blocks), -1, -1)).sum(1)


class Whole:
    """Every number, parameters one after the other."""

    def __init__(self, shapes: Mapping[str, torch.Size], *, device: torch.device | str) -> None:
        self.device, self.dimensions = device, 0
        self._first: dict[str, int] = {}
        for name, shape in shapes.items():
            self._first[name] = self.dimensions
            self.dimensions += math.prod(shape)

    def empty(self, rows: int) -> Tensor:
        """(b, P)."""
        return torch.zeros(rows, self.dimensions, device=self.device)

    def add(self, out: Tensor, name: str, start: int, values: Tensor) -> None:
        """See `Sink.add`."""
        first = self._first[name] + start
        out[:, first : first + values.shape[1]] += values

    def scatter(self, out: Tensor, name: str, places: Tensor, values: Tensor) -> None:
        """See `Sink.scatter`."""
        out.scatter_add_(1, self._first[name] + places, values)

    def finish(self, out: Tensor) -> Tensor:
        """See `Sink.finish`."""
        return out


class Projections:
    """Gaussian projections of both sides of matrices: a gradient (R, C) becomes (k, k), inner products unbiased.

    The relative error of an inner product is about 2 / sqrt(k) per matrix, not 1 / k: at equal numbers `Fold` is far
    more exact. Paper: LoGra, arXiv 2405.13954, section 3.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], *, rank: int, seed: int, device: torch.device | str) -> None:
        self.rank, self.device, self.dimensions = rank, device, len(shapes) * rank**2
        self._place = {name: place for place, name in enumerate(shapes)}
        self._sides = {
            name: tuple(self._side(seed, name, shape, side).to(device) for side in (0, 1))
            for name, shape in shapes.items()
        }

    def _side(self, seed: int, name: str, shape: torch.Size, side: int) -> Tensor:
        draw = generator(seed, "factored", side, name, *shape)
        return torch.randn(shape[side], self.rank, generator=draw) / math.sqrt(self.rank)  # (R or C, k)

    def sides(self, name: str) -> tuple[Tensor, Tensor]:
        """Projections (R, k) and (C, k) of a matrix."""
        left, right = self._sides[name]
        return left, right

    def empty(self, rows: int) -> Tensor:
        """(b, matrices, k * k)."""
        return torch.zeros(rows, len(self._place), self.rank**2, device=self.device)

    def add(self, out: Tensor, name: str, projected: Tensor) -> None:
        """Add (b, k, k) to what parts are added to."""
        out[:, self._place[name]] += projected.flatten(1)

    def finish(self, out: Tensor) -> Tensor:
        """(b, matrices * k * k)."""
        return out.flatten(1)
