"""Fit a mixing law to runs or tables, test it on rows it has not seen, propose a mixture: `fit.json` and `fit.png`."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regimen.core.errors import ConfigError
from regimen.core.files import write_json
from regimen.mixing.laws import nested
from regimen.mixing.laws.bimix import FittedBiMix
from regimen.mixing.laws.constraints import Constraints
from regimen.mixing.laws.law import Fitted, Law
from regimen.mixing.laws.mixmin import MixMin
from regimen.mixing.laws.propose import Simulation, propose
from regimen.mixing.laws.skill_graph import LearnSkillGraph
from regimen.mixing.laws.table import Array, LawTable, Target, target_weights
from regimen.runs.fitting.figure import draw
from regimen.runs.fitting.laws import name_of
from regimen.runs.fitting.sources import fit_graph, fit_sources
from regimen.runs.fitting.tables import run_folders, table_of_runs

FORMAT = 1
FILE = "fit.json"
ONE_BY_ONE = 10  # with more mixtures than this, five folds are held out in turn

Points = tuple[Array, Array]
"""Observed and predicted objective (n,) of rows."""


def fit_runs(
    law: Law | MixMin | LearnSkillGraph,
    runs: Sequence[Path],
    out: Path,
    *,
    target: Target = "mean",
    unit: str = "loss",
    constraints: Constraints | None = None,
    simulation: Simulation | None = None,
    seed: int = 0,
    at_step: float | None = None,
    at_size: float | None = None,
) -> dict[str, Any]:
    """Fit a law to finished run folders (or folders of them) and write `fit.json` and `fit.png` to folder `out`.

    Returns the content of fit.json. MixMin and the skill graph need one run per domain, trained on it alone.
    at_step: propose for a run of so many steps: BiMix is a law of steps itself; for the others the losses of each run
        are extrapolated to it by a power law first, as Data Mixing Laws does (nested laws).
    at_size: in the same way, for so many parameters without embeddings, from runs of three model sizes or more.

    Raises:
        ConfigError: runs that do not compare, too few of them, an unknown target, constraints that nothing obeys.
    """
    folders = run_folders(runs)
    if isinstance(law, MixMin):
        return fit_sources(law, folders, out, target=target, constraints=constraints or Constraints(), seed=seed)
    if isinstance(law, LearnSkillGraph):
        return fit_graph(folders, out, unit=unit)
    tables = table_of_runs(folders, unit=unit, sizes=bool(at_size))
    table, told = _extrapolated(law, tables.table, at_step, at_size)
    return fit_table(
        law, table, out, target=target, unit=unit, constraints=constraints, simulation=simulation, seed=seed,
        notes=[*tables.notes, *told], at_step=at_step,
    )  # fmt: skip


def fit_table(
    law: Law,
    table: LawTable,
    out: Path,
    *,
    test: LawTable | None = None,
    target: Target = "mean",
    unit: str = "loss",
    constraints: Constraints | None = None,
    simulation: Simulation | None = None,
    seed: int = 0,
    notes: Sequence[str] = (),
    at_step: float | None = None,
) -> dict[str, Any]:
    """Fit a law to a table, test it on `test` or held-out mixtures, and write both files. Returns fit.json's content.

    seed: of the folds, and of the simulation where none is given. at_step: that a law of steps proposes for.
    """
    constraints = constraints or Constraints()
    constraints.bounds(table.domains)  # refuse what nothing obeys before the fit
    if test is not None:
        test = table.only(tuple(target_weights(table.targets, target))).same_domains(test)
    began = time.perf_counter()
    fitted = law.fit(table, target)
    rows = final(table)
    seen, inside = compare(fitted, rows)
    more = [*notes, *fitted.notes]
    held, outside = _held_out(law, fitted, table, test, target, seed, more)
    if at_step and isinstance(fitted, FittedBiMix):
        fitted = fitted.at(at_step)
    mixture = propose(fitted, constraints, simulation or Simulation(seed=seed))  # (K,)
    content = {
        "format": FORMAT,
        "law": name_of(law),
        "settings": dataclasses.asdict(law),
        "target": dict(zip(fitted.targets, fitted.weights.tolist(), strict=True)),
        "unit": unit,
        **inside,
        "held_out": held,
        "parameters": fitted.parameters,
        **_proposal(fitted, mixture, constraints),
        "best_row": {"run": rows.runs[int(seen[0].argmin())], "observed": float(seen[0].min())},
        "notes": more,
        "rows": len(table if law.uses_steps else rows),
        "judged_rows": len(rows),
        "seconds": round(time.perf_counter() - began, 3),
    }
    _write(out, content, seen, outside)
    return content


def _extrapolated(
    law: Law, table: LawTable, at_step: float | None, at_size: float | None
) -> tuple[LawTable, list[str]]:
    """The table with the losses at the step and size asked for, where the law itself knows none; and what to note."""
    told = []
    if at_step and not law.uses_steps:
        table = nested.at_step(table, at_step)
        told.append(f"losses are extrapolated to step {at_step:g} by a power law of each run")
    if at_size:
        table = nested.at_size(table, at_size)
        told.append(f"losses are extrapolated to {at_size:g} parameters by power laws of model size with one exponent")
    return table, told


def _write(out: Path, content: dict[str, Any], seen: Points, outside: Points | None) -> None:
    """Write both files, each atomically."""
    points = [("fitted rows", *(part.tolist() for part in seen))]
    if outside is not None:
        points.append((content["held_out"]["kind"], *(part.tolist() for part in outside)))
    write_json(out / FILE, content)
    draw(out / "fit.png", points, content["mixture"], content["natural"])


def _proposal(fitted: Fitted, mixture: Array, constraints: Constraints) -> dict[str, Any]:
    """The proposed mixture (K,) beside the natural one, and the objective predicted for both."""
    natural = fitted.natural
    return {
        "constraints": dataclasses.asdict(constraints),
        "mixture": dict(zip(fitted.domains, mixture.tolist(), strict=True)),
        "natural": None if natural is None else dict(zip(fitted.domains, natural.tolist(), strict=True)),
        "predicted": {
            "proposed": float(fitted.predict(mixture)[0]),
            "natural": None if natural is None else float(fitted.predict(natural)[0]),
        },
    }


def read_fit(out: Path) -> dict[str, Any]:
    """The content of a folder's fit.json. Raises ConfigError where there is none."""
    path = out / FILE
    if not path.is_file():
        raise ConfigError("no law was fitted here", got=path, do="regimen fit law=... run_dir=" + str(out))
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def final(table: LawTable) -> LawTable:
    """The rows that a fit is judged by: the last step's."""
    return table if table.steps is None else table.rows(table.steps == table.steps.max())


def compare(fitted: Fitted, table: LawTable) -> tuple[Points, dict[str, float | None]]:
    """Observed and predicted objective (n,) of a table, and how well they agree."""
    observed = table.only(fitted.targets).losses @ fitted.weights  # (n,)
    predicted = fitted.predict(table.mixtures)  # (n,)
    return (observed, predicted), quality(predicted, observed)


def quality(predicted: Array, observed: Array) -> dict[str, float | None]:
    """Rank correlation, mean absolute and squared error, and R^2; None where one row or equal numbers say nothing."""
    from scipy.stats import rankdata  # type: ignore[import-untyped]

    error = predicted - observed
    spread = float(((observed - observed.mean()) ** 2).sum())
    ranks = [rankdata(part) for part in (predicted, observed)]
    tied = len(observed) < 2 or np.ptp(ranks[0]) == 0 or np.ptp(ranks[1]) == 0
    return {
        "spearman": None if tied else float(np.corrcoef(*ranks)[0, 1]),
        "mae": float(np.abs(error).mean()),
        "mse": float((error**2).mean()),
        "r2": 1 - float((error**2).sum()) / spread if spread > 0 else None,
    }


def _held_out(
    law: Law, fitted: Fitted, table: LawTable, test: LawTable | None, target: Target, seed: int, notes: list[str]
) -> tuple[dict[str, Any] | None, Points | None]:
    """Quality on rows that the law has not seen, with their observed and predicted objective."""
    if test is not None:
        points, agreement = compare(fitted, final(test))
        return {"kind": "test table", "rows": len(points[0]), **agreement}, points
    try:
        kind, points = cross_validated(law, table, target, seed)
    except ConfigError as error:
        notes.append(f"too few rows to hold any out: {error.what}")
        return None, None
    return {"kind": kind, "rows": len(points[0]), **quality(points[1], points[0])}, points


def cross_validated(law: Law, table: LawTable, target: Target, seed: int) -> tuple[str, Points]:
    """Observed and predicted objective of each last-step row under a law fitted without any run of its mixture."""
    groups: dict[tuple[float, ...], int] = {}
    group = np.array([groups.setdefault(tuple(row), len(groups)) for row in np.round(table.mixtures, 9).tolist()])
    if len(groups) < 2:
        raise ConfigError("all rows have one mixture")
    folds = len(groups) if len(groups) <= ONE_BY_ONE else 5
    fold = (np.random.default_rng(seed).permutation(len(groups)) % folds)[group]  # (n,)
    weights = target_weights(table.targets, target)
    observed, predicted = [], []
    for k in range(folds):
        fitted = law.fit(table.rows(fold != k), weights)
        left = table.rows(fold == k)
        if table.steps is not None:
            left = left.rows(left.steps == table.steps.max())
        if len(left):
            (seen, guessed), _ = compare(fitted, left)
            observed.append(seen)
            predicted.append(guessed)
    kind = "leave one mixture out" if folds == len(groups) else f"{folds} folds of mixtures"
    return kind, (np.concatenate(observed), np.concatenate(predicted))
