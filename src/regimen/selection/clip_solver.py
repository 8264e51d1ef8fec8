"""How well image and text agree, how unlike its kind an image is, and which rows to keep for both.

Paper: arXiv 2410.11215: the semantic alignment score SAS, the sample diversity score SDS, and selection by
multi-objective optimisation. The objective is -(1/N) sum_i p_i s_i + b |(1/N) sum_i 1[p_i > .5] - r|, s = SAS + a SDS,
p = sigmoid(x), with a straight-through gradient of the indicator.
Differs from the paper: r N is the whole number of rows to keep. For b > max |s| the optimum then keeps the r N highest
s, which `closed_form` takes at once. Distances are between unit vectors. The paper's a, b, learning rate and steps
could not be confirmed.
Letters: N rows, d dimensions, k neighbours.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from regimen.selection.rules import top_k

_CHUNK = 2**24  # pairs of rows that are compared at once
_SAME = 1e-12  # squared distance of unit vectors below which they are one: two encodings of an image differ by rounding


def alignment(image: Tensor, text: Tensor) -> Tensor:
    """SAS (N,): cosine of each image with its text, both (N, d) of unit length."""
    return (image * text).sum(dim=1)  # (N,)


def diversity(image: Tensor, label: Tensor | None, *, neighbours: float) -> Tensor:
    """SDS (N,): mean distance of each image to its k nearest others of the same class.

    image: (N, d) of unit length. label: (N,), null for one class of all. neighbours: k as a part of the class, at least
    1 and at most all the others. A row that is alone in its class has no neighbour and gets the mean over the rows that
    have some (0 if none has), so that its alignment alone speaks for or against it.
    """
    label = torch.zeros(len(image), dtype=torch.int64) if label is None else label
    found = torch.full((len(image),), torch.nan, dtype=torch.float64)  # (N,)
    for kind in torch.unique(label):
        members = (label == kind).nonzero()[:, 0]
        if len(members) > 1:
            k = min(max(int(Fraction(str(neighbours)) * len(members)), 1), len(members) - 1)
            found[members] = _nearest(image[members].double(), k).mean(dim=1)
    return found.nan_to_num(nan=float(found.nanmean().nan_to_num()))  # (N,)


def _nearest(points: Tensor, k: int) -> Tensor:
    """Distances (N, k) of unit vectors (N, d) to the nearest others."""
    parts = []
    for own in torch.arange(len(points)).tensor_split(max(len(points) ** 2 // _CHUNK, 1)):
        squared = 2 - 2 * points[own] @ points.T  # (., N)
        squared = torch.where(squared < _SAME, 0.0, squared)
        squared[torch.arange(len(own)), own] = torch.inf
        parts.append(squared.topk(k, dim=1, largest=False).values.sqrt())
    return torch.cat(parts)  # (N, k)


def closed_form(scores: Tensor, kept: int) -> Tensor:
    """Positions (kept,) of the highest scores (N,), best first."""
    return top_k(scores, kept)


def descent(scores: Tensor, kept: int, *, penalty: float, steps: int, learning_rate: float) -> Tensor:
    """Logits x (N,) float64 after gradient descent on N times the objective, from 0, for scores s (N,), r = kept / N.

    The learning rate falls to 0 in a straight line. While learning_rate * (penalty + max |s|) is below 10, no step
    carries a row past one with a higher score: the rows above 0 are the best ones, and descent decides only their
    number. That swings about `kept`, the less the smaller the steps. Equal scores stay together.
    """
    scores, logits = scores.double(), torch.zeros(len(scores), dtype=torch.float64)  # (N,)
    for step in range(steps):
        p = logits.sigmoid()  # (N,)
        excess = float((logits > 0).sum().sub(kept).sign())
        # d/dx of -sum p s + b |sum 1[p > .5] - r N|, the indicator's derivative with respect to p taken to be 1
        logits -= learning_rate * (1 - step / steps) * p * (1 - p) * (penalty * excess - scores)  # (N,)
    return logits


def straight_through(scores: Tensor, kept: int, *, penalty: float, steps: int, learning_rate: float) -> Tensor:
    """Positions (about kept,) of the rows with p > .5 after `descent`, best first."""
    logits = descent(scores, kept, penalty=penalty, steps=steps, learning_rate=learning_rate)  # (N,)
    best = top_k(scores, len(scores))  # (N,)
    return best[logits[best] > 0]
