"""The report as one value: sections with their findings, tables and figures, then what concerns all runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regimen.evaluation.statistics import Interval
from regimen.reports.budgets import cost_table, ranking_table
from regimen.reports.cells import Table
from regimen.reports.compare import Comparison
from regimen.reports.courses import course_figures
from regimen.reports.decision_figures import decision_figures
from regimen.reports.drawing import Drawing
from regimen.reports.figures import comparison_figures
from regimen.reports.groups import Section
from regimen.reports.inventory import (
    environment_table,
    notices,
    runs_table,
    section_notice,
    settings_table,
    warnings_table,
)
from regimen.reports.missing import missing_cells
from regimen.reports.runs import Run
from regimen.reports.tables import chance_table, realised_table, score_table, test_table
from regimen.reports.wording import (
    against_chance,
    at_equal_budgets,
    caution,
    confirmation,
    count,
    decimals_for,
    headline,
    listing,
    si,
    verdict,
)

HOW = (
    "A method is compared with the baseline seed by seed: both start from the same weights and the same random stream, "
    "so the difference within a pair of runs says more than the two means.",
    "95% t-interval: from the differences of S paired seeds, with S - 1 degrees of freedom. It assumes that the "
    "differences are roughly normal, which few seeds cannot check.",
    "Sign-flip p: if the method did nothing, every difference could as well have had the other sign. The exact test "
    "tries all 2^S signs (20,000 drawn ones beyond 12 seeds), so its p cannot fall below 2/2^S.",
    "Holm: with several methods, one may look good by chance. The adjusted p holds for all methods of a table at once.",
    "Equal tokens and equal FLOPs: evaluation curves are interpolated linearly at the largest budget that all runs "
    "reached. A run cut before its own end still had a higher learning rate there, which is not corrected for, and a "
    "straight line lies above a curve that levels off: both are to the disadvantage of the run that goes on. More "
    "fractions in evaluation.at bring the line closer.",
    "Tokens are target tokens: of fine-tuning rows, those of the answers. At equal steps, a method that prefers short "
    "rows trains on fewer of them. With token_ratio in place of ratio, selectors keep sets of as many tokens, whose "
    "rows may still be shorter.",
    "Zero-shot is the model before training: one per seed, or the pretrained one. A random subset of as many rows "
    "tells what a selector gains apart from what training on fewer rows more often does.",
    "FLOPs count training, the method's own measurements and the stages it needed; evaluation is free of charge.",
    "Runs that failed, still run or ended in a number that is not finite are listed and never enter a mean.",
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One method's headline: `tone` is `better`, `worse`, `unclear` or `none`; the interval is drawn as a strip."""

    label: str
    sentence: str
    details: tuple[str, ...]
    tone: str
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """One section: its headline and everything that supports it."""

    title: str
    lead: str
    findings: tuple[Finding, ...]
    caution: str
    notices: tuple[str, ...]
    scores: tuple[Table, ...]
    cost: Table
    rankings: tuple[Table, ...]
    figures: tuple[Drawing, ...]
    realised: Table | None
    decisions: tuple[Drawing, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All of the report. `facts` are the few numbers below the title."""

    title: str
    facts: tuple[tuple[str, str], ...]
    notices: tuple[str, ...]
    chapters: tuple[Chapter, ...]
    inventory: tuple[Table, ...]
    how: tuple[str, ...] = HOW


def make_report(
    comparisons: Sequence[Comparison], runs: Sequence[Run], sections: Sequence[Section], *, base: Path
) -> Report:
    """The report on `comparisons`; `sections` and `runs` also hold what could not be compared."""
    counted = [run for section in sections for arm in section.arms for run in arm.counted]
    tables = (
        runs_table(runs, sections, base=base),
        settings_table(sections),
        environment_table(counted),
        warnings_table(runs),
    )
    methods = list(dict.fromkeys(run.method for run in runs if run in counted))
    titles = [section.title for section in sections]
    return Report(
        title=f"{count(len(methods), 'method')} on {titles[0] if len(titles) == 1 else f'{len(titles)} settings'}"
        if len(titles) > 1
        else f"{count(len(methods), 'data method')}, {titles[0]}",
        facts=_facts(comparisons, runs, counted),
        notices=tuple(section_notice(sections)),
        chapters=tuple(_chapter(comparison, number) for number, comparison in enumerate(comparisons)),
        inventory=tuple(table for table in tables if table),
    )


def _facts(
    comparisons: Sequence[Comparison], runs: Sequence[Run], counted: Sequence[Run]
) -> tuple[tuple[str, str], ...]:
    tokens = [si(n) for n in sorted(run.number("tokens") for run in counted)]
    seeds = sorted({run.seed for run in counted if run.seed is not None})
    return (
        ("Runs counted", f"{len(counted)} of {len(runs)}"),
        ("Seeds", ", ".join(map(str, seeds)) if len(seeds) <= 6 else str(len(seeds))),
        ("Tokens per run", tokens[0] if tokens[0] == tokens[-1] else f"{tokens[0]} to {tokens[-1]}"),
        ("Metric", comparisons[0].metric.name),
        ("Baseline", listing(dict.fromkeys(c.baseline.arm.label for c in comparisons))),
    )


def _chapter(comparison: Comparison, number: int) -> Chapter:
    several = len(comparison.results) > 1
    return Chapter(
        title=comparison.section.title,
        lead=_lead(comparison),
        findings=_findings(comparison),
        caution=caution(comparison),
        notices=tuple(notices(comparison)),
        scores=(
            score_table(comparison),
            *((test_table(comparison),) if several else ()),
            *(chance_table(beside) for beside in comparison.chance),
        ),
        cost=cost_table(comparison),
        rankings=tuple(ranking_table(ranking, comparison) for ranking in comparison.rankings),
        figures=tuple(comparison_figures(comparison, key=f"s{number}")),
        realised=realised_table(comparison),
        decisions=(
            *decision_figures(comparison, key=f"d{number}x"),
            *course_figures(comparison, key=f"d{number}y"),
        ),
        missing=tuple(missing_cells(comparison.section)),
    )


def _findings(comparison: Comparison) -> tuple[Finding, ...]:
    decimals = decimals_for(comparison)
    findings = []
    for result in comparison.results[1:]:
        difference = result.differences.get(comparison.metric.column)
        findings.append(
            Finding(
                label=result.arm.label,
                sentence=headline(result, comparison, decimals),
                details=(
                    *at_equal_budgets(result, comparison, decimals),
                    *against_chance(result, comparison, decimals),
                    *confirmation(result),
                ),
                tone=verdict(result, comparison),
                interval=difference.interval if difference else None,
            )
        )
    return tuple(findings)


def _lead(comparison: Comparison) -> str:
    """One sentence above the findings: how many methods beat the baseline by their interval."""
    base = comparison.baseline.arm.label
    others = comparison.results[1:]
    if not others:
        return f"Only {base} has been run, so there is nothing to compare it with."
    verdicts = [v for result in others if (v := verdict(result, comparison)) != "none"]
    if not verdicts:
        return f"No interval can be given against {base}: run more seeds of the same methods."
    better, worse = verdicts.count("better"), verdicts.count("worse")
    compared = "method" if len(verdicts) == len(others) else "compared method"
    start = f"{better} of {count(len(verdicts), compared)}" if better else f"No {compared}"
    verb = "ends" if better < 2 else "end"
    above = f"; {worse} {'ends' if worse == 1 else 'end'} above it" if worse else ""
    measure = f"{comparison.metric.column} {comparison.metric.unit}"
    return f"{start} {verb} below {base} in {measure} with a 95% interval that excludes zero{above}."
