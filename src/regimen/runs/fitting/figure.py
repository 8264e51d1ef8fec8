"""The figure of a fitted law: predicted against observed losses, and the proposed mixture beside the natural one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regimen.core.files import disk_errors

_INK, _MUTED, _LINE, _BLUE, _GREY = "#17212b", "#566371", "#d9dfe5", "#0072b2", "#76818c"
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.7,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "text.color": _INK,
    "figure.facecolor": "#ffffff",
}
_MOST = 20  # domains that are drawn; the rest is in fit.json

Points = tuple[str, Sequence[float], Sequence[float]]
"""Name, observed and predicted objective."""


Shares = Mapping[str, float]


def draw(path: Path, points: Sequence[Points], mixture: Shares, natural: Shares | None) -> None:
    """Write the figure as PNG, atomically; without points only the mixture is drawn."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        panels = 2 if points else 1
        height = max(3.4, 1.2 + 0.24 * min(len(mixture), _MOST))
        figure = Figure(figsize=(4.6 * panels, height), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False).ravel().tolist()
        if points:
            _scatter(axes[0], points)
        _bars(axes[-1], mixture, natural)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with disk_errors(path):
            try:
                figure.savefig(temporary, format="png", dpi=144)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)


def _scatter(axis: Any, points: Sequence[Points]) -> None:
    everything = [value for _, observed, predicted in points for value in (*observed, *predicted)]
    ends = [min(everything), max(everything)]
    axis.plot(ends, ends, color=_LINE, linewidth=1.2, zorder=1)
    for number, (name, observed, predicted) in enumerate(points):
        style = {"facecolors": "none", "edgecolors": _GREY} if number == 0 else {"color": _BLUE, "linewidths": 0}
        axis.scatter(observed, predicted, s=14, label=f"{name} ({len(observed)})", zorder=2 + number, **style)
    axis.set(xlabel="observed objective", ylabel="predicted objective")
    axis.legend(frameon=False, loc="upper left", labelcolor=_MUTED)


def _bars(axis: Any, mixture: Mapping[str, float], natural: Mapping[str, float] | None) -> None:
    names = sorted(mixture, key=lambda name: mixture[name])[-_MOST:]
    places = range(len(names))
    axis.barh([p + 0.2 for p in places], [mixture[n] for n in names], height=0.38, color=_BLUE, label="proposed")
    if natural is not None:
        axis.barh([p - 0.2 for p in places], [natural[n] for n in names], height=0.38, color=_GREY, label="natural")
    axis.set_yticks(list(places), [name if len(name) <= 22 else name[:21] + "\u2026" for name in names])
    axis.set(xlabel="share of tokens")
    axis.grid(False, axis="y")
    axis.legend(frameon=False, loc="lower right", labelcolor=_MUTED)
