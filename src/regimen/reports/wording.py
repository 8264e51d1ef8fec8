"""Numbers and verdicts in words: one place decides digits, signs and what may be claimed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from regimen.evaluation.statistics import Interval
from regimen.reports.compare import Comparison, Result

MINUS = "\u2212"
NONE = "\u2013"
ABOUT = "\u2248"
"""Before a number that was not measured, but lies between two that were."""
ALPHA = 0.05
OVERHEAD = 0.0005
"""Differences in FLOPs below this share do not move a method along its curve in any visible way."""


def fixed(value: float, decimals: int = 3, *, sign: bool = False) -> str:
    """`1.234`, with a true minus and no negative zero; a dash for what is not a number."""
    if not math.isfinite(value):
        return NONE
    text = f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"
    if float(text) == 0:
        text = f"{0:.{decimals}f}"
    return text.replace("-", MINUS)


def bracket(interval: Interval, decimals: int = 3, *, sign: bool = True) -> str:
    """`[-0.034, -0.008]`, or an empty string without an interval."""
    if not interval.bounded:
        return ""
    return f"[{fixed(interval.low, decimals, sign=sign)}, {fixed(interval.high, decimals, sign=sign)}]"


def with_bracket(interval: Interval, decimals: int = 3) -> str:
    """`-0.021 [-0.034, -0.008]`, or the mean alone."""
    return f"{fixed(interval.mean, decimals, sign=True)} {bracket(interval, decimals)}".rstrip()


def with_half_width(interval: Interval, decimals: int = 3) -> str:
    """`1.234 +- 0.012`, or the mean alone."""
    half = f" \u00b1 {fixed(interval.half_width, decimals)}" if interval.bounded else ""
    return fixed(interval.mean, decimals) + half


def about(text: str, between: bool) -> str:
    """The text, marked where the number lies between two that were measured."""
    return f"{ABOUT}\u00a0{text}" if between else text


def si(value: float, digits: int = 3) -> str:
    """`1.23 M`: at most three digits before an SI prefix; from 10^21 on as a power of ten."""
    if not math.isfinite(value):
        return NONE
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10.0**power * (1 - 0.5 * 10.0**-digits):
            if abs(value) >= 1e21:
                return f"{value:.{digits - 1}e}"
            return f"{value / 10.0**power:#.{digits}g}".rstrip(".") + f" {prefix}"
    return f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    """`74 s`, `12.4 min` or `3.1 h`."""
    if not math.isfinite(seconds):
        return NONE
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def percent(share: float, decimals: int = 1, *, sign: bool = False) -> str:
    """`+0.2%`; a dash for what is not a number."""
    return NONE if not math.isfinite(share) else f"{fixed(100 * share, decimals, sign=sign)}%"


def p_value(p: float) -> str:
    """`0.25`, `0.0039` or `<0.0001`."""
    if not math.isfinite(p):
        return NONE
    return "<0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def listing(words: Iterable[object]) -> str:
    """`a`, `a and b` or `a, b and c`."""
    *head, last = [str(word) for word in words] or [""]
    return f"{', '.join(head)} and {last}" if head else last


def count(number: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def decimals_for(comparison: Comparison) -> int:
    """Enough decimals that the median interval of a difference is at least 4 units of the last one long: 3 to 5."""
    intervals = [d.interval for result in comparison.results for d in result.differences.values()]
    sizes = [i.half_width if i.bounded else abs(i.mean) for i in intervals]
    sizes = [size for size in sizes if size > 1e-9]
    return min(5, max(3, math.ceil(-math.log10(statistics.median(sizes) / 4)))) if sizes else 3


def verdict(result: Result, comparison: Comparison) -> str:
    """`better`, `worse`, `unclear` or `none`: what the interval of the metric's difference says by itself."""
    difference = result.differences.get(comparison.metric.column)
    if difference is None or not difference.interval.bounded:
        return "none"
    if not difference.interval.excludes_zero:
        return "unclear"
    return "better" if difference.interval.mean < 0 else "worse"


def headline(result: Result, comparison: Comparison, decimals: int) -> str:
    """One sentence on a method, without its name: the difference, its interval, on how many pairs, at what cost."""
    base = comparison.baseline.arm.label
    if not result.arm.counted:
        return "no finished run."
    if result.obstacles:
        return f"not comparable with {base}: it has {listing(result.obstacles)}."
    difference = result.differences.get(comparison.metric.column)
    if difference is None:
        return f"no seed in common with {base}, so there is no paired difference."
    amount = f"{with_bracket(difference.interval, decimals)} {comparison.metric.unit}"
    cost = _cost(result)
    if not difference.interval.bounded:
        return f"{amount} against {base} on seed {difference.seeds[0]}{cost}. One seed: no interval."
    pairs = f"over {count(len(difference.seeds), 'paired seed')}{cost}."
    if verdict(result, comparison) == "unclear":
        return f"no clear difference from {base}: {amount} {pairs}"
    return f"{amount} against {base} {pairs}"


def _cost(result: Result) -> str:
    tokens = f", {percent(result.excess, sign=True)} tokens" if result.unmatched else ""
    if not math.isfinite(result.overhead):
        return tokens
    return tokens + (
        f", {percent(result.overhead, sign=True)} FLOPs" if abs(result.overhead) > OVERHEAD else ", same FLOPs"
    )


def at_equal_budgets(result: Result, comparison: Comparison, decimals: int) -> list[str]:
    """The paired differences at equal tokens and at equal FLOPs, for methods that noticeably spent more or less."""
    unit = comparison.metric.unit
    tokens = at_equal("tokens", result, comparison, decimals) if result.unmatched else ""
    flops = at_equal("flops", result, comparison, decimals) if abs(result.overhead) > OVERHEAD else ""
    named = (("tokens", tokens), ("FLOPs", flops))
    return [f"At equal {name}: {difference} {unit}." for name, difference in named if difference]


def at_equal(axis: str, result: Result, comparison: Comparison, decimals: int) -> str:
    """The paired difference at equal `tokens` or `flops` with its interval; empty without one."""
    ranking = comparison.ranking(axis)
    place = ranking.of(result.arm) if ranking and not result.foreign else None
    if ranking is None or place is None or place.difference is None:
        return ""
    return about(with_bracket(place.difference, decimals), ranking.between(place))


def against_chance(result: Result, comparison: Comparison, decimals: int) -> list[str]:
    """The paired difference to a random subset, for methods that select rows."""
    for beside in comparison.chance:
        found = next((other for other in beside.results[1:] if other.arm is result.arm), None)
        difference = found.differences.get(comparison.metric.column) if found else None
        if found and difference:
            matched = at_equal("tokens", found, beside, decimals) if found.unmatched else ""
            more = f", at equal tokens {matched}" if matched else ""
            text = f"{with_bracket(difference.interval, decimals)} {comparison.metric.unit}{more}"
            return [f"Against {beside.baseline.arm.label}: {text}."]
    return []


def confirmation(result: Result) -> list[str]:
    """The permutation test of a headline, where there are pairs enough for it to say something."""
    if result.test is None or result.test.flip.minimum > ALPHA:
        return []
    family = f" over {count(result.test.family, 'method')}" if result.test.family > 1 else ""
    return [f"Sign-flip p {p_value(result.test.flip.p)}, Holm-adjusted{family} {p_value(result.test.holm)}."]


def caution(comparison: Comparison) -> str:
    """That some methods have too few pairs for the permutation test, said once for all of them."""
    short = [r for r in comparison.results if r.test and r.test.flip.minimum > ALPHA]
    if not short:
        return ""
    sizes = sorted({r.differences[comparison.metric.column].interval.n for r in short})
    least = min(r.test.flip.minimum for r in short if r.test)
    who = "" if len(short) == len(comparison.results) - 1 else f" for {listing(r.arm.label for r in short)}"
    return (
        f"Descriptive{who}: {listing(sizes)} pairs of seeds cannot give a sign-flip p below {p_value(least)}. "
        "Six pairs are needed for p\u00a0<\u00a0.05."
    )
