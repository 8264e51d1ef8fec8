"""Matplotlib to small inline SVG: text stays text, and every colour becomes a CSS variable of the page.

Figures are drawn at the width of a phone, so that the page can show one or two side by side without shrinking text.
Colours are drawn as marker values and replaced by `var(--...)`, so light and dark mode share one drawing.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

WIDTH = 5.0
"""Inches; one inch is 72 units of the drawing."""

HUES = 8
"""Colours of the palette, `--s1` to `--s8`; `--s0` is the baseline's and `--s9` stands for all other domains."""

INK, MUTED, GRID, PAPER = "#f20001", "#f20002", "#f20003", "#f20004"
_NAMES = {INK: "ink", MUTED: "muted", GRID: "line", PAPER: "card"}
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS = ("o", "s", "D", "^")
_DASH_CSS = ("", "5 2", "1.5 1.5", "6 2 1.5 2")

_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "lines.linewidth": 1.8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.unicode_minus": True,
}


@dataclass(frozen=True, kw_only=True)
class Pen:
    """How one series is drawn: a palette index (0: the baseline) and a dash pattern once the palette repeats."""

    hue: int
    dash: int = 0

    @property
    def color(self) -> str:
        """The marker colour to draw with."""
        return f"#f1000{self.hue}"

    @property
    def style(self) -> Any:
        """The line style of Matplotlib."""
        return _DASHES[self.dash % len(_DASHES)]

    @property
    def marker(self) -> str:
        """The marker of Matplotlib, another one once the palette repeats."""
        return MARKERS[self.dash % len(MARKERS)]

    @property
    def dash_css(self) -> str:
        """The same dashes as an SVG `stroke-dasharray`."""
        return _DASH_CSS[self.dash % len(_DASH_CSS)]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A finished figure: `svg`, what it shows (`alt`), a caption and its legend, drawn as `line`, `area` or `dot`."""

    title: str
    svg: str
    alt: str
    caption: str
    legend: tuple[tuple[str, Pen], ...] = ()
    keys: str = "line"


def arm_pens(labels: Sequence[str]) -> dict[str, Pen]:
    """A pen per method; the first (the baseline) in grey."""
    pens = {label: Pen(hue=1 + i % 6, dash=i // 6) for i, label in enumerate(labels[1:])}
    return {labels[0]: Pen(hue=0), **pens}


def domain_pens(domains: Sequence[str]) -> dict[str, Pen]:
    """A pen per domain, at most eight of them; the rest is one grey `other`."""
    return {name: Pen(hue=1 + i if i < HUES else 9) for i, name in enumerate(domains)}


@contextmanager
def canvas(height: float, *, panels: Sequence[float] = (1.0,), across: bool = False) -> Iterator[tuple[Any, list[Any]]]:
    """A figure of our style with its axes, `panels` as relative heights (or widths, `across`)."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        ratio: dict[str, Any] = {"width_ratios" if across else "height_ratios": list(panels)}
        shape = (1, len(panels)) if across else (len(panels), 1)
        axes = figure.subplots(*shape, squeeze=False, gridspec_kw=ratio).ravel().tolist()
        yield figure, axes


def to_svg(figure: Any, *, key: str, alt: str) -> str:
    """The figure as an SVG element to put into a page; `key` makes its ids unique there."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": key}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser draws the text
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(buffer.getvalue(), key, alt)


def _inline(svg: str, key: str, alt: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view, "Matplotlib writes a viewBox"
    svg = re.sub(r"<svg[^>]*>", f'<svg {view[0]} role="img" aria-label="{_attribute(alt)}">', svg, count=1)
    svg = _renumber_ids(svg, key)
    svg = re.sub(r"#f1000(\d)", r"var(--s\1)", svg)
    for color, name in _NAMES.items():
        svg = svg.replace(color, f"var(--{name})")
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(-?\d+\.\d{2})\d+", r"\1", tag[0]), svg)  # tags only, never text
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    return re.sub(r"\n\s*", "\n", svg).strip()


def _renumber_ids(svg: str, key: str) -> str:
    """Ids that something refers to, counted from 0; Matplotlib's own are hashes of memory addresses."""
    used = dict.fromkeys(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', svg))
    names = {old: f"{key}-{number}" for number, old in enumerate(used)}
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{names[m[1]]}"' if m[1] in names else "", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', lambda m: f'href="#{names[m[1]]}"', svg)
    return re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{names[m[1]]})", svg)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def shorten(text: str, length: int = 18) -> str:
    """The text cut to `length` characters with an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "\u2026"


def si_axis(axis: Any) -> None:
    """Ticks as `200 k`, `1.5 P`."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(EngFormatter(sep=" "))
