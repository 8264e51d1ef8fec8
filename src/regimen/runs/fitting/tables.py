"""Tables for mixing laws, read from CSV files in RegMix's layout or from finished run folders.

A CSV file has a header; its first column names the row, the others are the shares of one domain each, or the losses on
one target each. Column names lose what all of them begin and end with: `train_the_pile_arxiv` is `arxiv`, and
`metric/the_pile_arxiv_val_loss` too, so that domains and their losses have one name.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from regimen.core.errors import ConfigError
from regimen.core.files import read_json_lines
from regimen.mixing.laws.table import Array, LawTable

UNITS = ("loss", "bits_per_byte")
_SEPARATORS = "-_/. "  # first the hyphen: they become a character class


@dataclass(frozen=True, kw_only=True)
class Tables:
    """A table and what its columns were called: full names by short names, of `mixture` and of `loss` columns."""

    table: LawTable
    columns: Mapping[str, Mapping[str, str]]
    notes: tuple[str, ...] = ()

    def short(self, name: str) -> str:
        """The short name of a column's full or short name."""
        for columns in self.columns.values():
            for short, full in columns.items():
                if full == name:
                    return short
        return name


def read_tables(mixtures: Path, losses: Path, *, like: Tables | None = None) -> Tables:
    """The table of a file of mixtures and a file of losses, rows matched by their first column.

    like: name the columns as in this table.

    Raises:
        ConfigError: a file or cell that cannot be read, rows that are in one file alone.
    """
    names, shares, keys = read_csv(mixtures)
    targets, values, of = read_csv(losses)
    alone = sorted(set(keys) ^ set(of))
    if alone or len(set(keys)) < len(keys) or len(keys) != len(of):
        raise ConfigError(
            "the rows of the mixtures and of the losses do not match",
            got=f"{len(keys)} rows in {mixtures}, {len(of)} in {losses}; without a partner: "
            + (", ".join(alone[:8]) or "none, but a row's name comes twice"),
            do="give both files the same first column, each name once",
        )
    place = {key: i for i, key in enumerate(of)}
    domains = short_names(names)
    aims = _target_names(targets, domains)
    if like:  # a column of the other table keeps its name, whatever columns stand beside it here
        domains = [_renamed(like, "mixture", full, short) for full, short in zip(names, domains, strict=True)]
        aims = [_renamed(like, "loss", full, short) for full, short in zip(targets, aims, strict=True)]
    table = LawTable(
        domains=domains,
        mixtures=shares,
        targets=aims,
        losses=values[[place[key] for key in keys]],
        runs=tuple(keys),
    )
    columns = {"mixture": dict(zip(domains, names, strict=True)), "loss": dict(zip(aims, targets, strict=True))}
    return Tables(table=table, columns=columns)


def _renamed(like: Tables, kind: str, full: str, short: str) -> str:
    return next((s for s, f in like.columns[kind].items() if f == full), short)


def read_csv(path: Path) -> tuple[list[str], Array, list[str]]:
    """Column names (c), numbers (n, c) and row names (n) of a CSV file. Raises ConfigError naming file, row, column."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read the table {path}", got=error, do="name a CSV file") from error
    if len(rows) < 2 or len(rows[0]) < 2:
        raise ConfigError(
            f"{path} is no table", got=f"{len(rows)} lines", allowed="a header, a column of row names, then numbers"
        )
    header = [name.strip() for name in rows[0]]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ConfigError(f"{path} has a column twice", got=", ".join(twice), do="keep one of them")
    values = np.empty((len(rows) - 1, len(header) - 1))
    for i, row in enumerate(rows[1:]):
        if len(row) != len(header):
            raise ConfigError(f"{path}: row {row[0]!r} has {len(row)} cells", allowed=f"{len(header)}, as the header")
        for j, cell in enumerate(row[1:]):
            values[i, j] = _number(cell, f"{path}: row {row[0]!r}, column {header[j + 1]!r}")
    return header[1:], values, [row[0].strip() for row in rows[1:]]


def _number(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(
            f"{where} is no finite number",
            got=repr(cell),
            do="drop the row from both files (a run that diverged tells the law nothing), or correct the cell",
        )
    return value


def short_names(names: Sequence[str]) -> list[str]:
    """The names without the words that all of them begin and end with; as they are where nothing would be left."""
    if len(names) < 2:
        return list(names)
    prefix = _common(names)
    suffix = _common([name[::-1] for name in names])
    cut = [name[len(prefix) : len(name) - len(suffix)] for name in names]
    return cut if all(cut) and len(set(cut)) == len(cut) else list(names)


def _common(names: Sequence[str]) -> str:
    """What all names begin with, up to and with a separator."""
    low, high = min(names), max(names)
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    while length and low[length - 1] not in _SEPARATORS:
        length -= 1
    return low[:length]


def _target_names(targets: Sequence[str], domains: Sequence[str]) -> list[str]:
    """Short names of loss columns; a column that holds one domain's name between separators is that domain's."""
    short = short_names(targets)
    found = []
    for name, cut in zip(targets, short, strict=True):
        held = [d for d in domains if re.search(rf"(^|[{_SEPARATORS}]){re.escape(d)}($|[{_SEPARATORS}])", name)]
        longest = max(held, key=len, default=cut)
        found.append(cut if cut in domains else longest)
    return found if len(set(found)) == len(found) else short


# ---- run folders -----------------------------------------------------------------------------------------------


def run_folders(folders: Iterable[Path]) -> list[Path]:
    """The finished runs among folders and inside them, sorted. Raises ConfigError where there are none."""
    found: dict[Path, str] = {}
    for folder in folders:
        for path in [folder / "summary.json"] if (folder / "summary.json").is_file() else folder.rglob("summary.json"):
            found[path.parent] = str(json.loads(path.read_text(encoding="utf-8")).get("status"))
    finished = sorted(path for path, status in found.items() if status == "finished")
    if not finished:
        raise ConfigError(
            "there are no finished runs to fit a law to",
            got=", ".join(map(str, folders)) + f": {len(found)} runs, none finished",
            do="name a sweep folder: runs=outputs/SWEEP",
        )
    return finished


def table_of_runs(runs: Sequence[Path], *, unit: str = "loss", sizes: bool = False) -> Tables:
    """One row per run and evaluation after the first step: the mixture that the run decided on, losses by domain.

    sizes: runs may have models of several sizes, which the table then tells.

    Raises:
        ConfigError: runs with other domains, targets or model sizes than the first.
    """
    if unit not in UNITS:
        raise ConfigError("no such unit of losses", got=f"unit={unit}", allowed=", ".join(UNITS))
    first = summary_of(runs[0])
    natural: dict[str, float] = first["mixture"]["natural"]
    targets: tuple[str, ...] = ()
    rows: list[tuple[list[float], list[float], float, str, float]] = []
    notes: list[str] = []
    for run in runs:
        told = summary_of(run)
        _same(run, "domains", sorted(told["mixture"]["natural"]), sorted(natural))
        if not sizes:
            _same(run, "parameters", told.get("parameters"), first.get("parameters"))
        mixture = mixture_of(told)
        notes += _drift(run, told, mixture)
        for row in evaluations(run, unit):
            targets = targets or tuple(row.losses)
            _same(run, "validation domains", sorted(row.losses), sorted(targets))
            if row.step > 0:
                losses = [row.losses[name] for name in targets]
                size = float(told.get("non_embedding_parameters", 0))
                rows.append(([mixture[name] for name in natural], losses, row.step, run.name, size))
    if not rows:
        raise ConfigError("the runs have no evaluation after their first step", do="set evaluation.at=[1]")
    table = LawTable(
        domains=tuple(natural),
        mixtures=np.array([row[0] for row in rows]),
        targets=targets,
        losses=np.array([row[1] for row in rows]),
        natural=np.array(list(natural.values())),
        steps=np.array([row[2] for row in rows]),
        sizes=np.array([row[4] for row in rows]) if sizes else None,
        runs=tuple(row[3] for row in rows),
    )
    return Tables(table=table, columns={}, notes=tuple(notes))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Losses by validation domain at one step."""

    step: float
    losses: dict[str, float]


def evaluations(run: Path, unit: str = "loss") -> list[Evaluation]:
    """The evaluations of a run, by step. Raises ConfigError where it has none, or a loss that is no number."""
    found = []
    for row in read_json_lines(run / "metrics.jsonl"):
        if row.get("split") != "eval":
            continue
        losses = {key.removesuffix(f"/{unit}"): value for key, value in row.items() if key.endswith(f"/{unit}")}
        losses = {name: value for name, value in losses.items() if name not in ("micro", "macro")}
        bad = [name for name, value in losses.items() if value is None]
        if bad or not losses:
            raise ConfigError(
                f"run {run.name} has no {unit} at step {row['step']}",
                got=", ".join(bad) or "no validation domains",
                do="leave the run out, or unit=loss",
            )
        found.append(Evaluation(step=float(row["step"]), losses=losses))
    if not found:
        raise ConfigError(f"run {run.name} has no evaluations", got=run / "metrics.jsonl", do="set evaluation.at=[0,1]")
    return sorted(found, key=lambda evaluation: evaluation.step)


def summary_of(run: Path) -> dict[str, Any]:
    """The summary of a finished run. Raises ConfigError where there is none."""
    path = run / "summary.json"
    if not path.is_file():
        raise ConfigError("not a run folder", got=run, do="name a folder with summary.json: ls outputs")
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if told.get("status") != "finished":
        raise ConfigError(f"run {run.name} is not finished", got=told.get("status"), do=f"regimen train resume={run}")
    return told


def mixture_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """The shares that a run decided on; the natural ones where nothing decided."""
    mixture = summary["mixture"]
    return dict(mixture["decided"] or mixture["natural"])


def _drift(run: Path, told: Mapping[str, Any], mixture: Mapping[str, float]) -> list[str]:
    served = told["mixture"].get("realised") or {}
    off = max((abs(served[name] - mixture[name]) for name in mixture if name in served), default=0.0)
    return [f"{run.name}: served shares are up to {off:.3f} off the decided ones"] if off > 0.05 else []


def _same(run: Path, what: str, got: object, wanted: object) -> None:
    if got != wanted:
        raise ConfigError(
            f"run {run.name} has other {what} than the first run",
            got=got,
            allowed=wanted,
            do="fit one law to runs that differ in their mixture alone",
        )


def with_natural(tables: Tables, natural: Mapping[str, float] | None) -> Tables:
    """The tables with natural shares by full or short domain name. Raises ConfigError for a domain without one."""
    if natural is None:
        return tables
    named = {tables.short(name): value for name, value in natural.items()}
    missing = [name for name in tables.table.domains if name not in named]
    if missing:
        raise ConfigError(
            "the natural shares do not name every domain",
            got=f"missing: {', '.join(missing)}",
            allowed=", ".join(tables.table.domains),
        )
    values = np.array([named[name] for name in tables.table.domains], dtype=np.float64)
    return replace(tables, table=replace(tables.table, natural=values))
