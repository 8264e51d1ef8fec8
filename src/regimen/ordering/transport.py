"""The transportation problem of many rows and few places: rows to windows of fixed sizes, with the largest sum.

Any assignment is the best one exactly where no cycle of moves between windows gains (Klein 1967, Management Science
14(3)); there are as many windows as a user can look at, so that such cycles are found fast. Prices of windows, found by
coordinate descent on the dual, give a start that few cycles part from the best.
Letters: n rows, W windows.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SWEEPS = 20  # over the prices


def capacities(rows: int, windows: int) -> Tensor:
    """(W,) int64 rows of each window: the sequence cut at w n / W, rounded down."""
    return (torch.arange(windows + 1) * rows // max(windows, 1)).diff()


def assign(values: Tensor) -> Tensor:
    """Windows (n,) int64 for values (n, W) float64 whose sum is the largest under `capacities`, to float rounding."""
    n, windows = values.shape
    if n == 0 or windows == 1:
        return torch.zeros(n, dtype=torch.int64)
    window = _start(values, capacities(n, windows))
    least = 1e-12 * (float(values.abs().max()) or 1.0)
    while cycle := _gaining_cycle(values, window, least):
        for row, to in cycle:
            window[row] = to
    return window


def _start(values: Tensor, room: Tensor) -> Tensor:
    """A full assignment (n,) near the best one, of windows that hold `room` (W,) rows."""
    n, windows = values.shape
    prices = torch.zeros(windows, dtype=values.dtype)
    for _ in range(_SWEEPS):
        for w in range(windows):  # the price at which as many rows want the window as it has room for
            others = values - prices
            others[:, w] = -torch.inf
            wish = (values[:, w] - others.amax(1)).sort(descending=True).values  # (n,)
            at, size = int(room[w]), len(wish)
            prices[w] = (wish[max(at - 1, 0)] + wish[min(at, size - 1)]) / 2
    net = values - prices
    window, left = torch.full((n,), -1, dtype=torch.int64), room.clone()
    best = net.topk(2, dim=1).values
    for row in (best[:, 0] - best[:, 1]).argsort(descending=True, stable=True).tolist():
        wanted = torch.where(left > 0, net[row], -torch.inf).argmax()
        window[row] = wanted
        left[wanted] -= 1
    return window


def _gaining_cycle(values: Tensor, window: Tensor, least: float) -> list[tuple[int, int]]:
    """Moves (row, window) around a cycle of windows that gain more than `least` in all; empty where there are none."""
    windows = values.shape[1]
    gain = torch.full((windows, windows), -torch.inf, dtype=values.dtype)
    mover = torch.zeros(windows, windows, dtype=torch.int64)  # the row that gains most by going from a to b
    for a in range(windows):
        rows = (window == a).nonzero()[:, 0]
        if len(rows):
            best = (values[rows] - values[rows, a][:, None]).max(0)
            gain[a], mover[a] = best.values, rows[best.indices]
    gain.fill_diagonal_(-torch.inf)
    longest, before = torch.zeros(windows, dtype=values.dtype), [-1] * windows
    for _ in range(windows + 1):  # Bellman and Ford, for the longest walk to each window
        through = longest[:, None] + gain  # (W, W)
        reached, origin = through.max(0)
        better = reached > longest + least
        if not bool(better.any()):
            return []
        for b in better.nonzero()[:, 0].tolist():
            before[b] = int(origin[b])
        longest = torch.where(better, reached, longest)
    return _moves(before, mover, int(better.nonzero()[0, 0]))


def _moves(before: list[int], mover: Tensor, inside: int) -> list[tuple[int, int]]:
    """The moves of the cycle that lies behind a window which can be reached better without end."""
    for _ in before:
        inside = before[inside]
    moves: list[tuple[int, int]] = []
    at = inside
    while not moves or at != inside:
        moves.append((int(mover[before[at], at]), at))
        at = before[at]
    return moves
