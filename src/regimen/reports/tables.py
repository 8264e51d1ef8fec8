"""The tables of scores: by domain, against the baseline or a random subset, and of the data seen."""

from __future__ import annotations

import math
from typing import TypeVar

from regimen.reports.anchors import ZeroShot
from regimen.reports.cells import (
    Cell,
    Table,
    cells,
    matched_cell,
    matched_difference_cell,
    missing,
    name_cell,
    score_cell,
    tokens_cell,
    tone_of,
)
from regimen.reports.compare import Comparison
from regimen.reports.decisions import mean_shares, selection_of
from regimen.reports.wording import (
    ABOUT,
    NONE,
    bracket,
    count,
    decimals_for,
    fixed,
    listing,
    p_value,
    percent,
    si,
    verdict,
    with_half_width,
)

T = TypeVar("T")


def score_table(comparison: Comparison) -> Table:
    """Methods by domains: the mean with its interval, below it the paired difference to the baseline.

    The tokens trained on stand beside the metric; with them, where they differ, the metric at equal tokens. The model
    before training is the last row.
    """
    decimals, matched = decimals_for(comparison), comparison.unmatched
    rows = []
    for result in comparison.results:
        pairs = [(result.scores.get(column), result.differences.get(column)) for column in comparison.columns]
        numbers = [score_cell(score, found.interval if found else None, decimals) for score, found in pairs]
        beside = [tokens_cell(result), *([matched_cell(result, comparison, decimals)] if matched else [])]
        name = name_cell(result, comparison, count(len(result.arm.counted), "seed"))
        rows.append((name, *_inserted(numbers, beside, comparison)))
    if comparison.zero_shot:
        rows.append(_zero_shot_row(comparison.zero_shot, comparison, decimals))
    return Table(
        title=f"{_measure(comparison)} by domain",
        columns=(
            "Method",
            *_inserted(list(comparison.columns), ["Tokens", *(["At equal tokens"] if matched else [])], comparison),
        ),
        rows=tuple(rows),
        notes=(_score_note(comparison), *_token_notes(comparison), _zero_shot_note(comparison)),
    )


def _inserted(row: list[T], beside: list[T], comparison: Comparison) -> list[T]:
    """The row with what belongs beside the metric right after it."""
    after = comparison.columns.index(comparison.metric.column) + 1
    return [*row[:after], *beside, *row[after:]]


def _zero_shot_row(zero: ZeroShot, comparison: Comparison, decimals: int) -> tuple[Cell, ...]:
    texts = [with_half_width(s, decimals) if (s := zero.scores.get(c)) else NONE for c in comparison.columns]
    numbers = [Cell(text=text, tone="muted") for text in texts]
    beside = [Cell(text="0", tone="muted"), *([missing()] if comparison.unmatched else [])]
    detail = "untrained, same for all seeds" if zero.shared else f"untrained, {count(len(zero.seeds), 'seed')}"
    return (Cell(text="zero-shot", detail=detail), *_inserted(numbers, beside, comparison))


def _measure(comparison: Comparison) -> str:
    return {"bits_per_byte": "Bits per byte", "loss": "Loss"}[comparison.metric.measure]


def _score_note(comparison: Comparison) -> str:
    base = comparison.baseline.arm.label
    return (
        f"{comparison.metric.unit}, lower is better. Mean over seeds \u00b1 half of its 95% t-interval; below it the "
        f"difference to {base} in pairs of seeds with its 95% t-interval. Macro is the mean over domains, micro pools "
        "all of them. Intervals of single domains are not adjusted for their number."
    )


def _token_notes(comparison: Comparison) -> list[str]:
    base = comparison.baseline.arm.label
    text = f"Tokens: target tokens trained on, flagged where they differ from those of {base} by more than 1%."
    if comparison.unmatched:
        text += _matched_note(comparison)
    return [text, *_pairing_notes(comparison)]


def _matched_note(comparison: Comparison) -> str:
    ranking = comparison.ranking("tokens")
    if ranking is None:
        return " No metrics.jsonl holds evaluations, so there is no value at equal tokens."
    return (
        f" At equal tokens: {comparison.metric.column} at {si(ranking.at, 4)} tokens, the most that every run reached; "
        f"{ABOUT} is read between two evaluations. A run with more tokens is cut before its end there: it has made "
        "fewer steps, and its learning rate is higher."
    )


def _zero_shot_note(comparison: Comparison) -> str:
    zero = comparison.zero_shot
    if zero is None:
        return (
            "No zero-shot row: no run was evaluated before training. evaluation.at=[0,0.5,1], or other fractions that "
            "begin with 0, do that."
        )
    text = "Zero-shot: the evaluation at step 0, no method and in no ranking."
    counted = {seed for result in comparison.results if not result.foreign for seed in result.arm.seeds}
    if not zero.shared and (lacking := sorted(counted - set(zero.seeds))):
        text += f" No run of {'seed' if len(lacking) == 1 else 'seeds'} {listing(lacking)} was evaluated there."
    if zero.strays:
        verb = "begins" if len(zero.strays) == 1 else "begin"
        text += f" {listing(zero.strays)} {verb} with other weights, for which this row does not speak."
    return text


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
    """Every method against the baseline on the metric: difference, interval, and the permutation test.

    Where tokens differ, also the difference at equal tokens.
    """
    decimals, matched = decimals_for(comparison), comparison.unmatched
    words = {"better": "lower", "worse": "higher", "unclear": "no clear difference", "none": "no interval"}
    rows = []
    for result in comparison.results[1:]:
        difference = result.differences.get(comparison.metric.column)
        if difference is None:
            reason = listing(result.obstacles) or ("no shared seed" if result.arm.counted else "no finished run")
            row = (name_cell(result, comparison), *cells(NONE, NONE, NONE, NONE, NONE, NONE), Cell(text=reason))
        else:
            test = result.test
            p = [p_value(p) for p in (test.flip.p, test.flip.minimum, test.holm)] if test else [NONE] * 3
            row = (
                name_cell(result, comparison),
                Cell(text=fixed(difference.interval.mean, decimals, sign=True), tone=tone_of(difference.interval)),
                Cell(text=bracket(difference.interval, decimals) or NONE),
                Cell(text=", ".join(map(str, difference.seeds))),
                *cells(*p),
                Cell(text=words[verdict(result, comparison)]),
            )
        rows.append((*row, *([matched_difference_cell(result, comparison, decimals)] if matched else [])))
    return Table(
        title=f"Against {comparison.baseline.arm.label}: {comparison.metric.name}",
        columns=(
            *("Method", "Difference", "95% interval", "Paired seeds", "p", "Least p", "Holm p", "By its interval"),
            *(["At equal tokens"] if matched else []),
        ),
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


def chance_table(comparison: Comparison) -> Table:
    """Methods that select rows against a random subset, with the rows that they kept and the tokens trained on."""
    table = test_table(comparison)
    shown = [i for i, name in enumerate(table.columns) if name not in ("Method", "p", "Least p")]
    rows = []
    for result, row in zip(comparison.results[1:], table.rows, strict=True):
        found = selection_of(result.arm)
        kept = Cell(text=si(found.kept) if found else NONE)
        rows.append((row[0], kept, tokens_cell(result), *(row[i] for i in shown)))
    base = selection_of(comparison.baseline.arm)
    note = "What a selector gains beyond training on fewer rows, which a random subset does, too."
    note += f" {comparison.baseline.arm.label} kept {si(base.kept)} of {si(base.of)} rows." if base else ""
    note += " Holm p: of the sign-flip test, as above, over the methods of this table."
    columns = ("Method", "Rows kept", "Tokens", *(table.columns[i] for i in shown))
    return Table(title=table.title, columns=columns, rows=tuple(rows), notes=(note,))


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
