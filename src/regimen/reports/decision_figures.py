"""Figures of what a method did to the data: mixture over time, order, selection, weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regimen.reports.compare import Comparison
from regimen.reports.decisions import (
    Mixture,
    Order,
    OrderedGroup,
    Selection,
    Weights,
    mixture_of,
    order_of,
    selection_of,
    weights_of,
)
from regimen.reports.drawing import (
    HUES,
    INK,
    MUTED,
    PAPER,
    Drawing,
    Pen,
    canvas,
    domain_pens,
    shorten,
    to_svg,
)
from regimen.reports.wording import count, fixed, percent

OTHER = "other domains"
Array = NDArray[np.float64]


def decision_figures(comparison: Comparison, *, key: str) -> list[Drawing]:
    """The figures of every arm that decided something, arm by arm."""
    drawings = []
    shown = shown_domains(comparison)
    for number, result in enumerate(comparison.results):
        arm, name = result.arm, f"{key}{number}"
        if mixture := mixture_of(arm):
            drawings.append(_mixture(arm.label, mixture, shown, key=f"{name}m"))
        if order := order_of(arm):
            drawings.append(_order(arm.label, order, shown, key=f"{name}o"))
        if selection := selection_of(arm):
            drawings.append(_selection(arm.label, selection, key=f"{name}s"))
        if weights := weights_of(arm):
            drawings.append(_weights(arm.label, weights, key=f"{name}w"))
    return drawings


def seeds_text(number: int) -> str:
    """How many seeds a figure is the mean of, as a sentence."""
    return f"Mean over {count(number, 'seed')}." if number > 1 else "One seed."


def shown_domains(comparison: Comparison) -> list[str]:
    """The domains that have a colour, the same in every figure: all of them, or the largest of the pool."""
    for result in comparison.results:
        if (mixture := mixture_of(result.arm)) and mixture.natural:
            return leading(mixture.natural)
    for result in comparison.results:
        if order := order_of(result.arm):
            return leading(order.groups[0].domains)
    return []


def leading(shares: Mapping[str, Any]) -> list[str]:
    """At most eight domains by name: all, or the seven largest where there are more."""
    if len(shares) <= HUES:
        return sorted(shares)
    return sorted(sorted(shares, key=lambda name: (-float(np.mean(shares[name])), name))[: HUES - 1])


def fold(shares: Mapping[str, Any], shown: Sequence[str]) -> dict[str, Any]:
    """The shares of the domains `shown`, in that order; the rest summed as one."""
    rest = [np.asarray(value, dtype=float) for name, value in shares.items() if name not in shown]
    named = {name: shares[name] for name in shown if name in shares}
    return {**named, OTHER: sum(rest)} if rest else named


def pens_of(names: list[str]) -> dict[str, Pen]:
    """A pen per domain; all others share a grey one."""
    return {name: Pen(hue=9) if name == OTHER else pen for name, pen in domain_pens(names).items()}


def _mixture(label: str, mixture: Mixture, shown: Sequence[str], *, key: str) -> Drawing:
    decided = fold(mixture.decided, shown)
    pens = pens_of(list(decided))
    ends = [("in the pool", mixture.natural), ("realised", mixture.realised)]
    widths = [0.17 if ends[0][1] else 0.001, 1.0, 0.17 if ends[1][1] else 0.001]
    with canvas(3.1, panels=widths, across=True) as (figure, (left, middle, right)):
        steps, held = staircase(mixture.steps, decided)
        middle.stackplot(
            steps, *held.values(), colors=[pens[n].color for n in held], edgecolor=PAPER, linewidth=0.8, alpha=0.9
        )
        middle.set_xlim(steps[0], steps[-1] if steps[-1] > steps[0] else steps[0] + 1)
        middle.set_xlabel("step")
        middle.set_title("decided", color=MUTED)
        for axes, (name, shares) in zip((left, right), ends, strict=True):
            _column(axes, name, _like(decided, shares), pens)
        for axes in (left, middle, right):
            share_axis(axes, labelled=axes is left or (axes is middle and not mixture.natural))
        alt = f"Mixture of {label}: share of each domain over the steps as decided, beside the pool's and the realised."
        return Drawing(
            title=f"{label}: mixture",
            svg=to_svg(figure, key=key, alt=alt),
            alt=alt,
            caption=f"Share of every domain: in the pool, decided by {mixture.strategy} at each step, and realised "
            f"over the whole run. {seeds_text(mixture.seeds)}",
            legend=tuple(pens.items()),
            keys="area",
        )


def _like(decided: Mapping[str, Any], shares: Mapping[str, float]) -> dict[str, float]:
    """`shares` with the names of `decided`, so that both have the same colours."""
    named = {name: shares.get(name, 0.0) for name in decided if name != OTHER}
    return {**named, OTHER: max(0.0, sum(shares.values()) - sum(named.values()))} if OTHER in decided else named


def staircase(steps: Array, decided: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Points (2P - 1,) that hold each of the values (P,) until the next step."""
    x = np.repeat(steps, 2)[1:]
    return x, {name: np.repeat(values, 2)[:-1] for name, values in decided.items()}


def _column(axes: Any, name: str, shares: Mapping[str, float], pens: Mapping[str, Pen]) -> None:
    if not sum(shares.values()):
        axes.set_visible(False)
        return
    bottom = 0.0
    for domain, share in shares.items():
        axes.bar(0, share, bottom=bottom, color=pens[domain].color, edgecolor=PAPER, linewidth=0.8, alpha=0.9, width=1)
        bottom += share
    axes.set_xlim(-0.5, 0.5)
    axes.set_xticks([])
    axes.set_title(name, color=MUTED)


def share_axis(axes: Any, *, labelled: bool) -> None:
    """A vertical axis of shares from 0 to 1."""
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["", "50%", "100%"] if labelled else ["", "", ""])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _order(label: str, order: Order, shown: Sequence[str], *, key: str) -> Drawing:
    whole = order.groups[0] if len(order.groups) == 1 else None
    more = f" The first of {order.decisions} decisions is shown." if order.decisions > 1 else ""
    if whole:
        return _one_order(label, order, whole, fold(whole.domains, shown), more, key)
    return _orders_by_group(label, order, shown, more, key)


def _one_order(
    label: str, order: Order, group: OrderedGroup, shares: Mapping[str, Any], more: str, key: str
) -> Drawing:
    pens = pens_of(list(shares))
    panels = [*([0.8] if group.scores is not None else []), *([1.0] if shares else [])]
    with canvas(1.1 + 1.25 * len(panels), panels=panels or [1.0]) as (figure, axes):
        if group.scores is not None:
            axes[0].plot(_middles(len(group.scores)), group.scores, color=INK, marker="o", markersize=3)
            axes[0].set_ylabel("mean score")
            axes[0].set_xlim(0, 1)
        if shares:
            parts = np.arange(len(next(iter(shares.values()))) + 1) / len(next(iter(shares.values())))
            held = {name: np.append(values, values[-1]) for name, values in shares.items()}
            x, stairs = staircase(parts, held)
            colors = [pens[name].color for name in stairs]
            axes[-1].stackplot(x, *stairs.values(), colors=colors, edgecolor=PAPER, linewidth=0.8, alpha=0.9)
            axes[-1].set_xlim(0, 1)
            share_axis(axes[-1], labelled=True)
        _along(axes)
        alt = f"Order of {label}: the mean score and the share of every domain along the sequence."
        return Drawing(
            title=f"{label}: order",
            svg=to_svg(figure, key=key, alt=alt),
            alt=alt,
            caption=f"Along the sequence that {order.strategy} laid out, in {_parts(group)} equal parts: mean score "
            f"above, share of every domain below. {seeds_text(order.seeds)}{more}",
            legend=tuple(pens.items()),
            keys="area",
        )


def _orders_by_group(label: str, order: Order, shown: Sequence[str], more: str, key: str) -> Drawing:
    scored = {group.name: group.scores for group in order.groups if group.scores is not None}
    named = domain_pens(shown)
    pens = {name: named.get(name, Pen(hue=HUES + 1)) for name in scored}
    with canvas(3.1) as (figure, axes):
        for name, scores in scored.items():
            axes[0].plot(_middles(len(scores)), scores, color=pens[name].color)
        axes[0].set_ylabel("mean score")
        axes[0].set_xlim(0, 1)
        _along(axes)
        alt = f"Order of {label}: the mean score along the sequence of every domain."
        return Drawing(
            title=f"{label}: order",
            svg=to_svg(figure, key=key, alt=alt),
            alt=alt,
            caption=f"{order.strategy} ordered every domain by itself. {seeds_text(order.seeds)}{more}",
            legend=_short_legend(pens),
        )


def _short_legend(pens: Mapping[str, Pen]) -> tuple[tuple[str, Pen], ...]:
    """The legend with one entry for all domains that share the last grey."""
    named = tuple((name, pen) for name, pen in pens.items() if pen.hue <= HUES)
    return named if len(named) == len(pens) else (*named, (OTHER, Pen(hue=HUES + 1)))


def _parts(group: OrderedGroup) -> int:
    if group.scores is not None:
        return len(group.scores)
    return len(next(iter(group.domains.values()), []))


def _middles(parts: int) -> Array:
    return (np.arange(parts) + 0.5) / parts


def _along(axes: list[Any]) -> None:
    for panel in axes:
        panel.set_xticks([0, 0.25, 0.5, 0.75, 1], [])
    axes[-1].set_xticklabels(["first", "25%", "50%", "75%", "last"])


def _selection(label: str, selection: Selection, *, key: str) -> Drawing:
    overall = selection.kept / selection.of
    names = list(selection.domains)
    with canvas(max(1.9, 0.9 + 0.3 * len(names))) as (figure, (axes,)):
        values = [selection.domains[name] for name in names]
        axes.barh(range(len(names)), values, color=Pen(hue=1).color, height=0.62, alpha=0.9)
        for row, value in enumerate(values):
            axes.annotate(percent(value), (value, row), xytext=(4, 0), textcoords="offset points", va="center")
        axes.axvline(overall, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
        axes.set_yticks(range(len(names)), [shorten(name) for name in names])
        axes.set_ylim(len(names) - 0.45, -0.55)
        axes.set_xlim(0, 1.15 * max([*values, overall, 1e-9]))
        axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("kept")
        alt = f"Selection of {label}: kept share of every domain, {percent(overall)} over all."
        return Drawing(
            title=f"{label}: selection",
            svg=to_svg(figure, key=key, alt=alt),
            alt=alt,
            caption=f"{selection.strategy} kept {selection.kept:,.0f} of {selection.of:,.0f} ({percent(overall)}, the "
            f"dashed line). {_signals(selection)}{seeds_text(selection.seeds)}",
        )


def _signals(selection: Selection) -> str:
    texts = [
        f"Mean {name}: {fixed(kept)} of the kept, {fixed(of)} of all. "
        for name, (kept, of) in selection.signals.items()
    ]
    return "".join(texts)


def _weights(label: str, weights: Weights, *, key: str) -> Drawing:
    histogram = len(weights.edges) == len(weights.shares) + 1 and len(weights.shares) > 0
    with canvas(2.9, panels=[1.0, 1.0] if histogram else [1.0], across=True) as (figure, axes):
        pen = Pen(hue=1)
        mark = "o" if len(weights.steps) == 1 else None
        axes[0].plot(weights.steps, weights.mean, color=pen.color, marker=mark)
        axes[0].fill_between(weights.steps, weights.low, weights.high, color=pen.color, alpha=0.16, linewidth=0)
        axes[0].set_ylim(0, 1.04 * max(1.0, float(weights.high.max())))
        axes[0].set_xlabel("step")
        axes[0].set_title("effective sample size", color=MUTED)
        if histogram:
            axes[1].stairs(weights.shares, weights.edges, fill=True, color=pen.color, alpha=0.9)
            axes[1].axvline(1.0, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
            axes[1].set_xlabel("weight")
            axes[1].set_title("share of examples", color=MUTED)
            axes[1].yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
        alt = f"Weights of {label}: effective sample size over the steps, and a histogram of the weights."
        last = " Right: weights of its last recorded batch, first seed." if histogram else ""
        return Drawing(
            title=f"{label}: weights",
            svg=to_svg(figure, key=key, alt=alt),
            alt=alt,
            caption=f"Effective sample size of {weights.strategy} as a share of the batch: 1 when all examples count "
            f"alike. {seeds_text(weights.seeds)}{' The band is the range.' if weights.seeds > 1 else ''}{last}",
        )
