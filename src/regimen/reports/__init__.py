"""Reports: run folders in, tables, figures, Markdown, CSV and one self-contained HTML page out. Reads files only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def build(
    runs: Sequence[Path | str],
    *,
    out: Path | str | None = None,
    baseline: str | None = None,
    metric: str = "macro/bits_per_byte",
) -> Path:
    """Write `report.html`, `report.md` and `report.csv` about `runs`, and return the path of the page.

    Args:
        runs: run folders, sweep folders (searched for runs) or globs.
        out: where the three files go; the folder that all `runs` share by default.
        baseline: the method that the others are compared with; `natural` if it is there, else the first.
        metric: `macro/...`, `micro/...` or `<domain>/...`, with `bits_per_byte` or `loss`. Lower is better.

    Raises:
        ConfigError: no run, no finished run, or a baseline or metric that the runs do not have.
    """
    from regimen.reports.assemble import write_report  # matplotlib is imported where figures are drawn

    return write_report(list(runs), out=out, baseline=baseline, metric=metric)
