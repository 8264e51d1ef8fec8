"""The report as one HTML page that asks the network for nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template

from regimen.reports.cells import Cell, Table
from regimen.reports.content import Chapter, Finding, Report
from regimen.reports.drawing import Drawing, Pen


def render_page(report: Report) -> str:
    """The whole page."""
    template = Template(files("regimen.reports").joinpath("template.html").read_text(encoding="utf-8"))
    several = len(report.chapters) > 1
    chapters = "\n".join(_chapter(chapter, f"s{i}", titled=several) for i, chapter in enumerate(report.chapters))
    return template.substitute(
        title=escape(report.title),
        facts="".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in report.facts),
        notices=_notices(report.notices),
        contents=_contents(report) if several else "",
        chapters=chapters,
        inventory=_missing(report.chapters) + "\n".join(_table(table, level=3) for table in report.inventory),
        how="".join(f"<li>{escape(text)}</li>" for text in report.how),
    )


def _contents(report: Report) -> str:
    links = "".join(f'<li><a href="#s{i}">{escape(c.title)}</a></li>' for i, c in enumerate(report.chapters))
    return f'<nav aria-label="Sections"><ul>{links}<li><a href="#inventory">Runs and settings</a></li></ul></nav>'


def _chapter(chapter: Chapter, anchor: str, *, titled: bool) -> str:
    parts = [f'<section id="{anchor}" class="chapter">']
    if titled:
        parts.append(f"<h2>{escape(chapter.title)}</h2>")
    parts += [f'<p class="lead">{escape(chapter.lead)}</p>', _notices(chapter.notices), _findings(chapter.findings)]
    parts.append(f'<p class="caution">{escape(chapter.caution)}</p>' if chapter.caution else "")
    parts.append(_missing_count(chapter.missing))
    parts += [_table(table) for table in chapter.scores]
    parts.append(_figures(chapter.figures, "Figures"))
    parts.append(_table(chapter.cost))
    if chapter.rankings:
        tables = "".join(_table(table, level=4) for table in chapter.rankings)
        parts.append(f'<h3>Ranking at equal budgets</h3><div class="pair">{tables}</div>')
    if chapter.decisions or chapter.realised:
        parts.append("<h3>What the methods did to the data</h3>")
        parts.append(_table(chapter.realised, level=4) if chapter.realised else "")
        parts.append(_figures(chapter.decisions, "Decisions"))
    return "\n".join(part for part in [*parts, "</section>"] if part)


def _notices(texts: Sequence[str]) -> str:
    return "".join(f'<p class="notice" role="note">{escape(text)}</p>' for text in texts)


def _missing_count(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return '<p class="caution">Not every method has every seed: <a href="#missing">what is missing</a>.</p>'


def _missing(chapters: Sequence[Chapter]) -> str:
    several = len(chapters) > 1
    lines = [f"{c.title}: {line}" if several else line for c in chapters for line in c.missing]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return (
        f'<div id="missing"><h3>Missing from the grid of methods and seeds</h3><ul>{items}</ul></div>' if lines else ""
    )


# ------------------------------------------------------------------------------------------------ findings


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    span = _span(findings)
    rows = "".join(_finding(finding, span) for finding in findings)
    scale = '<li class="scale" aria-hidden="true"><span>lower is better</span></li>' if span else ""
    return f'<ul class="findings">{scale}{rows}</ul>'


def _span(findings: Iterable[Finding]) -> tuple[float, float] | None:
    """The shared axis of the strips: zero and every interval, with a little air."""
    ends = [0.0]
    for finding in findings:
        if finding.interval:
            interval = finding.interval
            ends += [v for v in (interval.low, interval.mean, interval.high) if math.isfinite(v)]
    low, high = min(ends), max(ends)
    air = 0.05 * (high - low)
    return (low - air, high + air) if high > low else None


def _finding(finding: Finding, span: tuple[float, float] | None) -> str:
    details = "".join(f"<small>{escape(text)}</small>" for text in finding.details)
    text = f"<p><b>{escape(finding.label)}:</b> {escape(finding.sentence)}{details}</p>"
    return f'<li class="finding {finding.tone}">{text}{_strip(finding, span)}</li>'


def _strip(finding: Finding, span: tuple[float, float] | None) -> str:
    if span is None or finding.interval is None:
        return ""

    def at(value: float) -> str:
        return f"{100 * (value - span[0]) / (span[1] - span[0]):.2f}%"

    marks = f'<i class="zero" style="left:{at(0)}"></i>'
    interval = finding.interval
    if interval.bounded:
        width = 100 * (interval.high - interval.low) / (span[1] - span[0])
        marks += f'<i class="bar" style="left:{at(interval.low)};width:{width:.2f}%"></i>'
    marks += f'<i class="dot" style="left:{at(interval.mean)}"></i>'
    return f'<div class="strip" aria-hidden="true">{marks}</div>'


# ------------------------------------------------------------------------------------------------ tables, figures


def _table(table: Table, *, level: int = 3) -> str:
    head = "".join(_header(name, left=i < table.words) for i, name in enumerate(table.columns))
    body = "".join(f"<tr>{_row(row, table.words)}</tr>" for row in table.rows)
    notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
    return (
        f'<div class="block"><h{level}>{escape(table.title)}</h{level}>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f'{f"""<div class="notes">{notes}</div>""" if notes else ""}</div>'
    )


def _header(name: str, *, left: bool) -> str:
    return f'<th scope="col"{" class=word" if left else ""}>{escape(name)}</th>'


def _row(row: Sequence[Cell], words: int) -> str:
    return "".join(_cell(cell, "th" if i == 0 else "td", left=i < words) for i, cell in enumerate(row))


def _cell(cell: Cell, tag: str, *, left: bool) -> str:
    names = " ".join(name for name in ("word" if left else "", cell.tone) if name)
    detail = f"<small>{escape(cell.detail)}</small>" if cell.detail else ""
    scope = ' scope="row"' if tag == "th" else ""
    text = f"<span>{escape(cell.text)}</span>" if left else escape(cell.text)
    return f'<{tag}{scope}{f""" class="{names}" """.rstrip() if names else ""}>{text}{detail}</{tag}>'


def _figures(drawings: Sequence[Drawing], label: str) -> str:
    if not drawings:
        return ""
    return f'<div class="charts" aria-label="{label}">{"".join(map(_figure, drawings))}</div>'


def _figure(drawing: Drawing) -> str:
    keys = "".join(f"<li>{_swatch(pen, drawing.keys)}{escape(name)}</li>" for name, pen in drawing.legend)
    legend = f'<ul class="keys">{keys}</ul>' if keys else ""
    return (
        f"<figure><h4>{escape(drawing.title)}</h4>{legend}{drawing.svg}"
        f"<figcaption>{escape(drawing.caption)}</figcaption></figure>"
    )


_MARKS = {
    "o": '<circle cx="11" cy="5" r="4"/>',
    "s": '<path d="M7.5 1.5h7v7h-7z"/>',
    "D": '<path d="M11 0l5 5-5 5-5-5z"/>',
    "^": '<path d="M11 0l5 9.5H6z"/>',
}


def _swatch(pen: Pen, kind: str) -> str:
    color = f"var(--s{pen.hue})"
    if kind == "area":
        return f'<i class="patch" style="background:{color}"></i>'
    dash = f' stroke-dasharray="{pen.dash_css}"' if pen.dash_css and kind == "line" else ""
    line = f'<path d="M0 5H22" stroke="{color}" stroke-width="2.4"{dash}/>'
    mark = f'<g fill="{color}">{_MARKS[pen.marker]}</g>' if kind == "dot" else ""
    return f'<svg class="swatch" viewBox="0 0 22 10" aria-hidden="true">{line}{mark}</svg>'
