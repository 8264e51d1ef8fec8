"""Evaluation curves against tokens and FLOPs, and the ranking of methods at a budget that all of them reached."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regimen.evaluation.statistics import Interval, mean_interval
from regimen.reports.groups import Arm
from regimen.reports.runs import Run

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""The budget spent, ascending, and the score there."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """An arm's curve over seeds: the mean, and a lower and upper edge around it; all (points,)."""

    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Place:
    """An arm in a ranking: its score at the budget and its paired difference to the first arm; None: not reached.

    `values` are the scores by seed. `interpolated`: at least one of them lies between two evaluations.
    """

    label: str
    score: Interval | None
    difference: Interval | None
    note: str
    values: Mapping[int, float]
    interpolated: bool
    baseline: bool = False

    @property
    def key(self) -> float:
        """What the ranking sorts by; infinite without a rank."""
        if self.baseline and self.score:
            return 0.0
        return self.difference.mean if self.difference else math.inf


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The arms at one budget `at` (tokens or FLOPs), the best first.

    The rank goes by the paired difference to the baseline (0 for the baseline itself), so that a method does not gain
    by the seeds it lacks. Arms without a pair or a score come last and have no rank.
    """

    axis: str
    at: float
    places: tuple[Place, ...]

    def of(self, arm: Arm) -> Place | None:
        """The arm's place; None for an arm that is not ranked."""
        return next((place for place in self.places if place.label == arm.label), None)

    def between(self, place: Place) -> bool:
        """Whether the place's difference is of a score that lies between two evaluations."""
        return place.interpolated or any(other.baseline and other.interpolated for other in self.places)


def curve(run: Run, metric: str, axis: str) -> Curve:
    """The evaluations of a run against `tokens` or `flops`; FLOPs include measuring and the stages it needed."""
    before = run.number("flops", "stages") if axis == "flops" else 0.0
    before = before if math.isfinite(before) else 0.0
    points: dict[float, float] = {}
    for row in run.curve:
        spent, score = _value(row.get(axis)), _value(row.get(metric))
        if math.isfinite(spent) and math.isfinite(score):
            points[spent + before] = score
    x = sorted(points)
    return np.array(x, dtype=float), np.array([points[value] for value in x], dtype=float)


def rank_at_equal_budget(arms: Sequence[Arm], metric: str, *, axis: str, at: float | None = None) -> Ranking | None:
    """Every run at the budget `at`, linear between its evaluations; `arms[0]` is the baseline.

    Without `at`, at the largest budget that all runs of all arms reached: the least of their ends.
    """
    curves = {id(arm): _curves(arm, metric, axis) for arm in arms}
    ends = [x[-1] for of_arm in curves.values() for x, _ in of_arm.values()]
    if len(arms) < 2 or not ends:
        return None
    budget = float(min(ends)) if at is None else at
    scores = {
        key: {seed: _at(c, budget) for seed, c in of_arm.items() if c[0][0] <= budget} for key, of_arm in curves.items()
    }
    places = [_place(arm, arms[0], scores, bool(curves[id(arm)])) for arm in arms]
    places.sort(key=lambda place: place.key)
    return Ranking(axis=axis, at=budget, places=tuple(places))


def _at(points: Curve, budget: float) -> tuple[float, bool]:
    """The score at a budget, and whether it lies between two evaluations."""
    x, y = points
    exact = bool(np.isclose(x, budget, rtol=1e-9, atol=0).any())
    return float(np.interp(budget, x, y)), not exact


def _place(arm: Arm, base: Arm, scores: Mapping[int, Mapping[int, tuple[float, bool]]], measured: bool) -> Place:
    mine = {seed: value for seed, (value, _) in scores[id(arm)].items()}
    theirs = {seed: value for seed, (value, _) in scores[id(base)].items()}
    if not mine:
        note = "it had spent more before its first evaluation" if measured else "no evaluation in its metrics.jsonl"
        return Place(label=arm.label, score=None, difference=None, note=note, values={}, interpolated=False)
    seeds = sorted(mine.keys() & theirs.keys())
    notes = [] if len(mine) == len(arm.counted) else [f"{len(mine)} of {len(arm.counted)} runs have a score there"]
    notes += [] if seeds else [f"no seed in common with {base.label}"]
    return Place(
        label=arm.label,
        score=mean_interval(list(mine.values())),
        difference=mean_interval([mine[s] - theirs[s] for s in seeds]) if seeds and arm is not base else None,
        note="; ".join(notes),
        values=mine,
        interpolated=any(between for _, between in scores[id(arm)].values()),
        baseline=arm is base,
    )


def score_band(arm: Arm, metric: str, axis: str) -> Band | None:
    """The mean of the arm's curves, with the range over its seeds."""
    curves = list(_curves(arm, metric, axis).values())
    grid = _shared_grid(curves)
    if grid is None:
        return None
    values = np.stack([np.interp(grid, x, y) for x, y in curves])  # (S, points)
    return Band(x=grid, mean=values.mean(axis=0), low=values.min(axis=0), high=values.max(axis=0))


def difference_band(arm: Arm, base: Arm, metric: str, axis: str) -> Band | None:
    """The mean paired difference to the baseline along the budget, with its 95% t-interval (or none: one seed)."""
    mine, theirs = _curves(arm, metric, axis), _curves(base, metric, axis)
    pairs = [(mine[seed], theirs[seed]) for seed in sorted(mine.keys() & theirs.keys())]
    grid = _shared_grid([c for pair in pairs for c in pair])
    if grid is None:
        return None
    values = np.stack([np.interp(grid, *a) - np.interp(grid, *b) for a, b in pairs])  # (S, points)
    intervals = [mean_interval(column) for column in values.T]
    return Band(
        x=grid,
        mean=np.array([interval.mean for interval in intervals]),
        low=np.array([interval.low for interval in intervals]),
        high=np.array([interval.high for interval in intervals]),
    )


def _curves(arm: Arm, metric: str, axis: str) -> dict[int, Curve]:
    """The curve of each seed that has one."""
    return {seed: c for seed, run in arm.by_seed().items() if len((c := curve(run, metric, axis))[0])}


def _shared_grid(curves: Sequence[Curve]) -> NDArray[np.float64] | None:
    """All points of all curves within the range that every curve covers; None when they share no range."""
    if not curves:
        return None
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = grid[(grid >= low) & (grid <= high)]
    return grid if len(grid) else None


def _value(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
