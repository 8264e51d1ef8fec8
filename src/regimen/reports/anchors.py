"""What stands beside every method: the model before training, and a random subset for methods that select rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regimen.evaluation.statistics import Interval, mean_interval
from regimen.reports.decisions import selection_of
from regimen.reports.groups import Arm
from regimen.reports.runs import Run, as_number

SAME = 1e-6
"""Scores this close (relative) are those of the same weights: kernels of a GPU need not repeat to the last bit."""

RANDOM = "random"
"""The name of the selector that chooses by chance."""

AMOUNTS = ("ratio", "count", "token_ratio")


@dataclass(frozen=True, kw_only=True, eq=False)
class ZeroShot:
    """The scores at step 0 by column, over `seeds`; `shared`: all of them begin with the same, pretrained weights.

    `strays` are the arms with a run that does not begin with the weights that others of its seed begin with.
    """

    scores: Mapping[str, Interval]
    seeds: tuple[int, ...]
    shared: bool
    strays: tuple[str, ...]


def zero_shot(arms: Sequence[Arm], *, columns: Sequence[str], measure: str, column: str) -> ZeroShot | None:
    """The metric before training; None when no run was evaluated at step 0.

    Runs of one seed begin with the same weights, so the first arm that has the seed speaks for it.

    Args:
        arms: the baseline first; their evaluations measure the same.
        columns: of the scores.
        measure: of the scores.
        column: the one that tells whether runs begin with the same weights.
    """
    first: dict[int, Run] = {}
    strays: dict[str, None] = {}
    for arm in arms:
        for seed, run in arm.by_seed().items():
            score = before_training(run, column, measure)
            if not math.isfinite(score):
                continue
            known = before_training(first.setdefault(seed, run), column, measure)
            if not math.isclose(score, known, rel_tol=SAME):
                strays[arm.label] = None
    if not first:
        return None
    shared = len(first) > 1 and _alike([before_training(run, column, measure) for run in first.values()])
    runs = list(first.values())[:1] if shared else list(first.values())
    values = {c: [v for run in runs if math.isfinite(v := before_training(run, c, measure))] for c in columns}
    scores = {c: mean_interval(of) for c, of in values.items() if of}
    return ZeroShot(scores=scores, seeds=tuple(sorted(first)), shared=shared, strays=tuple(strays))


def before_training(run: Run, column: str, measure: str) -> float:
    """The run's score at step 0, NaN where it was not evaluated there."""
    for row in run.curve:
        if row.get("step") == 0:
            return as_number(row.get(f"{column}/{measure}"))
    return math.nan


def _alike(values: Sequence[float]) -> bool:
    return all(math.isclose(value, values[0], rel_tol=SAME) for value in values)


# ------------------------------------------------------------------------------------------------ random subsets


@dataclass(frozen=True, kw_only=True, eq=False)
class Chance:
    """Arms that select rows, by the arm that selects as many by chance; `alone` are those without one beside them."""

    pairs: tuple[tuple[Arm, tuple[Arm, ...]], ...]
    alone: tuple[Arm, ...]


def by_chance(arms: Sequence[Arm]) -> Chance:
    """Of several random arms beside a selector: the one with the same setting of the amount, then with as many rows."""
    counted = [arm for arm in arms if arm.counted]
    random = [arm for arm in counted if set(selectors_of(arm)) == {RANDOM}]
    pairs: dict[int, tuple[Arm, list[Arm]]] = {}
    alone = []
    for arm in counted:
        if not selectors_of(arm) or arm in random:
            continue
        beside = [other for other in random if company_of(other) == company_of(arm)]
        if not beside:
            alone.append(arm)
            continue
        chosen = min(beside, key=lambda other: _distance(other, arm))
        pairs.setdefault(id(chosen), (chosen, []))[1].append(arm)
    return Chance(pairs=tuple((chosen, tuple(of)) for chosen, of in pairs.values()), alone=tuple(alone))


def selectors_of(arm: Arm) -> list[str]:
    """The names of the arm's selectors."""
    return [name for name, kind in _kinds(arm).items() if kind == "selector"]


def company_of(arm: Arm) -> list[str]:
    """The names of the arm's strategies that select no rows, sorted."""
    return sorted(name for name, kind in _kinds(arm).items() if kind != "selector")


def amount_of(arm: Arm) -> dict[str, str]:
    """How much the arm's only selector keeps, as it was set: `{"ratio": "0.5"}`; empty where that is not known."""
    names = selectors_of(arm)
    if len(names) != 1:
        return {}
    settings = arm.counted[0].settings
    found = {key: settings.get(f"strategies.{names[0]}.{key}", "null") for key in AMOUNTS}
    return {key: value for key, value in found.items() if value != "null"}


def _kinds(arm: Arm) -> dict[str, str]:
    table = arm.counted[0].part("strategies") if arm.counted else {}
    return {name: str(about.get("kind")) for name, about in table.items() if isinstance(about, Mapping)}


def _distance(random: Arm, arm: Arm) -> tuple[bool, float, int]:
    mine, theirs = selection_of(arm), selection_of(random)
    rows = abs(mine.kept - theirs.kept) if mine and theirs else 0.0
    return amount_of(random) != amount_of(arm), rows, -len(set(random.seeds) & set(arm.seeds))
