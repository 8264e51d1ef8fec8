"""What the methods did to the data: mixtures, orders, selections and weights, from the records, over seeds.

Shapes: P points (steps or parts of a sequence), D domains, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regimen.reports.groups import Arm
from regimen.reports.runs import Run

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """The decided share of every domain over the steps, and the natural and realised shares of the whole run."""

    strategy: str
    steps: Array
    decided: Mapping[str, Array]
    natural: Mapping[str, float]
    realised: Mapping[str, float]
    seeds: int


@dataclass(frozen=True, kw_only=True, eq=False)
class OrderedGroup:
    """One ordered group along its sequence: the mean score (or none was kept) and the share of every domain."""

    name: str
    scores: Array | None
    domains: Mapping[str, Array]


@dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """The first decision of an orderer, averaged over seeds."""

    strategy: str
    groups: tuple[OrderedGroup, ...]
    decisions: int
    seeds: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """The last decision of a selector: the kept share in all and by domain, and signal means (kept, all)."""

    strategy: str
    kept: float
    of: float
    domains: Mapping[str, float]
    signals: Mapping[str, tuple[float, float]]
    seeds: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """The effective sample size over steps (mean and range over seeds) and the last histogram of weights."""

    strategy: str
    steps: Array
    mean: Array
    low: Array
    high: Array
    edges: Array
    shares: Array
    seeds: int


def mixture_of(arm: Arm) -> Mixture | None:
    """The mean decided mixture over the arm's runs; between decisions a run keeps its last one."""
    runs = [(run, rows) for run in arm.counted if (rows := [r for r in run.rows("mixer") if r.get("mixture")])]
    if not runs:
        return None
    names = sorted({name for _, rows in runs for row in rows for name in row["mixture"]})
    start = max(rows[0]["step"] for _, rows in runs)
    last = max((run.number("steps") for run, _ in runs if math.isfinite(run.number("steps"))), default=start)
    steps = np.array(
        sorted({start, last} | {r["step"] for _, rows in runs for r in rows if r["step"] >= start})
    )  # (P,)
    held = np.stack([_held(rows, names, steps) for _, rows in runs]).mean(axis=0)  # (P, D)
    members = [run for run, _ in runs]
    return Mixture(
        strategy=str(runs[0][1][0].get("strategy", "")),
        steps=steps.astype(float),
        decided={name: held[:, i] for i, name in enumerate(names)},
        natural=mean_shares(members, "mixture", "natural"),
        realised=mean_shares(members, "mixture", "realised"),
        seeds=len(runs),
    )


def _held(rows: Sequence[Mapping[str, Any]], names: Sequence[str], steps: Array) -> Array:
    table = np.array([[float(row["mixture"].get(name) or 0.0) for name in names] for row in rows])  # (rows, D)
    at = np.searchsorted(np.array([row["step"] for row in rows]), steps, side="right") - 1  # (P,)
    return table[np.maximum(at, 0)]


def mean_shares(runs: Sequence[Run], *path: str) -> dict[str, float]:
    """The mean over runs of a table of shares in the summary; a domain that a run lacks counts as 0 there."""
    tables = [table for run in runs if (table := run.part(*path))]
    names = sorted({name for table in tables for name in table})
    return {name: sum(float(table.get(name) or 0.0) for table in tables) / len(tables) for name in names}


def order_of(arm: Arm) -> Order | None:
    """The first order that each run decided, averaged part by part."""
    decided = [rows for run in arm.counted if (rows := [r for r in run.rows("orderer") if r.get("groups")])]
    if not decided:
        return None
    first = [rows[0] for rows in decided]
    return Order(
        strategy=str(first[0].get("strategy", "")),
        groups=tuple(
            _sequence(name, [r["groups"][name] for r in first if name in r["groups"]]) for name in _names(first)
        ),
        decisions=max(len(rows) for rows in decided),
        seeds=len(decided),
    )


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({name for row in rows for name in row["groups"]})


def _sequence(name: str, groups: Sequence[Mapping[str, Any]]) -> OrderedGroup:
    scored = [np.array(g["scores"], dtype=float) for g in groups if g.get("scores")]  # each (P,)
    shared = [g["domains"] for g in groups if g.get("domains")]
    domains = sorted({d for parts in shared for part in parts for d in part})
    length = min((len(parts) for parts in shared), default=0)
    shares = {
        d: np.array([[float(part.get(d) or 0.0) for part in parts[:length]] for parts in shared]).mean(axis=0)
        for d in domains
    }
    same_length = [s for s in scored if len(s) == len(scored[0])]
    return OrderedGroup(name=name, scores=np.mean(same_length, axis=0) if same_length else None, domains=shares)


def selection_of(arm: Arm) -> Selection | None:
    """The last selection of each run, averaged."""
    last = [rows[-1] for run in arm.counted if (rows := [r for r in run.rows("selector") if r.get("of")])]
    if not last:
        return None
    domains: dict[str, list[float]] = {}
    signals: dict[str, list[tuple[float, float]]] = {}
    for row in last:
        for name, counts in (row.get("domains") or {}).items():
            if counts.get("of"):
                domains.setdefault(name, []).append(counts["kept"] / counts["of"])
        for name, means in (row.get("signal") or {}).items():
            pair = (means.get("kept_mean"), means.get("all_mean"))
            if all(isinstance(value, int | float) for value in pair):
                signals.setdefault(name, []).append(pair)
    return Selection(
        strategy=str(last[0].get("strategy", "")),
        kept=float(np.mean([row["kept"] for row in last])),
        of=float(np.mean([row["of"] for row in last])),
        domains={name: float(np.mean(values)) for name, values in sorted(domains.items())},
        signals={name: tuple(np.mean(values, axis=0).tolist()) for name, values in sorted(signals.items())},
        seeds=len(last),
    )


def weights_of(arm: Arm) -> Weights | None:
    """The effective sample size over the steps that all runs recorded, and the first run's last histogram."""
    runs = [rows for run in arm.counted if (rows := _weighings(run))]
    if not runs:
        return None
    steps = np.array(sorted(set.intersection(*({row["step"] for row in rows} for rows in runs))), dtype=float)  # (P,)
    if not len(steps):
        return None
    sizes = np.stack(
        [np.interp(steps, [r["step"] for r in rows], [r["effective_sample_size"] for r in rows]) for rows in runs]
    )  # (S, P)
    histogram: Mapping[str, Any] = next((row["histogram"] for row in reversed(runs[0]) if row.get("histogram")), {})
    counts = np.array(histogram.get("counts") or [], dtype=float)
    return Weights(
        strategy=str(runs[0][0].get("strategy", "")),
        steps=steps,
        mean=sizes.mean(axis=0),
        low=sizes.min(axis=0),
        high=sizes.max(axis=0),
        edges=np.array(histogram.get("edges") or [], dtype=float),
        shares=counts / counts.sum() if counts.sum() else counts,
        seeds=len(runs),
    )


def _weighings(run: Run) -> list[Mapping[str, Any]]:
    return [row for row in run.rows("weighter") if isinstance(row.get("effective_sample_size"), int | float)]


def warnings_of(runs: Sequence[Run]) -> dict[str, list[tuple[Run, float | None]]]:
    """Every warning text, from records and summaries, with the runs (and the first step) that gave it."""
    found: dict[str, list[tuple[Run, float | None]]] = {}
    for run in runs:
        texts: dict[str, float | None] = {}
        for row in run.rows("warning"):
            texts.setdefault(str(row.get("text", "")), row.get("step"))
        for text in run.summary.get("warnings") or ():
            texts.setdefault(str(text), None)
        for text, step in texts.items():
            found.setdefault(text, []).append((run, step))
    return found
