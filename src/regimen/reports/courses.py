"""Orders and curricula as they were served: score, forgetting and domains along training, from the records, over seeds.

Shapes: P lines of the record, one per 1% of training at most; S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regimen.reports.compare import Comparison
from regimen.reports.decision_figures import fold, pens_of, seeds_text, share_axis, shown_domains, staircase
from regimen.reports.drawing import INK, PAPER, Drawing, Pen, canvas, to_svg
from regimen.reports.groups import Arm

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Course:
    """Along the steps that end each part of training: score and lowest-decile loss (S, P), shares (P,) by domain.

    scores and lowest are None where no run tells them; seeds are averaged where they are drawn.
    """

    strategy: str
    steps: Array
    scores: Array | None
    lowest: Array | None
    domains: Mapping[str, Array]
    seeds: int


def course_of(arm: Arm) -> Course | None:
    """What the arm's runs served, at the steps that all of them tell of."""
    runs = [rows for run in arm.counted if (rows := [r for r in run.rows("course") if r.get("domains")])]
    if not runs:
        return None
    steps = sorted(set.intersection(*({row["step"] for row in rows} for rows in runs)))
    if not steps:
        return None
    by_step = [{row["step"]: row for row in rows} for rows in runs]
    names = sorted({name for rows in runs for row in rows for name in row["domains"]})
    return Course(
        strategy=str(runs[0][0].get("strategy", "")),
        steps=np.array(steps, dtype=float),
        scores=_table(by_step, steps, "score", "mean"),
        lowest=_table(by_step, steps, "lowest_decile", "loss"),
        domains={
            name: np.array([[float(rows[s]["domains"].get(name) or 0.0) for s in steps] for rows in by_step]).mean(0)
            for name in names
        },
        seeds=len(runs),
    )


def _table(runs: Sequence[Mapping[int, Any]], steps: Sequence[int], part: str, name: str) -> Array | None:
    """Values (S, P), NaN where a line tells none; None where no line does."""
    found = [[(rows[step].get(part) or {}).get(name) for step in steps] for rows in runs]
    table = np.array([[float("nan") if value is None else value for value in row] for row in found], dtype=float)
    return None if np.isnan(table).all() else table


def course_figures(comparison: Comparison, *, key: str) -> list[Drawing]:
    """A figure of every arm that ordered or paced rows."""
    shown = shown_domains(comparison)
    courses = [(result.arm.label, course_of(result.arm)) for result in comparison.results]
    return [_drawn(label, course, shown, f"{key}{i}c") for i, (label, course) in enumerate(courses) if course]


def _drawn(label: str, course: Course, shown: Sequence[str], key: str) -> Drawing:
    shares = fold(course.domains, shown)
    pens = pens_of(list(shares))
    curves = [("mean score", course.scores), ("loss, lowest 10%", course.lowest)]
    curves = [(name, table) for name, table in curves if table is not None]
    with canvas(1.3 + 1.15 * (len(curves) + 1), panels=[1.0] * (len(curves) + 1)) as (figure, axes):
        for panel, (name, table) in zip(axes, curves, strict=False):
            _curve(panel, course.steps, table, name)
        x, stairs = staircase(np.concatenate([[0.0], course.steps]), _from_zero(shares))
        colors = [pens[name].color for name in stairs]
        axes[-1].stackplot(x, *stairs.values(), colors=colors, edgecolor=PAPER, linewidth=0.4, alpha=0.9)
        share_axis(axes[-1], labelled=True)
        axes[-1].set_xlabel("step")
        for panel in axes:
            panel.set_xlim(0, course.steps[-1])
        told = " and ".join(name for name, _ in curves)
        alt = f"Course of {label}: {f'{told}, and ' if told else ''}the share of every domain along training."
        lowest = (
            " Loss: of a fixed sample of the rows whose scores were in the lowest 10% at first; where it rises after "
            "their time, they are forgotten."
        )
        return Drawing(
            title=f"{label}: course",
            svg=to_svg(figure, key=key, alt=alt),
            alt=alt,
            caption=f"What was served along training under {course.strategy}, in {len(course.steps)} parts: "
            f"{f'{told}, and ' if told else ''}the share of every domain.{lowest if course.lowest is not None else ''} "
            f"{seeds_text(course.seeds)}{' Bands are ranges over seeds.' if course.seeds > 1 and curves else ''}",
            legend=tuple(pens.items()),
            keys="area",
        )


def _curve(axes: Any, steps: Array, table: Array, name: str) -> None:
    mark = "o" if len(steps) == 1 else None
    pen = Pen(hue=1)
    axes.plot(steps, table.mean(axis=0), color=INK, marker=mark, linewidth=1.2)
    if len(table) > 1:
        axes.fill_between(steps, table.min(axis=0), table.max(axis=0), color=pen.color, alpha=0.16, linewidth=0)
    axes.set_ylabel(name)
    axes.tick_params(axis="x", labelbottom=False)


def _from_zero(shares: Mapping[str, Array]) -> dict[str, Array]:
    """Shares (P + 1,) that hold from the end of the part before: the staircase keeps a value until the next step."""
    return {name: np.append(values, values[-1]) for name, values in shares.items()}
