"""The tables of what methods cost, and of their ranking at a budget that all of them reached."""

from __future__ import annotations

import math

from regimen.reports.cells import Cell, Table, cells, difference_cell, name_cell, score_cell
from regimen.reports.compare import Comparison
from regimen.reports.curves import Place, Ranking
from regimen.reports.wording import ABOUT, NONE, decimals_for, duration, percent, si


def cost_table(comparison: Comparison) -> Table:
    """What each method cost, the cost of its measurements and stages included."""
    staged = any(result.arm.mean("flops", "stages") > 0 for result in comparison.results)
    columns = ["Method", "Tokens", "Unique tokens", "FLOPs", "Overhead", "Training", "Measuring"]
    columns += ["Stages", "If stages are reused"] if staged else []
    columns += ["Time", "Measuring time", "Peak memory"]
    rows = []
    for result in comparison.results:
        arm = result.arm
        total, stages, memory = arm.mean("flops", "total"), arm.mean("flops", "stages"), arm.mean("peak_memory_mb")
        row = [
            name_cell(result, comparison),
            *cells(si(arm.mean("tokens")), si(arm.mean("unique_tokens")), si(total)),
            Cell(text=NONE if result is comparison.baseline else percent(result.overhead, sign=True)),
            *cells(si(arm.mean("flops", "training")), si(arm.mean("flops", "measuring"))),
        ]
        row += cells(si(stages), si(total - stages)) if staged else []
        row += cells(duration(arm.mean("seconds", "total")), duration(arm.mean("seconds", "measuring")))
        row.append(Cell(text=f"{memory:,.0f} MB" if math.isfinite(memory) else NONE))
        rows.append(tuple(row))
    note = (
        "Means over seeds. FLOPs are the floating-point operations of training, of the method's measurements and of "
        f"the stages it needed; evaluation is not counted. Overhead: FLOPs against {comparison.baseline.arm.label}."
    )
    return Table(title="Cost", columns=tuple(columns), rows=tuple(rows), notes=(note, *_machine_note(comparison)))


def _machine_note(comparison: Comparison) -> list[str]:
    machines = {str(sorted(run.part("machine").items())) for r in comparison.results for run in r.arm.counted}
    return ["The runs were not all on one kind of machine: do not compare their times."] if len(machines) > 1 else []


def ranking_table(ranking: Ranking, comparison: Comparison) -> Table:
    """The arms by their score at one budget."""
    decimals = decimals_for(comparison)
    rows = []
    for position, place in enumerate(ranking.places, start=1):
        if place.score is None:
            rows.append((Cell(text=NONE), Cell(text=place.label, detail=place.note), *cells(NONE, NONE)))
            continue
        rows.append(
            (
                Cell(text=str(position) if math.isfinite(place.key) else NONE),
                Cell(text=place.label, detail=place.note),
                _ranked_difference(place, ranking, decimals),
                score_cell(place.score, None, decimals, between=place.interpolated),
            )
        )
    noun = {"tokens": "tokens", "flops": "FLOPs"}[ranking.axis]
    between = any(place.interpolated for place in ranking.places)
    note = f"At {si(ranking.at, 4)} {noun}, the most that every run reached. Ranked by the paired difference."
    note += f" {ABOUT} is read between two evaluations, on the line that joins them." if between else ""
    return Table(
        title=f"At equal {noun}",
        columns=("Rank", "Method", f"Against {comparison.baseline.arm.label}", comparison.metric.unit),
        rows=tuple(rows),
        notes=(note,),
        words=2,
    )


def _ranked_difference(place: Place, ranking: Ranking, decimals: int) -> Cell:
    if place.difference is None:
        return Cell(text="baseline" if place.baseline else NONE, tone="muted")
    return difference_cell(place.difference, decimals, between=ranking.between(place))
