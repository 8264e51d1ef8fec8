"""Loss curves: Savitzky-Golay smoothing, and the power law L(D) = exp(e) + exp(a) / D^alpha fitted to them.

Paper: ADO, arXiv 2410.11820, and its code (yidingjiang/ado).  Objective of a curve: the sum over points of the Huber
loss (delta 0.001) of log L, plus what alpha exceeds 0.8, a exceeds 6.5, e falls short of 0.5 and alpha of 0.001.
Differs from the paper in how the minimum is found, not in what is minimised: its 512 starts are scored on a grid, the
best of each alpha is refined by damped Gauss-Newton steps instead of L-BFGS, which stop at the kinks of the penalties,
and a curve of more than 256 points is thinned, with the sum scaled back to all points.
Letters: K curves, T steps, P points of a curve, S starts, W window.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_DELTA = 1e-3
_MOST_POINTS, _SCORED_POINTS = 256, 64
# Of a, e, alpha: below and above, the penalty rises by 1 per unit.
_LOW = torch.tensor([-torch.inf, 0.5, 0.001], dtype=torch.float64)
_HIGH = torch.tensor([6.5, torch.inf, 0.8], dtype=torch.float64)
_ITERATIONS = 50


@lru_cache(maxsize=8)
def smoother(window: int, order: int) -> Tensor:
    """(W, W) float64: row j gives the value at place j of the least-squares polynomial through W equidistant points."""
    places = torch.linspace(-1, 1, window, dtype=torch.float64)  # (W,)
    basis = torch.linalg.qr(torch.stack([places**power for power in range(min(order, window - 1) + 1)], 1)).Q
    smooth: Tensor = basis @ basis.T
    return smooth


def odd_window(window: int, steps: int) -> int:
    """The longest odd window up to `window` that `steps` steps allow."""
    longest = min(window, steps)
    return longest - (longest % 2 == 0)


def savitzky_golay(values: Tensor, *, window: int, order: int) -> Tensor:
    """Smoothed (T, K) series; the first and last half windows take the polynomial of the first and last window."""
    steps = len(values)
    window = odd_window(window, steps)
    half, matrix = window // 2, smoother(window, order)
    middle = torch.einsum("tkw,w->tk", values.unfold(0, window, 1), matrix[half])  # (T - W + 1, K)
    return torch.cat([matrix[:half] @ values[:window], middle, matrix[half + 1 :] @ values[steps - window :]])


def predicted(laws: Tensor, counts: Tensor) -> Tensor:
    """Losses of laws (..., 3), each (a, e, alpha), at counts (...)."""
    a, e, alpha = laws.unbind(-1)
    return e.exp() + (a - alpha * counts.log()).exp()


def fit_power_laws(counts: Tensor, losses: Tensor) -> Tensor:
    """The laws (K, 3), each (a, e, alpha), that fit the points best; NaN where no fit is finite.

    counts: (P, K) above 0. losses: (P, K) above 0.
    """
    x, y = counts.T.double().log(), losses.T.double().log()  # (K, P)
    places = torch.linspace(0, len(counts) - 1, min(len(counts), _MOST_POINTS)).round().long()
    weight = len(counts) / len(places)
    few = torch.linspace(0, len(counts) - 1, min(len(counts), _SCORED_POINTS)).round().long()
    starts = _best_starts(x[:, few], y[:, few])  # (K, S, 3)
    x, y = x[:, None, places], y[:, None, places]  # (K, 1, P)
    laws, value = _refined(starts, x, y, weight)
    lowest, best = value.nan_to_num(nan=torch.inf).min(1)  # (K,), (K,)
    return torch.where(lowest.isfinite()[:, None], laws[torch.arange(len(laws)), best], torch.nan)


def _best_starts(x: Tensor, y: Tensor) -> Tensor:
    """(K, S, 3): for each alpha of the grid, the a and e of the grid with the lowest objective."""
    a, e = torch.arange(-2, 6).double(), torch.arange(-2, 2, 0.5).double()
    alpha = torch.arange(0, 0.8, 0.1).double()
    grid = torch.cartesian_prod(alpha, a, e)[:, [1, 2, 0]]  # (512, 3)
    grid = torch.minimum(torch.maximum(grid, _LOW), _HIGH)
    values = torch.stack([_objective(grid, x[k][None], y[k][None], 1.0) for k in range(len(x))])  # (K, 512)
    best = values.nan_to_num(nan=torch.inf).view(len(x), len(alpha), -1).argmin(2)  # (K, S)
    return grid.view(len(alpha), -1, 3)[torch.arange(len(alpha)), best]


def _objective(laws: Tensor, x: Tensor, y: Tensor, weight: float) -> Tensor:
    """Objective (...) of laws (..., 3) on points (..., P) in logs."""
    size = (_log_loss(laws, x)[0] - y).abs()  # (..., P)
    huber = torch.where(size > _DELTA, _DELTA * (size - _DELTA / 2), size.square() / 2).sum(-1)
    penalty = (laws - _HIGH).clamp(min=0) + (_LOW - laws).clamp(min=0)  # (..., 3)
    return weight * huber + penalty.sum(-1)


def _log_loss(laws: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the predicted losses (..., P), and the reducible part of them (..., P)."""
    a, e, alpha = laws[..., None].unbind(-2)
    reducible = a - alpha * x  # (..., P), in logs
    return torch.logaddexp(reducible, e), torch.sigmoid(reducible - e)


def _refined(laws: Tensor, x: Tensor, y: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Laws (K, S, 3) at a minimum near the given ones, and their objective (K, S)."""
    value = _objective(laws, x, y, weight)
    damping = torch.full_like(value, 1e-3)
    for _ in range(_ITERATIONS):
        tried = _stepped(laws, x, y, weight, damping)
        # A step that would cross a kink of the penalty stops there.
        for kink in (_LOW, _HIGH):
            crosses = ((laws - kink) * (tried - kink) < 0) & kink.isfinite()
            tried = torch.where(crosses, kink, tried)
        new = _objective(tried, x, y, weight)
        better = new < value  # False for NaN
        laws = torch.where(better[..., None], tried, laws)
        gained = torch.where(better, value - new, 0)
        done = ((gained <= 1e-10 * value) & better) | (~better & (damping > 1e8)) | (value < 1e-22)
        value = torch.where(better, new, value)
        damping = torch.where(better, damping / 10, damping * 4).clamp(min=1e-12)
        if bool(done.all()):
            break
    return laws, value


def _stepped(laws: Tensor, x: Tensor, y: Tensor, weight: float, damping: Tensor) -> Tensor:
    """Laws (K, S, 3) after a damped Gauss-Newton step; what a kink of the penalty holds stays."""
    log_loss, part = _log_loss(laws, x)
    residual = log_loss - y  # (K, S, P)
    jacobian = torch.stack([part, 1 - part, -x * part], -2)  # (K, S, 3, P): by a, e, alpha
    weighted = jacobian * (weight / (residual.abs() / _DELTA).clamp(min=1)).unsqueeze(-2)
    gradient = (weighted @ residual[..., None]).squeeze(-1)  # (K, S, 3)
    held = ((laws == _HIGH) & (gradient >= -1) & (gradient <= 0)) | ((laws == _LOW) & (gradient >= 0) & (gradient <= 1))
    outside = ((laws > _HIGH) | ((laws == _HIGH) & (gradient < -1))).double()
    outside -= ((laws < _LOW) | ((laws == _LOW) & (gradient > 1))).double()
    gradient = torch.where(held, 0.0, gradient + outside)
    free = (~held).double()
    curvature = (weighted @ jacobian.mT) * free[..., :, None] * free[..., None, :]  # (K, S, 3, 3)
    middle, bound = x.mean(-1), held.any(-1)  # (K, 1), (K, S)
    inward = _inward(laws, middle, held)  # (K, S, 3, 3)
    curvature = inward.mT @ curvature @ inward
    scale = curvature.diagonal(dim1=-2, dim2=-1)  # (K, S, 3)
    ridge = torch.diag_embed(damping[..., None] * scale.clamp(min=1e-20) + held.double())
    step = -torch.linalg.solve_ex(curvature + ridge, inward.mT @ gradient[..., None])[0].squeeze(-1)
    straight = laws + torch.where(held, 0.0, (inward @ step[..., None]).squeeze(-1))
    return torch.where(bound[..., None], straight, _from_middle(_to_middle(laws, middle) + step, middle))


# A curve fixes its value and its slope at its middle well, alpha less so, and a and e only together with alpha. So a
# law that no kink holds is moved in these: the value L and the slope -dL / d log D at the middle, and alpha.


def _to_middle(laws: Tensor, middle: Tensor) -> Tensor:
    a, e, alpha = laws.unbind(-1)
    reducible = (a - alpha * middle).exp()
    return torch.stack([e.exp() + reducible, alpha * reducible, alpha], -1)


def _from_middle(moved: Tensor, middle: Tensor) -> Tensor:
    value, slope, alpha = moved.unbind(-1)
    reducible = slope / alpha
    return torch.stack([reducible.log() + alpha * middle, (value - reducible).log(), alpha], -1)


def _inward(laws: Tensor, middle: Tensor, held: Tensor) -> Tensor:
    """Derivatives (K, S, 3, 3) of a law by value, slope and alpha; where a kink holds, by itself."""
    a, e, alpha = laws.unbind(-1)
    reducible, floor = (a - alpha * middle).exp(), e.exp()
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    slope = alpha * reducible
    rows = [
        torch.stack([zero, 1 / slope, middle - 1 / alpha], -1),
        torch.stack([1 / floor, -1 / (alpha * floor), slope / (alpha.square() * floor)], -1),
        torch.stack([zero, zero, one], -1),
    ]
    straight = torch.diag_embed(torch.ones_like(laws))
    straight[..., 0, 2] = torch.where(held[..., 0], 0.0, middle)
    return torch.where(held.any(-1)[..., None, None], straight, torch.stack(rows, -2))
