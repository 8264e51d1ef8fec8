"""From paths to the three files: find, read, group, compare, draw, write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regimen.core.errors import ConfigError, closest
from regimen.core.files import write_atomically
from regimen.reports.compare import Comparison, Metric, compare
from regimen.reports.content import make_report
from regimen.reports.groups import Section, split_sections, with_baseline
from regimen.reports.markdown import render_markdown
from regimen.reports.missing import fate
from regimen.reports.page import render_page
from regimen.reports.runs import Run, common_folder, find_runs, read_run
from regimen.reports.tidy import render_csv

MEASURES = ("bits_per_byte", "loss")


def write_report(paths: Sequence[Path | str], *, out: Path | str | None, baseline: str | None, metric: str) -> Path:
    """Writes `report.html`, `report.md` and `report.csv`; see `regimen.reports.build`."""
    folders = find_runs(paths)
    runs = [read_run(folder) for folder in folders]
    chosen = parse_metric(metric, runs)
    sections, comparisons = compare_runs(runs, chosen, baseline)
    target = Path(out) if out is not None else common_folder(paths)
    target.mkdir(parents=True, exist_ok=True)
    base = target.resolve()
    report = make_report(comparisons, runs, sections, base=base)
    texts = {
        "report.csv": render_csv(runs, sections, comparisons, base=base),
        "report.md": render_markdown(report),
        "report.html": render_page(report),
    }
    for name, text in texts.items():
        write_atomically(target / name, text)
    return target / "report.html"


def compare_runs(runs: Sequence[Run], metric: Metric, baseline: str | None) -> tuple[list[Section], list[Comparison]]:
    """The sections of `runs`, and the comparison of each that has a finished run.

    Raises:
        ConfigError: no run can be counted, or no section has the baseline.
    """
    sections = split_sections(runs, column=metric.column, measure=metric.measure)
    usable = [section for section in sections if any(arm.counted for arm in section.arms)]
    if not usable:
        raise ConfigError(
            "none of these runs is finished with a number to compare",
            got="; ".join(f"{run.folder.name}: {fate(run, run.reason or 'no ' + metric.name)}" for run in runs[:8]),
            do="wait for them, or start the same command again: it goes on where they stopped",
        )
    names = {name for section in usable for arm in section.arms if arm.counted for name in (arm.label, arm.method)}
    if baseline is not None and baseline not in names:
        raise ConfigError(
            f"the baseline has no finished run among these{closest(baseline, names)}",
            got=baseline,
            allowed=", ".join(sorted(names)),
            do="name one of them with --baseline, or add a run of it",
        )
    sections = [with_baseline(section, baseline) for section in sections]
    return sections, [compare(s, metric) for s in sections if any(arm.counted for arm in s.arms)]


def parse_metric(metric: str, runs: Sequence[Run]) -> Metric:
    """`macro/bits_per_byte` as a Metric.

    Raises:
        ConfigError: no such measure, or no such domain in any run.
    """
    column, _, measure = metric.rpartition("/")
    domains = sorted({str(d) for run in runs for d in run.part("evaluation", "domains")})
    if measure not in MEASURES or column not in ("macro", "micro", *domains):
        known = [f"{c}/{m}" for c in ("macro", "micro", *domains) for m in MEASURES]
        columns = ", ".join(("macro", "micro", *domains[:12]))
        raise ConfigError(
            f"this metric is not in the runs{closest(metric, known)}",
            got=metric,
            allowed=f"<column>/<measure> with a column of {columns} and a measure of {', '.join(MEASURES)}",
            do="metric=macro/bits_per_byte",
        )
    return Metric(column=column, measure=measure)
