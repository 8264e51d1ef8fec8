"""The runs as a tidy CSV: one row per run, every number of its summary, and whether it is counted."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regimen.reports.anchors import before_training
from regimen.reports.compare import Comparison
from regimen.reports.groups import Arm, Section
from regimen.reports.runs import Run

LEADING = (
    *("folder", "name", "label", "method", "model", "dataset", "seed", "status", "counted", "reason", "difference"),
    *("difference_to_random", "at_equal_tokens", "zero_shot"),
)
SKIPPED = ("format", "strategies", "warnings", *LEADING)


def render_csv(
    runs: Sequence[Run], sections: Sequence[Section], comparisons: Sequence[Comparison], *, base: Path
) -> str:
    """The file; `difference` is the run's metric minus that of the baseline's run of the same seed.

    `difference_to_random` is the same against a random subset, `at_equal_tokens` the metric at the tokens that every
    run reached, `zero_shot` that of the run before training; empty where there is none.
    """
    places = _places(sections)
    differences = _differences(comparisons)
    chance = _differences([beside for comparison in comparisons for beside in comparison.chance])
    matched, before = _matched(comparisons), _before(comparisons)
    rows = []
    for run in runs:
        label, reason = places.get(id(run), (run.method, run.reason or run.status))
        lead = (os.path.relpath(run.folder, base), run.text("name"), label, run.method, run.model, run.dataset)
        rest = (run.seed, run.status, not reason, reason)
        numbers = (found.get(id(run)) for found in (differences, chance, matched, before))
        summary = {key: value for key, value in run.summary.items() if key not in SKIPPED}
        rows.append({**dict(zip(LEADING, (*lead, *rest, *numbers), strict=True)), **_flat(summary)})
    columns = [*LEADING, *dict.fromkeys(key for row in rows for key in row if key not in LEADING)]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _text(value) for key, value in row.items()} for row in rows)
    return out.getvalue()


def _places(sections: Sequence[Section]) -> dict[int, tuple[str, str]]:
    places = {}
    for arm in (arm for section in sections for arm in section.arms):
        places.update({id(run): (arm.label, "") for run in arm.counted})
        places.update({id(run): (arm.label, reason) for run, reason in arm.others})
    return places


def _differences(comparisons: Sequence[Comparison]) -> dict[int, float]:
    differences = {}
    for comparison in comparisons:
        for result in comparison.results[1:]:
            found = result.differences.get(comparison.metric.column)
            if found:
                runs = Arm.by_seed(result.arm)
                differences.update({id(runs[s]): v for s, v in zip(found.seeds, found.values, strict=True)})
    return differences


def _matched(comparisons: Sequence[Comparison]) -> dict[int, float]:
    matched = {}
    for comparison in comparisons:
        for result in comparison.results:
            place, runs = comparison.at_equal_tokens(result), Arm.by_seed(result.arm)
            matched.update({id(runs[s]): value for s, value in place.values.items()} if place else {})
    return matched


def _before(comparisons: Sequence[Comparison]) -> dict[int, float]:
    before = {}
    for comparison in comparisons:
        column, measure = comparison.metric.column, comparison.metric.measure
        for run in (run for result in comparison.results for run in result.arm.counted):
            if math.isfinite(score := before_training(run, column, measure)):
                before[id(run)] = score
    return before


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "" if value is None else "nan"
    return value
