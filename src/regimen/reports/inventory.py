"""What was run: runs, settings that differ, versions, warnings, and what makes runs not comparable."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from regimen.reports.anchors import amount_of, company_of
from regimen.reports.cells import Cell, Table, cells
from regimen.reports.compare import Comparison
from regimen.reports.decisions import warnings_of
from regimen.reports.groups import Arm, Section
from regimen.reports.runs import Run
from regimen.reports.settings import ABSENT, IGNORED, METHOD_OWNED, differing
from regimen.reports.wording import NONE, count, listing, percent, si


def runs_table(runs: Sequence[Run], sections: Sequence[Section], *, base: Path) -> Table:
    """Every run folder, what became of it and whether it is counted."""
    placed: dict[int, tuple[str, str]] = {}
    for arm in (arm for section in sections for arm in section.arms):
        placed.update({id(run): (arm.label, "") for run in arm.counted})
        placed.update({id(run): (arm.label, reason) for run, reason in arm.others})
    rows = []
    for run in runs:
        label, obstacle = placed.get(
            id(run), (run.method, run.reason or "its summary names no method, model or dataset")
        )
        status = Cell(text=run.status, detail=obstacle, tone="flag" if obstacle else "")
        rows.append(
            (
                *cells(label, NONE if run.seed is None else str(run.seed)),
                status,
                *cells(run.text("steps") or NONE, si(run.number("tokens"))),
                *cells(run.model, run.dataset, os.path.relpath(run.folder, base)),
            )
        )
    counted = sum(1 for _, reason in placed.values() if not reason)
    notes = [f"{counted} of {count(len(runs), 'run')} are counted in the means."]
    notes += [f"{os.path.relpath(run.folder, base)}: {listing(run.notes)}." for run in runs if run.notes]
    columns = ("Method", "Seed", "Status", "Steps", "Tokens", "Model", "Dataset", "Folder")
    return Table(title="Runs", columns=columns, rows=tuple(rows), notes=tuple(notes), words=len(columns))


def notices(comparison: Comparison) -> list[str]:
    """What a reader must know before the numbers: arms that cannot be compared with the baseline, and why."""
    base = comparison.baseline.arm.label
    found = [
        f"{result.arm.label} is NOT comparable with {base}: it has {listing(result.obstacles)}."
        for result in comparison.results
        if result.obstacles
    ]
    return [*found, *_token_notice(comparison), *_chance_notices(comparison)]


def _token_notice(comparison: Comparison) -> list[str]:
    """That methods trained on other numbers of tokens in the same steps."""
    others = [result for result in comparison.results if result.unmatched and not result.obstacles]
    if not others:
        return []
    who = listing(f"{result.arm.label} ({percent(result.excess, sign=True)})" for result in others)
    if len(others) > 3:
        ends = (f(result.excess for result in others) for f in (min, max))
        who = f"{len(others)} methods ({' to '.join(percent(end, sign=True) for end in ends)})"
    return [
        f"At equal steps, {who} trained on another number of target tokens than {comparison.baseline.arm.label}: "
        "see the column at equal tokens, too."
    ]


def _chance_notices(comparison: Comparison) -> list[str]:
    """That methods select rows and no run selects as many by chance; one line per set of other strategies."""
    groups: dict[tuple[str, ...], list[Arm]] = {}
    for arm in comparison.alone:
        groups.setdefault(tuple(company_of(arm)), []).append(arm)
    return [_chance_notice(company, arms) for company, arms in groups.items()]


def _chance_notice(company: tuple[str, ...], arms: Sequence[Arm]) -> str:
    method = f"'method=[random,{','.join(company)}]'" if company else "method=random"
    amount = amount_of(arms[0])
    typed = ([] if "ratio" in amount or not amount else ["strategies.random.ratio=null"]) + [
        f"strategies.random.{key}={value}" for key, value in amount.items()
    ]
    seeds = sorted({seed for arm in arms for seed in arm.seeds})
    words = " ".join([method, *typed, f"seed={','.join(map(str, seeds))}"])
    verb = "selects" if len(arms) == 1 else "select"
    return (
        f"{listing(arm.label for arm in arms)} {verb} rows, and no random subset is beside: add {words} to the same "
        "command to tell what selecting gains."
    )


def section_notice(sections: Sequence[Section]) -> list[str]:
    """That several models or datasets were found, which are never compared with each other."""
    if len(sections) < 2:
        return []
    return [
        f"The runs are of {listing(section.title for section in sections)}: each has its own section, and runs of "
        "different sections are NOT comparable."
    ]


def settings_table(sections: Sequence[Section]) -> Table | None:
    """Settings that are not the same in all counted runs, other than the method's own and the seed."""
    arms = [(section, arm) for section in sections for arm in section.arms if arm.counted]
    tables = [run.settings for _, arm in arms for run in arm.counted if run.settings]
    keys = differing(tables, (*IGNORED, *METHOD_OWNED))
    if not keys:
        return None
    several = len(sections) > 1
    rows = []
    for key in keys:
        values = [_values(run.settings.get(key, ABSENT) for run in arm.counted if run.settings) for _, arm in arms]
        rows.append((Cell(text=key), *cells(*values)))
    names = [f"{arm.label} ({section.title})" if several else arm.label for section, arm in arms]
    return Table(
        title="Settings that differ",
        columns=("Setting", *names),
        rows=tuple(rows),
        notes=("Beyond method and seed. A difference to a baseline includes the effect of these.",),
        words=len(names) + 1,
    )


def _values(values: Iterable[str]) -> str:
    return " | ".join(dict.fromkeys(values)) or "(no config.yaml)"


def environment_table(runs: Sequence[Run]) -> Table | None:
    """Versions, machines and fingerprints of the counted runs; a row with several values says so."""
    rows = []
    for part, title in (("versions", ""), ("machine", "machine: "), ("fingerprints", "fingerprint: ")):
        for key in sorted({key for run in runs for key in run.part(part)}):
            if (part, key) == ("fingerprints", "config"):
                continue  # differs from run to run by its nature
            values = list(dict.fromkeys(run.text(part, key) or "none" for run in runs))
            tone = "flag" if len(values) > 1 else ""
            rows.append((Cell(text=f"{title}{key}"), Cell(text=" | ".join(values), tone=tone)))
    if not rows:
        return None
    return Table(title="Versions and machine", columns=("", "Value"), rows=tuple(rows), words=2)


def warnings_table(runs: Sequence[Run]) -> Table | None:
    """Every warning once, with the runs that gave it."""
    rows = []
    for text, places in warnings_of(runs).items():
        names = [run.text("name") or run.folder.name for run, _ in places]
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        steps = [step for _, step in places if step is not None]
        rows.append(cells(text, shown, str(min(steps)) if steps else NONE))
    if not rows:
        return None
    return Table(title="Warnings", columns=("Warning", "Runs", "First step"), rows=tuple(rows), words=3)
