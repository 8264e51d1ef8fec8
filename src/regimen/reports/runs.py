"""Run folders as frozen values: found on disk, read leniently, with a note on whatever could not be read."""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regimen.core.errors import ConfigError
from regimen.reports.settings import read_settings

FORMAT = 1
"""The `format` of summary.json that this reader knows."""

MARKS = ("summary.json", "metrics.jsonl", "record.jsonl", "config.yaml")
"""A folder with one of these files is a run; folders inside it are its stages, not runs of their own."""

UNKNOWN = "(unknown)"


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One run folder.

    `status` is the run's own, or `unreadable` when its summary is missing or broken. `settings` is the flat
    configuration (`optimizer.lr` -> value), empty without a config.yaml. `notes` say what could not be read.
    """

    folder: Path
    status: str
    reason: str | None
    method: str
    model: str
    dataset: str
    seed: int | None
    summary: Mapping[str, Any]
    curve: tuple[Mapping[str, Any], ...]
    record: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, str]
    notes: tuple[str, ...]

    def number(self, *path: str) -> float:
        """The number at `path` of the summary, NaN where there is none."""
        return as_number(_at(self.summary, path))

    def text(self, *path: str) -> str:
        """The text at `path` of the summary, empty where there is none."""
        value = _at(self.summary, path)
        return "" if value is None else str(value)

    def part(self, *path: str) -> Mapping[str, Any]:
        """The table at `path` of the summary, empty where there is none."""
        value = _at(self.summary, path)
        return value if isinstance(value, Mapping) else {}

    def rows(self, kind: str) -> list[Mapping[str, Any]]:
        """The record's rows of one kind, in the order written."""
        return [row for row in self.record if row.get("kind") == kind]

    def score(self, column: str, measure: str) -> float:
        """The final evaluation of `micro`, `macro` or a domain, NaN where there is none."""
        if column in ("micro", "macro"):
            return self.number("evaluation", column, measure)
        return self.number("evaluation", "domains", column, measure)


def find_runs(paths: Sequence[Path | str]) -> list[Path]:
    """The run folders that `paths` name or contain, sorted, each once.

    Raises:
        ConfigError: a path that does not exist, or no run below any of them.
    """
    found: dict[Path, None] = {}
    for path in paths:
        for folder in _expand(path):
            found.update(dict.fromkeys(_runs_below(folder)))
    if not found:
        raise ConfigError(
            "there is no run to report on: no folder below holds a summary.json",
            got=", ".join(map(str, paths)) or "no folder at all",
            do="regimen train ..., then give its output folder, or a folder above several of them",
        )
    return sorted(found)


def common_folder(paths: Sequence[Path | str]) -> Path:
    """The folder that holds everything `paths` name: the folder itself when they name one."""
    return Path(os.path.commonpath([folder for path in paths for folder in _expand(path)]))


def _expand(path: Path | str) -> list[Path]:
    if Path(path).exists():
        matches = [Path(path)]
    else:
        matches = [Path(match) for match in sorted(glob.glob(os.path.expanduser(str(path)), recursive=True))]
    if not matches:
        raise ConfigError(
            "this folder of runs does not exist",
            got=path,
            do="give a run folder, a sweep folder or a glob in quotes, such as 'outputs/*-seed?'",
        )
    return [(match if match.is_dir() else match.parent).resolve() for match in matches]


def _runs_below(top: Path) -> list[Path]:
    runs = []
    for folder, below, files in os.walk(top):
        if any(mark in files for mark in MARKS):
            runs.append(Path(folder))
            below.clear()
        else:
            below[:] = sorted(name for name in below if not name.startswith("."))
    return runs


def read_run(folder: Path) -> Run:
    """One run folder; never raises for what a killed or running process may have left in it."""
    summary, problem = _read_summary(folder / "summary.json")
    rows, torn = _read_lines(folder / "metrics.jsonl")
    record, torn_record = _read_lines(folder / "record.jsonl")
    settings, unreadable = read_settings(folder)
    status = "unreadable" if problem else str(summary.get("status") or "unreadable")
    reason = problem or summary.get("reason")
    if reason is None and status != "finished":
        last = max((as_number(row.get("step")) for row in rows), default=math.nan)
        reason = f"it had logged step {last:.0f}" if math.isfinite(last) else "it had logged no step"
    seed = summary.get("seed", settings.get("seed"))
    return Run(
        folder=folder,
        status=status,
        reason=None if reason is None else str(reason),
        method=str(summary.get("method") or settings.get("method") or UNKNOWN),
        model=str(summary.get("model") or UNKNOWN),
        dataset=str(summary.get("dataset") or UNKNOWN),
        seed=int(as_number(seed)) if math.isfinite(as_number(seed)) else None,
        summary=summary,
        curve=tuple(row for row in rows if row.get("split") == "eval"),
        record=tuple(record),
        settings=settings,
        notes=tuple(note for note in (torn, torn_record, unreadable) if note),
    )


def _read_summary(path: Path) -> tuple[dict[str, Any], str | None]:
    if not path.is_file():
        return {}, "it has no summary.json: it was stopped before it could write one"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return {}, f"its summary.json cannot be read ({type(error).__name__})"
    if not isinstance(summary, dict) or "method" not in summary:
        return {}, "its summary.json names no method"
    if summary.get("format") != FORMAT:
        return summary, f"its summary.json has format {summary.get('format')}, this version reads {FORMAT}"
    return summary, None


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The rows of a JSON lines file, and a note when lines are missing or cannot be parsed."""
    if not path.is_file():
        return [], f"it has no {path.name}"
    rows, broken = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            broken += 1
    lines = "line that is" if broken == 1 else "lines that are"
    return rows, f"{path.name} has {broken} {lines} not JSON, left out" if broken else None


def _at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def as_number(value: Any) -> float:
    """The number that a file holds, also as text; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan
