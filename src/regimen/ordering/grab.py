"""GraB: an order in which the gradients of any first k rows sum to about k times their mean, by balancing vectors.

Paper: GraB, arXiv 2205.10733, algorithm 2 (reorder by signs), algorithm 5 (greedy balancing), algorithm 6 (balancing by
a self-balancing random walk, arXiv 2006.14009). Each pass turns an order with herding objective H and signed prefix
sums of at most A into one with at most (H + A) / 2 (theorem 2), which the tests check.
Differs from the paper: gradients are measured at the decision, all under one model, so that their mean is exact and
several passes may follow each other (algorithm 2 of the paper); algorithm 4 takes those of training, which are free and
stale, and centres them by the mean of the epoch before. That measuring is charged. Gradients are sketches, unless
`by.sketch.kind` is `whole`. In the random walk a sum that has left its bounds is pushed back instead of starting anew.
Letters: n rows of the group, N of the pool, d numbers of a sketch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.ranks import stable_rank
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Orderer


class Places(NamedTuple):
    """Where the last decision served each row of the pool, (N,) int64; -1 for a row it did not serve."""

    place: Tensor


@dataclass(frozen=True, kw_only=True)
class Grab(Orderer):
    """Rows are ordered from their last order on, or from a random one, by passes that balance gradients.

    by: a signal of vectors (n, d), gradients of rows.
    passes: balancing passes of a decision, at least 1. The paper makes one per epoch.
    balance: `greedy` gives each vector the sign that keeps the signed sum short; `walk` draws it, likelier so.
    bound: c of `walk`: with m the length of the longest vector, s.v of c m^2 decides the sign. The paper has m = 1.
    """

    by: Signal
    passes: int = 8
    balance: Literal["greedy", "walk"] = "greedy"
    bound: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.passes, int) or self.passes < 1:
            raise ConfigError("passes counts balancing passes", got=self.passes, allowed="1, 2, 3, ...")
        if self.balance not in ("greedy", "walk"):
            raise ConfigError("unknown way to balance", got=f"balance={self.balance}", allowed="greedy, walk")
        if not 0 < self.bound < float("inf"):
            raise ConfigError("bound is a length of the signed sum", got=self.bound, allowed="above 0")

    def init(self, index: PoolIndex) -> Places:
        return Places(torch.full((index.rows,), -1, dtype=torch.int64))

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: Places, seen: Observation) -> Tensor:
        """Positions (n,) int64, a permutation of 0 to n-1. Raises ConfigError where `by` has no finite vectors."""
        vectors = seen.values[self.by]
        if vectors.dim() != 2 or not bool(torch.isfinite(vectors).all()):
            raise ConfigError(
                f"GraB balances vectors, and {type(self.by).__name__} gives no finite vector per row",
                got=f"values of shape {tuple(vectors.shape)}",
                do="take gradients: strategies.grab.by._target_=regimen.signals.gradients.GradientSketch",
            )
        order = self._start(state, seen)  # (n,) places in `seen` in the order of service
        mean = vectors[seen.ids.argsort()].mean(0, dtype=torch.float64)  # (d,) by id, for sums round by their order
        longest = max((float((v.double() - mean).norm()) for v in vectors), default=0.0)
        for _ in range(self.passes):
            centred = (vectors[i].double() - mean for i in order.tolist())  # one at a time: (n, d) is large
            order = order[reordered(self._signs(centred, longest, seen.generator))]
        position = torch.empty_like(order)
        position[order] = torch.arange(len(order))
        return position

    def advance(self, state: Places, decision: Tensor, seen: Observation) -> Places:
        """Remembers the order; rows of other groups stay as they are."""
        place = state.place.clone()
        place[decision] = torch.arange(len(decision))
        return Places(place)

    def _start(self, state: Places, seen: Observation) -> Tensor:
        """The last order (n,) of these rows; rows it does not know come after, shuffled, by ids and generator alone."""
        noise = torch.rand(len(seen.ids), generator=seen.generator, dtype=torch.float64)
        noise = noise[stable_rank(seen.ids, ties=seen.ids)]  # (n,)
        known = state.place[seen.ids]  # (n,)
        return torch.where(known >= 0, known.double(), len(state.place) + noise).argsort(stable=True)

    def _signs(self, vectors: Iterable[Tensor], longest: float, generator: torch.Generator) -> Tensor:
        if self.balance == "greedy":
            return greedy_signs(vectors)
        return walk_signs(vectors, self.bound * (longest or 1.0) ** 2, generator)


def greedy_signs(vectors: Iterable[Tensor]) -> Tensor:
    """Signs (n,) bool, true for +1, of vectors (d,) in turn: the one that makes the signed sum so far shorter.

    ||s + v|| < ||s - v|| where s.v < 0; a tie is -1, as in algorithm 5.
    """
    return _signs(vectors, lambda lean: lean < 0)


def walk_signs(vectors: Iterable[Tensor], bound: float, generator: torch.Generator) -> Tensor:
    """Signs (n,) bool of vectors (d,) in turn: +1 with probability 1/2 - s.v / (2 bound), s the signed sum so far."""

    def plus(lean: float) -> bool:
        return float(torch.rand((), generator=generator, dtype=torch.float64)) < 0.5 - lean / (2 * bound)

    return _signs(vectors, plus)


def _signs(vectors: Iterable[Tensor], plus: Callable[[float], bool]) -> Tensor:
    total, signs = torch.zeros((), dtype=torch.float64), []
    for vector in vectors:
        signs.append(plus(float((total * vector).sum())))
        total = total + vector if signs[-1] else total - vector
    return torch.tensor(signs, dtype=torch.bool)


def reordered(signs: Tensor) -> Tensor:
    """Places (n,) in the new order, of signs (n,) bool: those of +1 as they come, then those of -1 from the last on."""
    return torch.cat([signs.nonzero()[:, 0], (~signs).nonzero()[:, 0].flip(0)])


def herding_objective(vectors: Tensor, order: Tensor) -> float:
    """The longest sum of the first k centred vectors, over k; vectors (n, d), order (n,) of places."""
    if not len(order):
        return 0.0
    centred = vectors.double() - vectors.double().mean(0)
    return float(centred[order].cumsum(0).norm(dim=1).max())
