"""The tables of the report as plain values; the page and the Markdown file draw the same ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from regimen.reports.compare import Comparison, Result
from regimen.reports.curves import Place, Ranking
from regimen.reports.decisions import mean_shares
from regimen.reports.wording import (
    NONE,
    bracket,
    count,
    decimals_for,
    duration,
    fixed,
    listing,
    p_value,
    percent,
    si,
    verdict,
    with_bracket,
    with_half_width,
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A text, a second smaller line, and a tone: `better`, `worse` (or `detail-...`), `muted`, `flag` or none."""

    text: str
    detail: str = ""
    tone: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A titled table; the first `words` columns hold words (left), the others numbers (right)."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    words: int = 1


def cells(*texts: str) -> tuple[Cell, ...]:
    """A row of plain cells."""
    return tuple(Cell(text=text) for text in texts)


def score_table(comparison: Comparison) -> Table:
    """Methods by domains: the mean with its interval, below it the paired difference to the baseline."""
    decimals = decimals_for(comparison)
    rows = []
    for result in comparison.results:
        row = [_name(result, comparison, count(len(result.arm.counted), "seed"))]
        for column in comparison.columns:
            score, difference = result.scores.get(column), result.differences.get(column)
            if score is None:
                row.append(Cell(text=NONE, tone="muted"))
                continue
            detail = with_bracket(difference.interval, decimals) if difference else ""
            row.append(Cell(text=with_half_width(score, decimals), detail=detail, tone=_detail_tone(difference)))
        rows.append(tuple(row))
    base = comparison.baseline.arm.label
    notes = [
        f"{comparison.metric.unit}, lower is better. Mean over seeds \u00b1 half of its 95% t-interval; below it the "
        f"difference to {base} in pairs of seeds with its 95% t-interval. Macro is the mean over domains, micro pools "
        "all of them. Intervals of single domains are not adjusted for their number.",
        *_pairing_notes(comparison),
    ]
    return Table(
        title=f"{_measure(comparison)} by domain",
        columns=("Method", *comparison.columns),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _measure(comparison: Comparison) -> str:
    return {"bits_per_byte": "Bits per byte", "loss": "Loss"}[comparison.metric.measure]


def _name(result: Result, comparison: Comparison, detail: str = "") -> Cell:
    role = "baseline" if result is comparison.baseline else "not comparable" if result.obstacles else ""
    words = ", ".join(word for word in (role, detail) if word)
    return Cell(text=result.arm.label, detail=words, tone="flag" if result.obstacles else "")


def _tone(difference: object) -> str:
    interval = getattr(difference, "interval", None)
    if interval is None or not interval.excludes_zero:
        return ""
    return "better" if interval.mean < 0 else "worse"


def _detail_tone(difference: object) -> str:
    tone = _tone(difference)
    return f"detail-{tone}" if tone else ""


def _pairing_notes(comparison: Comparison) -> list[str]:
    """Which methods are paired on some seeds only, those with the same seeds together."""
    same: dict[tuple[tuple[int, ...], tuple[int, ...]], list[str]] = {}
    for result in comparison.results[1:]:
        difference = result.differences.get(comparison.metric.column)
        if difference and difference.unpaired:
            same.setdefault((difference.seeds, difference.unpaired), []).append(result.arm.label)
    return [
        f"{listing(labels)}: paired on {'seed' if len(paired) == 1 else 'seeds'} {listing(paired)} only; what one side "
        f"lacks ({'seed' if len(unpaired) == 1 else 'seeds'} {listing(unpaired)}) enters a mean, but no difference."
        for (paired, unpaired), labels in same.items()
    ]


def test_table(comparison: Comparison) -> Table:
    """Every method against the baseline on the metric: difference, interval, and the permutation test."""
    decimals = decimals_for(comparison)
    words = {"better": "lower", "worse": "higher", "unclear": "no clear difference", "none": "no interval"}
    rows = []
    for result in comparison.results[1:]:
        difference = result.differences.get(comparison.metric.column)
        if difference is None:
            reason = listing(result.obstacles) or ("no shared seed" if result.arm.counted else "no finished run")
            rows.append((_name(result, comparison), *cells(NONE, NONE, NONE, NONE, NONE, NONE), Cell(text=reason)))
            continue
        test = result.test
        p = [p_value(p) for p in (test.flip.p, test.flip.minimum, test.holm)] if test else [NONE] * 3
        rows.append(
            (
                _name(result, comparison),
                Cell(text=fixed(difference.interval.mean, decimals, sign=True), tone=_tone(difference)),
                Cell(text=bracket(difference.interval, decimals) or NONE),
                Cell(text=", ".join(map(str, difference.seeds))),
                *cells(*p),
                Cell(text=words[verdict(result, comparison)]),
            )
        )
    return Table(
        title=f"Against {comparison.baseline.arm.label}: {comparison.metric.name}",
        columns=("Method", "Difference", "95% interval", "Paired seeds", "p", "Least p", "Holm p", "By its interval"),
        rows=tuple(rows),
        notes=(_test_note(comparison),),
    )


def _test_note(comparison: Comparison) -> str:
    family = max((result.test.family for result in comparison.results if result.test), default=0)
    text = (
        "p: two-sided sign-flip permutation test over paired seeds. Least p: 2/2^S, the smallest that S pairs can "
        "give; below 6 pairs it exceeds .05, so such rows describe and do not test. "
    )
    return text + (f"Holm: adjusted over the family of {count(family, 'comparison')} in this table." if family else "")


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
            _name(result, comparison),
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
                _ranked_difference(place, decimals),
                Cell(text=with_half_width(place.score, decimals)),
            )
        )
    noun = {"tokens": "tokens", "flops": "FLOPs"}[ranking.axis]
    note = (
        f"At {si(ranking.at, 4)} {noun}, the most that every run reached; linear between evaluations. Ranked by the "
        "paired difference."
    )
    return Table(
        title=f"At equal {noun}",
        columns=("Rank", "Method", f"Against {comparison.baseline.arm.label}", comparison.metric.unit),
        rows=tuple(rows),
        notes=(note,),
        words=2,
    )


def _ranked_difference(place: Place, decimals: int) -> Cell:
    difference = place.difference
    if difference is None:
        return Cell(text="baseline" if place.baseline else NONE, tone="muted")
    tone = ("better" if difference.mean < 0 else "worse") if difference.excludes_zero else ""
    return Cell(text=fixed(difference.mean, decimals, sign=True), detail=bracket(difference, decimals), tone=tone)


def realised_table(comparison: Comparison) -> Table | None:
    """The share of every domain that each method really trained on, beside the natural one."""
    counted = [result for result in comparison.results if result.arm.counted and not result.foreign]
    natural = mean_shares([run for result in counted for run in result.arm.counted], "mixture", "natural")
    shares = {result.arm.label: mean_shares(result.arm.counted, "mixture", "realised") for result in counted}
    domains = sorted({domain for table in (natural, *shares.values()) for domain in table})
    if not domains or not any(shares.values()):
        return None
    rows = [(Cell(text="in the pool", tone="muted"), *cells(*(percent(natural.get(d, math.nan)) for d in domains)))]
    rows += [
        (Cell(text=label), *cells(*(percent(table.get(d, math.nan)) for d in domains)))
        for label, table in shares.items()
        if table
    ]
    return Table(
        title="Data seen, by domain",
        columns=("Method", *domains),
        rows=tuple(rows),
        notes=("Realised share of the training tokens, mean over seeds.",),
    )
