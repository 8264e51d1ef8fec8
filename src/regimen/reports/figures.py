"""Figures that compare methods: curves against tokens and FLOPs, differences along training and by domain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from regimen.reports.compare import Comparison, Result
from regimen.reports.curves import Band, difference_band, score_band
from regimen.reports.drawing import GRID, Drawing, Pen, arm_pens, canvas, shorten, si_axis, to_svg
from regimen.reports.wording import count

Pens = Mapping[str, Pen]
TALLEST = 5.0
"""Inches of rows in one dot plot."""

AXES = {"tokens": "training tokens", "flops": "FLOPs, measuring and stages included"}


def comparison_figures(comparison: Comparison, *, key: str) -> list[Drawing]:
    """The figures of a section, in the order shown; those without data are left out."""
    pens = arm_pens([result.arm.label for result in comparison.results])
    by_domain = _differences_by_domain(comparison, pens, key=f"{key}d")
    along = [
        _differences_along(comparison, pens, key=f"{key}a"),
        _curves(comparison, pens, "tokens", key=f"{key}t"),
        _curves(comparison, pens, "flops", key=f"{key}f"),
    ]
    curves = [drawing for drawing in along if drawing]
    return [*by_domain, *curves] if len(by_domain) == 1 else [*curves, *by_domain]


def _curves(comparison: Comparison, pens: Pens, axis: str, *, key: str) -> Drawing | None:
    metric = comparison.metric
    bands = {
        result.arm.label: band
        for result in comparison.results
        if not result.foreign and (band := score_band(result.arm, metric.name, axis))
    }
    if not bands:
        return None
    with canvas(3.5) as (figure, (axes,)):
        for label, band in reversed(bands.items()):
            _line(axes, band, pens[label])
        _zoom(axes, bands)
        axes.set_xlabel(AXES[axis])
        axes.set_ylabel(f"{metric.column}, {metric.unit}")
        si_axis(axes.xaxis)
        alt = f"{metric.name} against {AXES[axis]}, one line for each of {', '.join(bands)}."
        return Drawing(
            title=f"{metric.column} against {'tokens' if axis == 'tokens' else 'FLOPs'}",
            svg=to_svg(figure, key=key, alt=alt),
            alt=alt,
            caption=f"{_over(comparison)} The first part of training is cut off at the top.",
            legend=tuple((label, pens[label]) for label in bands),
        )


def _line(axes: Any, band: Band, pen: Pen) -> None:
    mark = "o" if len(band.x) == 1 else None
    axes.plot(band.x, band.mean, color=pen.color, linestyle=pen.style, marker=mark, markersize=4)
    if np.isfinite(band.low).all():
        axes.fill_between(band.x, band.low, band.high, color=pen.color, alpha=0.16, linewidth=0)


def _zoom(axes: Any, bands: Mapping[str, Band]) -> None:
    """Cuts the steep start off: the axis begins where the slowest curve is after a third of the budget."""
    bottom = min(float(band.low.min()) for band in bands.values())
    tops = [np.interp(band.x[0] + (band.x[-1] - band.x[0]) / 3, band.x, band.high) for band in bands.values()]
    margin = 0.06 * (max(tops) - bottom)
    if margin > 0:
        axes.set_ylim(bottom - margin, max(tops) + margin)


def _differences_along(comparison: Comparison, pens: Pens, *, key: str) -> Drawing | None:
    base, metric = comparison.baseline.arm, comparison.metric
    bands = {
        result.arm.label: band
        for result in comparison.results[1:]
        if not result.foreign and (band := difference_band(result.arm, base, metric.name, "tokens"))
    }
    if not bands:
        return None
    with canvas(3.5) as (figure, (axes,)):
        axes.axhline(0, color=pens[base.label].color, linewidth=1.4)
        for label, band in reversed(bands.items()):
            _line(axes, band, pens[label])
        _frame_differences(axes, bands)
        axes.set_xlabel(AXES["tokens"])
        axes.set_ylabel(f"difference, {metric.unit}")
        si_axis(axes.xaxis)
        alt = f"Difference in {metric.name} to {base.label} along training, for {', '.join(bands)}."
        return Drawing(
            title=f"Difference to {base.label} along training",
            svg=to_svg(figure, key=key, alt=alt),
            alt=alt,
            caption=f"{metric.name}, paired by seed at equal tokens{_band(bands)}. Below zero is better than "
            f"{base.label}.",
            legend=((base.label, pens[base.label]), *((label, pens[label]) for label in bands)),
        )


def _frame_differences(axes: Any, bands: Mapping[str, Band]) -> None:
    """Limits from the means and the last part's intervals, so that one wide early interval hides nothing."""
    values = [np.zeros(1)]
    for band in bands.values():
        late = slice(len(band.x) // 2, None)
        values += [band.mean, band.low[late], band.high[late]]
    joined = np.concatenate(values)
    joined = joined[np.isfinite(joined)]
    margin = 0.06 * float(np.ptp(joined)) or 1e-3
    axes.set_ylim(joined.min() - margin, joined.max() + margin)


def _differences_by_domain(comparison: Comparison, pens: Pens, *, key: str) -> list[Drawing]:
    """The dot plot, in several drawings of one scale when one would be too tall."""
    shown = [result for result in comparison.results[1:] if result.differences]
    columns = [c for c in comparison.columns if any(c in result.differences for result in shown)]
    if not columns:
        return []
    per_row = 0.14 + 0.13 * max(len(shown), 2)
    drawings = math.ceil(len(columns) * per_row / TALLEST)
    drawings += drawings > 1 and drawings % 2 == 0  # beside three curves, an odd number fills the page's two columns
    size = math.ceil(len(columns) / drawings)
    parts = [columns[start : start + size] for start in range(0, len(columns), size)]
    limits = _shared_limits(shown) if len(parts) > 1 else None
    return [_dot_plot(comparison, shown, part, pens, limits, f"{key}{i}") for i, part in enumerate(parts)]


def _shared_limits(shown: list[Result]) -> tuple[float, float]:
    intervals = [difference.interval for result in shown for difference in result.differences.values()]
    ends = [0.0, *(v for i in intervals for v in (i.low, i.mean, i.high) if math.isfinite(v))]
    margin = 0.04 * (max(ends) - min(ends)) or 1e-3
    return min(ends) - margin, max(ends) + margin


def _dot_plot(
    comparison: Comparison,
    shown: list[Result],
    columns: list[str],
    pens: Pens,
    limits: tuple[float, float] | None,
    key: str,
) -> Drawing:
    base, metric = comparison.baseline.arm.label, comparison.metric
    height = 1.0 + len(columns) * (0.14 + 0.13 * max(len(shown), 2))
    with canvas(max(height, 2.2)) as (figure, (axes,)):
        axes.axvline(0, color=pens[base].color, linewidth=1.4)
        for position, result in enumerate(shown):
            offset = (position - (len(shown) - 1) / 2) * 0.72 / len(shown)
            _dots(axes, result, columns, offset, pens[result.arm.label])
        for row in range(1, len(columns)):
            axes.axhline(row - 0.5, color=GRID, linewidth=0.7)
        axes.set_yticks(range(len(columns)), [shorten(column) for column in columns])
        axes.set_ylim(len(columns) - 0.5, -0.5)
        axes.set_xlim(limits)
        axes.locator_params(axis="x", nbins=6)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"difference to {base}, {metric.unit}   (left is better)")
        names = ", ".join(result.arm.label for result in shown)
        alt = f"Difference to {base} in {metric.measure} for {', '.join(columns)}; methods: {names}."
        return Drawing(
            title=f"Difference to {base} by domain",
            svg=to_svg(figure, key=key, alt=alt),
            alt=alt,
            caption=f"At the end of training: {_pairs(shown)}.",
            legend=tuple((result.arm.label, pens[result.arm.label]) for result in shown),
            keys="dot",
        )


def _pairs(shown: list[Result]) -> str:
    sizes = {len(d.seeds) for result in shown for d in result.differences.values()}
    if sizes == {1}:
        return "one pair of runs, no interval"
    seeds = count(sizes.pop(), "paired seed") if len(sizes) == 1 else "paired seeds"
    return f"mean over {seeds}, with its 95% t-interval. Filled where the interval excludes zero"


def _over(comparison: Comparison) -> str:
    several = any(len(result.arm.counted) > 1 for result in comparison.results)
    return "Mean over seeds; the band is their range." if several else "One seed."


def _band(bands: Mapping[str, Band]) -> str:
    return "; the band is the 95% t-interval" if any(np.isfinite(band.low).all() for band in bands.values()) else ""


def _dots(axes: Any, result: Result, columns: list[str], offset: float, pen: Pen) -> None:
    for row, column in enumerate(columns):
        difference = result.differences.get(column)
        if difference is None:
            continue
        interval = difference.interval
        if interval.bounded:
            axes.plot([interval.low, interval.high], [row + offset] * 2, color=pen.color, linewidth=1.6)
        filled = interval.excludes_zero
        face = pen.color if filled else "none"
        axes.plot(interval.mean, row + offset, pen.marker, color=pen.color, markerfacecolor=face, markersize=5)
