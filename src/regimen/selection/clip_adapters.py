"""Linear adapters of image and text features, fitted to pairs that belong together.

Paper: arXiv 2410.11215, dataset adaptation: InfoNCE, arXiv 1807.03748, in both directions as in CLIP, arXiv 2103.00020.
Differs from the paper: the adapters are affine maps that start as the identity, so that 0 steps are plain CLIP; the
temperature is fixed; a pair of the same class is no negative, for its text is the same. The paper's optimiser, steps
and batch could not be confirmed.
Letters: M pairs, b of them in a step, d dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from regimen.signals.clip_features import Pairs


class Adapter(NamedTuple):
    """x -> x weight^T + bias on unit vectors. weight: (d, d) float64, bias: (d,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Adapted features (n, d) float64 of unit length, of features (n, d) of any length."""
        return normalize(normalize(features.double(), dim=1) @ self.weight.T + self.bias, dim=1)  # (n, d)


class Adapters(NamedTuple):
    """One adapter for each side of a pair."""

    image: Adapter
    text: Adapter


def identity(dimensions: int) -> Adapters:
    """Adapters that change nothing."""
    eye, zero = torch.eye(dimensions, dtype=torch.float64), torch.zeros(dimensions, dtype=torch.float64)
    return Adapters(Adapter(eye.clone(), zero.clone()), Adapter(eye.clone(), zero.clone()))


def info_nce(image: Tensor, text: Tensor, label: Tensor | None, *, temperature: float) -> Tensor:
    """Mean over b pairs and both directions of -log of the share of the pair's own cosine in those of all pairs.

    image, text: (b, d) of unit length. label: (b,) classes; other pairs of a pair's class do not count.
    """
    logits = image @ text.T / temperature  # (b, b)
    own = torch.arange(len(image))  # (b,)
    if label is not None:
        same = (label[:, None] == label) & (own[:, None] != own)  # (b, b)
        logits = logits.masked_fill(same, -torch.inf)
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def fit_adapters(
    pairs: Pairs,
    *,
    steps: int,
    learning_rate: float,
    temperature: float,
    batch: int | None,
    generator: torch.Generator,
) -> Adapters:
    """Adapters after `steps` steps of Adam on InfoNCE over `batch` pairs drawn anew in each, null for all of them."""
    start = identity(pairs.image.shape[1])
    leaves = [tensor.requires_grad_() for adapter in start for tensor in adapter]
    optimizer = torch.optim.Adam(leaves, lr=learning_rate)
    with torch.enable_grad():
        for _ in range(steps):
            drawn = _drawn(len(pairs.image), batch, generator)  # (b,)
            label = None if pairs.label is None else pairs.label[drawn]
            image, text = start.image(pairs.image[drawn]), start.text(pairs.text[drawn])  # (b, d)
            optimizer.zero_grad()
            torch.autograd.backward(info_nce(image, text, label, temperature=temperature))
            optimizer.step()
    return Adapters(*(Adapter(*(tensor.detach() for tensor in adapter)) for adapter in start))


def _drawn(pairs: int, batch: int | None, generator: torch.Generator) -> Tensor:
    """Places (b,) of the pairs of one step."""
    if batch is None or batch >= pairs:
        return torch.arange(pairs)
    return torch.randperm(pairs, generator=generator)[:batch]
