"""Which runs belong together: sections (one model on one dataset), arms (one method as configured), cells (a seed)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from regimen.reports.runs import UNKNOWN, Run
from regimen.reports.settings import ABSENT, differing, short_keys

TOKEN_TOLERANCE = 0.01
"""Token counts this close (relative) are one budget: batches of ragged rows do not end at exactly the same count."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Arm:
    """One method with one set of settings: `counted` holds one finished run per seed, `others` all the rest."""

    label: str
    method: str
    counted: tuple[Run, ...]
    others: tuple[tuple[Run, str], ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that are counted, ascending."""
        return tuple(sorted(run.seed for run in self.counted if run.seed is not None))

    def by_seed(self) -> dict[int, Run]:
        """The counted run of each seed."""
        return {run.seed: run for run in self.counted if run.seed is not None}

    def mean(self, *path: str) -> float:
        """The mean over counted runs of a number of the summary; NaN when none has it."""
        values = [run.number(*path) for run in self.counted]
        finite = [value for value in values if math.isfinite(value)]
        return sum(finite) / len(finite) if finite else math.nan


@dataclass(frozen=True, kw_only=True, eq=False)
class Section:
    """All arms of one model on one dataset; the baseline is the first."""

    model: str
    dataset: str
    arms: tuple[Arm, ...]

    @property
    def title(self) -> str:
        """`nano on local`."""
        return f"{self.model} on {self.dataset}"

    @property
    def seeds(self) -> list[int]:
        """Every seed that any run of the section was started with."""
        runs = [run for arm in self.arms for run in (*arm.counted, *(run for run, _ in arm.others))]
        return sorted({run.seed for run in runs if run.seed is not None})


def split_sections(runs: Sequence[Run], *, column: str, measure: str) -> list[Section]:
    """The runs that say what they are, by (model, dataset) in the order found; arms in the order found."""
    keys = dict.fromkeys((r.model, r.dataset) for r in runs if UNKNOWN not in (r.method, r.model, r.dataset))
    sections = []
    for model, dataset in keys:
        inside = [run for run in runs if (run.model, run.dataset) == (model, dataset) and run.method != UNKNOWN]
        arms = [
            _arm(label, method, members, column=column, measure=measure)
            for method in dict.fromkeys(run.method for run in inside)
            for label, members in _variants(method, [run for run in inside if run.method == method])
        ]
        sections.append(Section(model=model, dataset=dataset, arms=tuple(arms)))
    return sections


def with_baseline(section: Section, baseline: str | None) -> Section:
    """The section with its baseline first: `baseline` by label or method, else `natural`, else the first that counts.

    Of several variants of a method, the one with the most seeds is taken.
    """
    usable = [arm for arm in section.arms if arm.counted]
    for wanted in (baseline, "natural"):
        named = [arm for arm in usable if arm.label == wanted] or [arm for arm in usable if arm.method == wanted]
        if named:
            chosen = max(named, key=lambda arm: len(arm.counted))
            break
    else:
        chosen = (usable or section.arms)[0]
    return replace(section, arms=(chosen, *(arm for arm in section.arms if arm is not chosen)))


def _variants(method: str, runs: list[Run]) -> list[tuple[str, list[Run]]]:
    """The runs of one method by the settings in which they differ, each with a label that names them."""
    tables = {id(run): _identity(run, runs) for run in runs}
    finished = [run for run in runs if run.status == "finished"] or runs
    # Without a config.yaml an unfinished run cannot say its budget, so it joins the method's first variant.
    sortable = runs if all(run.settings for run in runs) else finished
    keys = differing([tables[id(run)] for run in sortable])
    names = short_keys(keys)
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in sortable:
        groups.setdefault(tuple(tables[id(run)].get(key, ABSENT) for key in keys), []).append(run)
    next(iter(groups.values())).extend(run for run in runs if run not in sortable)
    if len(groups) == 1:
        return [(method, runs)]
    labelled: dict[str, list[Run]] = {}
    for values, members in groups.items():
        shown = [f"{names[key]}={_clip(value)}" for key, value in zip(keys, values, strict=True)]
        label = f"{method} ({', '.join(shown[:3])}{', ...' if len(shown) > 3 else ''})"
        labelled[label if label not in labelled else f"{label} #{len(labelled) + 1}"] = members
    return list(labelled.items())


def _identity(run: Run, runs: list[Run]) -> dict[str, str]:
    """What makes two runs of a method repeats of each other: the configuration, or what the summary tells of it."""
    identity = {"pool": run.text("fingerprints", "pool"), "tokenizer": run.text("fingerprints", "tokenizer")}
    if all(other.settings for other in runs):
        return identity | dict(run.settings)
    return identity | {"strategies": str(run.part("strategies")), "tokens": _token_budget(run, runs)}


def _token_budget(run: Run, runs: list[Run]) -> str:
    counts = sorted(n for n in (other.number("tokens") for other in runs) if math.isfinite(n))
    start = previous = math.nan
    for count in counts:
        if math.isnan(start) or count > previous * (1 + TOKEN_TOLERANCE):
            start = count
        previous = count
        if count == run.number("tokens"):
            return f"{start:.4g}"
    return ABSENT


def _arm(label: str, method: str, runs: list[Run], *, column: str, measure: str) -> Arm:
    counted: dict[int, Run] = {}
    others: list[tuple[Run, str]] = []
    for run in runs:
        obstacle = _not_counted(run, column, measure)
        if obstacle or run.seed is None:
            others.append((run, obstacle or "its summary names no seed"))
            continue
        if run.seed in counted:
            others.append((counted[run.seed], f"replaced by the later folder {run.folder.name} of the same seed"))
        counted[run.seed] = run
    ordered = tuple(counted[seed] for seed in sorted(counted))
    return Arm(label=label, method=method, counted=ordered, others=tuple(others))


def _not_counted(run: Run, column: str, measure: str) -> str | None:
    if run.status != "finished":
        return run.reason or run.status
    if not math.isfinite(run.score(column, measure)):
        return f"its final {column}/{measure} is not a number"
    return None


def _clip(value: str, length: int = 24) -> str:
    value = value or ABSENT
    return value if len(value) <= length else value[: length - 3] + "..."
