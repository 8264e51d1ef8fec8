"""The same report as Markdown: findings, tables and lists, without the figures."""

from __future__ import annotations

from collections.abc import Sequence

from regimen.reports.cells import Table
from regimen.reports.content import Chapter, Report


def render_markdown(report: Report) -> str:
    """The whole file."""
    lines = [f"# {plain(report.title)}", ""]
    lines += [f"* {name}: {plain(value)}" for name, value in report.facts]
    lines += [""]
    lines += [f"> **{plain(notice)}**\n" for notice in report.notices]
    for chapter in report.chapters:
        lines += _chapter(chapter)
    lines += ["## Runs and settings", ""]
    for table in report.inventory:
        lines += _table(table, level=3)
    lines += ["## How the numbers are made", "", *(f"* {plain(text)}" for text in report.how), ""]
    return "\n".join(lines)


def _chapter(chapter: Chapter) -> list[str]:
    lines = [f"## {plain(chapter.title)}", "", plain(chapter.lead), ""]
    lines += [f"> **{plain(notice)}**\n" for notice in chapter.notices]
    for finding in chapter.findings:
        lines.append(f"* **{plain(finding.label)}:** {plain(' '.join((finding.sentence, *finding.details)))}")
    lines += ["", plain(chapter.caution)] if chapter.caution else []
    if chapter.missing:
        lines += ["", "Missing cells of the grid of methods and seeds:", ""]
        lines += [f"* {plain(line)}" for line in chapter.missing]
    lines.append("")
    for table in (*chapter.scores, chapter.cost, *chapter.rankings, *([chapter.realised] if chapter.realised else [])):
        lines += _table(table, level=3)
    captions = [f"* {plain(d.title)}: {plain(d.caption)}" for d in chapter.decisions]
    return [*lines, *(["### What the methods did to the data", "", *captions, ""] if captions else [])]


def _table(table: Table, *, level: int) -> list[str]:
    rule = [":--" if i < table.words else "--:" for i in range(len(table.columns))]
    lines = [f"{'#' * level} {plain(table.title)}", "", _row([plain(c) for c in table.columns]), _row(rule)]
    for row in table.rows:
        lines.append(_row([plain(cell.text) + (f"<br>{plain(cell.detail)}" if cell.detail else "") for cell in row]))
    return [*lines, "", *(f"{plain(note)}\n" for note in table.notes)]


def _row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def plain(text: str) -> str:
    """Text that Markdown takes literally, also inside a table."""
    text = " ".join(text.split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return text.replace("*", "\\*").replace("`", "\\`").replace("_", "\\_").replace("[", "\\[").replace("]", "\\]")
