"""What a grid lacks and why: runs that were preempted, failed or killed, and those that never began.

Which runs a grid was to have is read from the `multirun.yaml` that its last launch left beside them.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from regimen.reports.groups import Arm, Section
from regimen.reports.runs import Run, as_number
from regimen.reports.wording import listing

_STOPPED = ("preempted", "interrupted", "running", "failed")  # what the same command goes on with


def missing_cells(section: Section) -> list[str]:
    """The cells of the grid method x seed that no finished run fills, in words, one line per method and reason."""
    lacking: dict[tuple[str, str], list[int]] = {}
    wanted = _wanted(section)
    seeds = sorted({*section.seeds, *(seed for _, seed in wanted)})
    for arm in section.arms:
        for seed in seeds:
            if (why := _why(section, arm, seed, wanted)) is not None:
                lacking.setdefault((arm.label, why), []).append(seed)
    for method, seed in wanted:
        if method not in {arm.method for arm in section.arms}:
            lacking.setdefault((method, "never started"), []).append(seed)
    return [
        f"{label}, {'seed' if len(seeds) == 1 else 'seeds'} {listing(seeds)}: {why}"
        for (label, why), seeds in lacking.items()
    ]


def _why(section: Section, arm: Arm, seed: int, wanted: Sequence[tuple[str, int]]) -> str | None:
    """Why an arm lacks a seed; None where it does not, or where nobody asked for it."""
    if seed in arm.seeds:
        return None
    tried = [(run, reason) for run, reason in arm.others if run.seed == seed]
    if tried:
        return fate(*tried[-1])
    if (arm.method, seed) in wanted:
        began = any(run.seed == seed for run in _all(section, arm.method))
        return None if began else "never started"  # one with other settings is in an arm of its own
    return "no run" if seed in section.seeds else None


def fate(run: Run, reason: str | None = None) -> str:
    """What became of a run that does not count, and where the same command would go on. reason: why it does not."""
    reason = reason or run.reason or ""
    if run.status not in _STOPPED:
        return f"{run.status}, {reason}" if reason and run.status not in reason else reason or run.status
    steps = run.number("steps")
    said = run.status
    if run.status == "preempted" and math.isfinite(steps):  # its reason says no more than where it goes on
        said = f"preempted at step {steps:.0f} ({reason.partition(';')[0]})"
    elif run.status == "running":
        said = f"killed, or still running: {reason}"
    elif reason:
        said = f"{run.status}, {reason}"
    saved = saved_step(run.folder)
    return f"{said}; " + ("nothing was saved" if saved is None else f"the same command goes on from step {saved}")


def saved_step(folder: Path) -> int | None:
    """The step of the last whole checkpoint of a run; None where there is none."""
    whole = [p for p in folder.glob("checkpoints/step-*.ckpt") if p.is_dir() or zipfile.is_zipfile(p)]
    steps = [re.fullmatch(r"step-(\d+)\.ckpt", path.name) for path in whole]
    return max((int(step[1]) for step in steps if step), default=None)


def _all(section: Section, method: str) -> Iterable[Run]:
    for arm in section.arms:
        if arm.method == method:
            yield from arm.counted
            yield from (run for run, _ in arm.others)


def _wanted(section: Section) -> list[tuple[str, int]]:
    """(method, seed) of every run that the launches of these runs were to start, in their order."""
    runs = [run for arm in section.arms for run in _all(section, arm.method)]
    found: dict[tuple[str, int], None] = {}
    for folder in dict.fromkeys(run.folder.parent for run in runs):
        swept = _swept(folder / "multirun.yaml")
        here = {"model": section.model, "dataset": section.dataset}
        if all(name in swept.get(key, [name]) for key, name in here.items()):
            pairs = [(method, seed) for method in swept.get("method", []) for seed in swept.get("seed", [])]
            found.update(dict.fromkeys((method, int(seed)) for method, seed in pairs if seed.isdigit()))
    return list(found)


def _swept(path: Path) -> dict[str, list[str]]:
    """Values of the settings that a multirun names, by setting; what it leaves at its default has one."""
    import yaml  # comes with omegaconf

    if not path.is_file():
        return {}
    try:
        task: Sequence[str] = yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"]["overrides"]["task"]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return {}
    swept = {"method": ["natural"], "seed": ["0"]}
    for override in task:
        key, _, value = str(override).partition("=")
        swept[key] = _values(value)
    swept["method"] = [_method(value) for value in swept["method"]]
    return swept


def _method(value: str) -> str:
    """A method as runs are named by it: `[a,b]` is a+b."""
    return "+".join(re.findall(r"\w+", value))


def _values(text: str) -> list[str]:
    """`a,b,[c,d]` and `range(1,4)` value by value; anything else is one value."""
    ranged = re.fullmatch(r"range\((?:(\d+),)?(\d+)\)", text.replace(" ", ""))
    if ranged:
        return [str(n) for n in range(int(as_number(ranged[1] or 0)), int(ranged[2]))]
    return re.findall(r"(?:\[[^\]]*\]|[^,\[])+", text)
