"""TSDS: rows drawn with the probabilities of a transport from target rows to their neighbours, near but not alike.

Paper: TSDS, arXiv 2410.11303, KNN-Uniform and KNN-KDE, and its code.
Differs from the paper: with `draw=distinct` rows are drawn without replacement (as DataFlex does), by Gumbel noise.
Up to 5,000 rows densities are summed over all rows, beyond that over the neighbours of the target rows alone, and over
at most `density_neighbours` of them. Neighbours are exact below 50,000 rows. See also `transport` and `neighbours`.
Letters: n rows to choose from, M target rows, R neighbours of each, d dimensions, k rows kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Selection
from regimen.selection.common import AmountSelector, amount
from regimen.selection.neighbours import Search, by_faiss, nearest
from regimen.selection.rules import gumbel_top_k
from regimen.selection.targeted import ordered, target_of
from regimen.selection.transport import kernel_density, tsds

_ALL = 5000  # rows whose densities are summed over all
_PAIRS = 2**24  # of rows that are compared at once


class Assigned(NamedTuple):
    """What target rows give to rows. probability: (n,) float64, sum 1. cap: s, density-weighted neighbours.

    spread: rows that a target row gives to, on average. neighbours: R.
    """

    probability: Tensor
    cap: float
    spread: float
    neighbours: int


class Drawn(Selection):
    """A selection that remembers the assignment it was drawn from."""

    spread: float
    neighbours: int


@dataclass(frozen=True, kw_only=True)
class Tsds(AmountSelector):
    """Rows drawn by alpha / scale * distance + (1 - alpha) * M * the largest density-weighted share of any row.

    by: a signal of vectors, of rows (n, d) and of target rows (M, d).
    metric: `euclidean`, or `cosine` for 1 - cosine, with densities from the distances of unit vectors.
    centre: whether vectors, less the mean of the rows, are made unit vectors first. Hidden states of a language model
        need it: they lie in a narrow cone (arXiv 1909.00512), all within `sigma`.
    alpha: 1 gives all to the nearest neighbours, 0 spreads over all of them. scale: C, about the largest distance.
    density: `kde` makes alike rows share what one of them would get, `uniform` does not.
    sigma: distance at which rows do not count to each other's density.
    neighbours: R, at most a tenth of the rows, at least 1. density_neighbours: see the module.
    search: `exact`, `faiss`, or `auto`, which is exact below 50,000 rows.
    draw: `distinct` rows, or `repeats`, which draws with replacement.
    ratio, count, token_ratio: how many rows are drawn, one of the three: floor(ratio * n), a number of rows, or, of
        distinct rows, the first drawn until they hold this part of the target tokens of all n.
    """

    by: Signal
    metric: Literal["euclidean", "cosine"] = "euclidean"
    centre: bool = False
    alpha: float = 0.5
    scale: float = 5.0
    density: Literal["kde", "uniform"] = "kde"
    sigma: float = 0.75
    neighbours: int = 5000
    density_neighbours: int = 1000
    search: Search = "auto"
    draw: Literal["distinct", "repeats"] = "distinct"
    ratio: float | None = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {
            "metric": ("euclidean", "cosine"),
            "density": ("kde", "uniform"),
            "search": ("auto", "exact", "faiss"),
            "draw": ("distinct", "repeats"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"unknown {name} of TSDS", got=getattr(self, name), allowed=", ".join(allowed))
        if not 0 <= self.alpha <= 1:
            raise ConfigError("alpha trades distance against spread", got=self.alpha, allowed="0 to 1")
        if not (0 < self.scale < float("inf") and 0 < self.sigma < float("inf")):
            got = f"scale={self.scale}, sigma={self.sigma}"
            raise ConfigError("scale and sigma are distances", got=got, allowed="above 0")
        if min(self.neighbours, self.density_neighbours) < 1:
            got = f"neighbours={self.neighbours}, density_neighbours={self.density_neighbours}"
            raise ConfigError("neighbours are counts", got=got, allowed="1 or more")
        if self.draw == "repeats" and self.token_ratio is not None:
            raise ConfigError(
                "draw=repeats draws a number of rows", got=f"token_ratio={self.token_ratio}", do="give ratio or count"
            )

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def needs_of_target(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: Any, seen: Observation) -> Selection:
        """Ids (k,) int64, as drawn, or ascending with how often each was.

        Raises ConfigError without a target set, where `by` has no vectors, or where fewer rows can be drawn than are
        to be kept.
        """
        target_of(seen)
        ids, by_id = seen.ids.sort()  # (n,)
        found = self.assign(ordered(seen.values[self.by], by_id), seen.target_values[self.by])
        if self.draw == "repeats":
            drawn = self._repeated(found.probability, len(ids), seen.generator)
        else:
            drawn = self._distinct(found, seen.tokens[by_id], seen.generator)
        return _remembering(Selection(ids[drawn.ids], drawn.repeats), found.spread, found.neighbours)

    def assign(self, rows: Tensor, target: Tensor) -> Assigned:
        """Probabilities of rows with vectors (n, d) for target rows with vectors (M, d)."""
        for vectors in (rows, target):
            if vectors.dim() != 2 or not bool(torch.isfinite(vectors).all()):
                raise ConfigError(f"{self.by} does not give a finite vector per row", got=tuple(vectors.shape))
        mean = rows.mean(0) if self.centre else None
        points, queries = self._scaled(rows, mean), self._scaled(target, mean)  # (n, d), (M, d)
        count = max(min(self.neighbours, len(points) // 10), 1)
        near, far = nearest(queries, points, count, search=self.search)  # (M, R)
        far = far if self.metric == "euclidean" else far.square() / 2  # (M, R) 1 - cosine of unit vectors
        density = self.densities(points, near)  # (n,)
        plan = tsds(near, far, density, alpha=self.alpha, scale=self.scale)
        share = 1 / density[near]  # (M, R)
        filled = share.cumsum(1) - share < plan.neighbourhood * (1 - 1e-12)  # (M, R) not full before this one
        return Assigned(plan.probability, plan.neighbourhood, float(filled.sum(1).double().mean()), count)

    def notes(self, state: Any, decision: Selection, seen: Observation) -> list[str]:
        """How many rows a target row gives to, which says whether alpha and scale fit the distances."""
        assert isinstance(decision, Drawn)
        told = f"a target row gives to {decision.spread:.1f} rows on average, of {decision.neighbours} neighbours"
        if decision.neighbours > 1 and decision.spread > 0.95 * decision.neighbours:
            told += "; distance decides little: raise alpha, lower scale, or raise neighbours"
        elif decision.spread <= 1 < decision.neighbours:
            told += "; spread decides nothing: lower alpha, or raise scale"
        return [told]

    def checked(self, decision: Tensor | Selection, seen: Observation) -> Selection:
        """As of any selector; the assignment is still remembered."""
        assert isinstance(decision, Drawn)
        return _remembering(super().checked(decision, seen), decision.spread, decision.neighbours)

    def _scaled(self, vectors: Tensor, mean: Tensor | None) -> Tensor:
        """Vectors around a mean, if there is one, made unit vectors where `assign` compares those."""
        if mean is None and self.metric == "euclidean":
            return vectors
        return torch.nn.functional.normalize(vectors if mean is None else vectors - mean, dim=1)

    def densities(self, points: Tensor, near: Tensor) -> Tensor:
        """Densities (n,) float64 of points (n, d), at least 1; 1 in a large pool for no one's neighbour."""
        if self.density == "kde" and len(points) <= _ALL:
            return kernel_density(points, width=self.sigma)
        density = torch.ones(len(points), dtype=torch.float64)
        if self.density == "kde":
            used = torch.unique(near)  # (u,)
            count = min(self.density_neighbours, len(used))
            if by_faiss(len(used), self.search):
                far = nearest(points[used], points[used], count, search=self.search).distances  # (u, count)
                density[used] = (1 - (far / self.sigma).square()).clamp(min=0).sum(1).clamp(min=1)
            else:
                density[used] = crowds(points[used], count, width=self.sigma)
        return density

    def _distinct(self, found: Assigned, tokens: Tensor, generator: torch.Generator) -> Selection:
        """Positions (k,), drawn one after another without replacement."""
        order = gumbel_top_k(found.probability.log(), len(tokens), generator=generator)  # (n,) those without one last
        kept = self.kept(tokens[order])
        possible = int((found.probability > 0).sum())
        if possible < kept:
            raise ConfigError(
                "the target rows give to fewer rows than are to be kept",
                got=f"{possible} rows with a probability, {kept} to keep, "
                f"{found.neighbours} neighbours of each target row",
                do=self._ways_out(found, len(tokens)),
            )
        return Selection(order[:kept])

    def _ways_out(self, found: Assigned, rows: int) -> str:
        """What lets target rows give to more rows; at most a tenth of the rows can be neighbours of one."""
        ways = []
        if found.neighbours < max(rows // 10, 1):
            ways.append("raise neighbours")
        if found.spread < found.neighbours and self.alpha > 0:
            ways.append("lower alpha")
        return ", ".join([*ways, "give more target rows", "keep fewer rows", "or set draw=repeats"])

    def _repeated(self, probability: Tensor, n: int, generator: torch.Generator) -> Selection:
        """Positions that were drawn at least once with replacement, ascending, and how often."""
        drawn = torch.rand(amount(n, self.ratio, self.count), generator=generator, dtype=torch.float64)  # (k,)
        sums = probability.cumsum(0)  # (n,)
        last = int(probability.nonzero()[-1])
        places = torch.searchsorted(sums, drawn * sums[-1], right=True).clamp(max=last)  # (k,)
        positions, repeats = torch.unique(places, return_counts=True)
        return Selection(positions, repeats)


def crowds(points: Tensor, count: int, *, width: float) -> Tensor:
    """Densities (u,) float64, as `kernel_density`, summed over at most `count` of the points (u, d), the nearest.

    By products of matrices, which is exact to rounding only, and many times faster where there are many points.
    """
    near = points.double()  # (u, d)
    norms = near.square().sum(1)  # (u,)
    sums = []
    for part in torch.split(torch.arange(len(near)), max(_PAIRS // len(near), 1)):
        squares = norms[part, None] + norms - 2 * near[part] @ near.T  # (., u)
        closeness = (1 - squares.clamp(min=0) / width**2).clamp(min=0)  # (., u)
        sums.append((closeness.topk(count, dim=1).values if count < len(near) else closeness).sum(1))
    return torch.cat(sums).clamp(min=1)  # (u,)


def _remembering(selection: Selection, spread: float, neighbours: int) -> Drawn:
    drawn = Drawn(*selection)
    drawn.spread, drawn.neighbours = spread, neighbours
    return drawn
