"""A table as a plain value, which the page and the Markdown file draw alike, and cells that several tables share."""

from __future__ import annotations

from dataclasses import dataclass

from regimen.evaluation.statistics import Interval
from regimen.reports.compare import Comparison, Result
from regimen.reports.wording import NONE, about, bracket, fixed, percent, si, with_bracket, with_half_width


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


def missing() -> Cell:
    """A dash."""
    return Cell(text=NONE, tone="muted")


def name_cell(result: Result, comparison: Comparison, detail: str = "") -> Cell:
    """The method, that it is the baseline or cannot be compared, and a detail."""
    role = "baseline" if result is comparison.baseline else "not comparable" if result.obstacles else ""
    words = ", ".join(word for word in (role, detail) if word)
    return Cell(text=result.arm.label, detail=words, tone="flag" if result.obstacles else "")


def score_cell(score: Interval | None, difference: Interval | None, decimals: int, *, between: bool = False) -> Cell:
    """A score with the difference to the baseline below it; `between`: it is interpolated."""
    if score is None:
        return missing()
    tone = tone_of(difference)
    return Cell(
        text=about(with_half_width(score, decimals), between),
        detail=with_bracket(difference, decimals) if difference else "",
        tone=f"detail-{tone}" if tone else "",
    )


def difference_cell(difference: Interval, decimals: int, *, between: bool = False) -> Cell:
    """A difference with its interval below it; `between`: it is interpolated."""
    text = about(fixed(difference.mean, decimals, sign=True), between)
    return Cell(text=text, detail=bracket(difference, decimals), tone=tone_of(difference))


def tone_of(difference: Interval | None) -> str:
    """`better` or `worse` for an interval on one side of zero, else nothing."""
    if difference is None or not difference.excludes_zero:
        return ""
    return "better" if difference.mean < 0 else "worse"


def tokens_cell(result: Result) -> Cell:
    """The tokens that a method trained on, flagged where they differ from the baseline's."""
    text = si(result.arm.mean("tokens"))
    return (
        Cell(text=text, detail=percent(result.excess, sign=True), tone="flag") if result.unmatched else Cell(text=text)
    )


def matched_cell(result: Result, comparison: Comparison, decimals: int) -> Cell:
    """The metric at equal tokens."""
    place = comparison.at_equal_tokens(result)
    if place is None:
        return missing()
    return score_cell(place.score, place.difference, decimals, between=place.interpolated)


def matched_difference_cell(result: Result, comparison: Comparison, decimals: int) -> Cell:
    """The metric's difference to the baseline at equal tokens."""
    ranking = comparison.ranking("tokens")
    place = ranking.of(result.arm) if ranking else None
    if ranking is None or place is None or place.difference is None:
        return missing()
    return difference_cell(place.difference, decimals, between=ranking.between(place))
