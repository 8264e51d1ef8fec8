"""Adam over named tensors as a pure function, for parameters that are part of a strategy's state.

Paper: Adam, arXiv 1412.6980, algorithm 1, and AdamW's weight decay, arXiv 1711.05101.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_EPS = 1e-8


class Moments(NamedTuple):
    """first, second: by name of the parameter, as large as it. steps: that were made."""

    first: dict[str, Tensor]
    second: dict[str, Tensor]
    steps: int


def no_moments(of: Mapping[str, Tensor]) -> Moments:
    """Before the first step."""
    return Moments(
        {name: torch.zeros_like(value) for name, value in of.items()},
        {name: torch.zeros_like(value) for name, value in of.items()},
        0,
    )


def clipped(gradients: Mapping[str, Tensor], limit: float | None) -> dict[str, Tensor]:
    """Gradients made shorter so that all together are no longer than `limit`."""
    if limit is None:
        return dict(gradients)
    norm = torch.stack([g.double().square().sum() for g in gradients.values()]).sum().sqrt()
    factor = min(limit / (float(norm) + 1e-6), 1.0)
    return {name: g * factor for name, g in gradients.items()}


def adam(
    at: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    moments: Moments,
    *,
    lr: float,
    decay: float | Mapping[str, float] = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
) -> tuple[dict[str, Tensor], Moments]:
    """Parameters and moments after one step. decay: of the weights, of all or by name, decoupled from the gradient."""
    (b1, b2), count = betas, moments.steps + 1
    first = {n: b1 * moments.first[n] + (1 - b1) * g for n, g in gradients.items()}
    second = {n: b2 * moments.second[n] + (1 - b2) * g.square() for n, g in gradients.items()}
    out = {}
    for name, value in at.items():
        up = first[name] / (1 - b1**count)
        down = (second[name] / (1 - b2**count)).sqrt() + _EPS
        kept = 1 - lr * (decay if isinstance(decay, float | int) else decay[name])
        out[name] = value * kept - lr * up / down
    return out, Moments(first, second, count)
