"""Density: rows in crowded regions are kept less often, each with a probability inverse to its kernel density.

Paper: How to Train Data-Efficient LLMs, arXiv 2402.09668, algorithm 1 and appendix: p-stable hashes for L2.
Erratum: the printed algorithm draws in proportion to the kernel sum S; the text, the theorem and the figure mean 1 / S,
which is what is done here.
Differs from the paper: vectors are hashed n-grams instead of Sentence-T5 embeddings, unless `by` names other vectors;
up to 20,000 rows, the kernel of the hash is summed exactly. The kernel of one hash falls off as 1 / distance, so that
in a large pool the far rows outweigh the near ones; `power` joins hashes, as sketches of this kind usually do.
Letters: n rows to choose from, M kept, d dimensions, R hash functions, B counters each, p hashes joined into one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Signal
from regimen.core.strategy import Observation
from regimen.selection.common import AmountSelector
from regimen.selection.rules import inverse_propensity

_EXACT = 20_000  # rows that `auto` still compares in pairs
_CHUNK = 2**22  # pairs that are compared at once
_HASHES = 32  # hash functions at once
_PRIME = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Density(AmountSelector):
    """Rows drawn without replacement in proportion to 1 / S, S(y) the sum of k(x, y) over rows x, y included.

    by: a signal of vectors (n, d).
    bandwidth: width w of the hash's steps; distances well above it do not count.
    kernel: `exact` sums over all pairs, `sketch` counts hashes, `auto` is exact up to 20,000 rows.
    power: p; rows collide where p hashes agree, so k is raised to this power. 1 in the paper.
    hashes, buckets: R and B of the sketch. A counter holds n / B rows too many on average.
    ratio, count, token_ratio: how many rows are kept, one of the three: floor(ratio * n), a number of rows, or the
        first drawn until they hold this part of the target tokens of all n.
    """

    by: Signal
    bandwidth: float = 0.5
    power: int = 1
    kernel: Literal["auto", "exact", "sketch"] = "auto"
    hashes: int = 1000
    buckets: int = 20_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.bandwidth < float("inf"):
            raise ConfigError("bandwidth is a distance", got=self.bandwidth, allowed="above 0")
        if self.kernel not in ("auto", "exact", "sketch"):
            raise ConfigError("unknown way to sum the kernel", got=self.kernel, allowed="auto, exact, sketch")
        if min(self.power, self.hashes, self.buckets) < 1:
            got = f"power={self.power}, hashes={self.hashes}, buckets={self.buckets}"
            raise ConfigError("power and the size of the sketch are counts", got=got, allowed="1 or more")

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Ids (M,) int64. Raises ConfigError where `by` has no vectors, or for an amount that cannot be kept."""
        ids, by_id = seen.ids.sort()  # (n,)
        vectors = seen.values[self.by][by_id]  # (n, d)
        if vectors.dim() != 2 or not bool(torch.isfinite(vectors).all()):
            raise ConfigError(f"{self.by} does not give a finite vector per row", got=tuple(vectors.shape))
        if self.kernel == "exact" or (self.kernel == "auto" and len(ids) <= _EXACT):
            density = kernel_sums(vectors.double(), bandwidth=self.bandwidth, power=self.power)  # (n,)
        else:
            density = sketched_sums(
                vectors,
                bandwidth=self.bandwidth,
                power=self.power,
                hashes=self.hashes,
                buckets=self.buckets,
                generator=seen.generator,
            )  # (n,)
        order = inverse_propensity(density, len(ids), generator=seen.generator)  # (n,)
        kept = self.kept(seen.tokens[by_id][order])
        return ids[order[:kept]]  # (M,)


def collision(distance: Tensor, *, bandwidth: float) -> Tensor:
    """Probability that floor((a.x + b) / w) is the same for two points at L2 distances t; 1 at 0. Any shape."""
    r = bandwidth / distance.clamp(min=1e-12)  # w / t
    tail = torch.erfc(r / math.sqrt(2))  # 2 Phi(-w / t)
    return 1 - tail + math.sqrt(2 / math.pi) / r * torch.expm1(-(r**2) / 2)


def kernel_sums(vectors: Tensor, *, bandwidth: float, power: int = 1) -> Tensor:
    """Sums (n,) float64 of `collision` ** p over all rows of vectors (n, d), the row itself included."""
    norms = vectors.square().sum(1)  # (n,)
    sums = []
    for part in torch.arange(len(vectors)).tensor_split(-(-(len(vectors) ** 2) // _CHUNK)):
        squares = norms[part, None] + norms - 2 * vectors[part] @ vectors.T  # (c, n)
        sums.append((collision(squares.clamp(min=0).sqrt(), bandwidth=bandwidth) ** power).sum(1))
    return torch.cat(sums)  # (n,)


def sketched_sums(
    vectors: Tensor, *, bandwidth: float, hashes: int, buckets: int, generator: torch.Generator, power: int = 1
) -> Tensor:
    """Estimates (n,) float64 of `kernel_sums`, at least 1: the mean over R hash functions of a row's counter."""
    n, d = vectors.shape
    sums = torch.zeros(n, dtype=torch.float64)  # (n,)
    for first in range(0, hashes, _HASHES):
        r = min(_HASHES, hashes - first)
        directions = torch.randn(d, r * power, generator=generator, dtype=torch.float64).to(vectors)  # (d, r * p)
        shifts = torch.rand(r * power, generator=generator, dtype=torch.float64)  # (r * p,)
        steps = (vectors @ directions / bandwidth + shifts).floor().long()  # (n, r * p)
        joint = torch.randint(1, _PRIME, (r, power), generator=generator)  # (r, p)
        joint[:, 0] = 1
        cells = (steps.view(n, r, power) * joint).sum(2) % _PRIME % buckets  # (n, r)
        cells += torch.arange(r) * buckets
        counters = torch.bincount(cells.view(-1), minlength=r * buckets)  # (r * B,)
        sums += counters[cells].sum(1)
    return sums / hashes
