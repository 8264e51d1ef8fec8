"""Stages: the runs and fits that a method needs before its own run, as the user's configuration states them.

A stage is a mapping under `stages.NAME`, in the order in which stages are gone through. One that neither a strategy nor
a stage that is needed refers to is not run.
  overrides: what an ordinary run of the stage is started with, on top of the user's overrides that reach stages.
  next: overrides in place of these from the second round on (`rounds`).
  count: a set of so many runs, with {member} in the overrides their numbers from 0; `domains` for one per domain; a
      list for a count by round. over: a set of one run per list of further overrides.
  fit: a law (`_target_`) that is fitted to the runs of the stages `runs`. target, unit, at_step, at_size and
      constraints are those of `regimen fit`.
  converged: rounds stop when the mixture that this stage gives moved by less than this in every domain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regimen.core.errors import ConfigError, closest
from regimen.core.settings import is_under
from regimen.runs.budget import UNITS
from regimen.runs.handover import references

REACHES = ("model", "dataset", "objective", "optimizer", "trainer", "budget", "seed", "paths", "on_bad_record")
"""Groups and settings of the user that reach every stage unless the stage sets them."""

_RUN_KEYS = ("overrides", "next", "count", "over", "converged")
_FIT_KEYS = ("fit", "runs", "target", "unit", "constraints", "at_step", "at_size", "converged")


@dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a stage. number: which of the set, of how many. overrides: of its command line."""

    stage: str
    round: int
    number: int
    of: int
    overrides: tuple[str, ...]


def check(stages: Mapping[str, Any]) -> None:
    """Raises ConfigError for a stage that cannot be one."""
    for name, spec in stages.items():
        if not isinstance(spec, Mapping) or ("overrides" in spec) == ("fit" in spec):
            raise ConfigError(
                f"stages.{name} must be a run or a fit",
                got=spec if not isinstance(spec, Mapping) else sorted(spec),
                allowed="a mapping with `overrides: [...]`, or with `fit: {_target_: ...}` and `runs: STAGE`",
            )
        allowed = _FIT_KEYS if "fit" in spec else _RUN_KEYS
        for key in spec:
            if key not in allowed:
                raise ConfigError(
                    f"unknown setting stages.{name}.{key}{closest(str(key), allowed)}", allowed=", ".join(allowed)
                )
        if "fit" in spec:
            _check_runs(name, spec, stages)
        else:
            _check_set(name, spec)


def _check_runs(name: str, spec: Mapping[str, Any], stages: Mapping[str, Any]) -> None:
    before = [other for other in stages if list(stages).index(other) < list(stages).index(name)]
    for other in sources(spec):
        if other not in before or "fit" in stages[other]:
            raise ConfigError(
                f"stages.{name}.runs must name stages of runs before it", got=other, allowed=", ".join(before) or "none"
            )


def _check_set(name: str, spec: Mapping[str, Any]) -> None:
    lists = {key: spec[key] for key in ("overrides", "next") if key in spec}
    for key, value in lists.items():
        if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(o, str) for o in value):
            raise ConfigError(f"stages.{name}.{key} is a list of overrides", got=value, do="e.g. [method=uniform]")
    count = spec.get("count", 1)
    counts = count if isinstance(count, list) else [count]
    if not all(c == "domains" or (isinstance(c, int) and not isinstance(c, bool) and c > 0) for c in counts):
        raise ConfigError(
            f"stages.{name}.count counts runs", got=count, allowed="1 or more, `domains`, or a list by round"
        )


def sources(spec: Mapping[str, Any]) -> list[str]:
    """The stages whose runs a fit is made to."""
    runs = spec.get("runs")
    return [str(run) for run in runs] if isinstance(runs, list) else [str(runs)]


def needed(settings: Mapping[str, Any]) -> list[str]:
    """The stages that the run's strategies refer to, and those that these need, in order."""
    stages = settings["stages"]
    wanted = {stage for stage, _ in references(settings["strategies"])}
    before: set[str] = set()
    while wanted != before:
        before = set(wanted)
        for name in before & set(stages):
            spec = stages[name]
            texts = [*spec.get("overrides", []), *spec.get("next", [])]
            texts += [text for more in spec.get("over") or [] for text in more]
            wanted |= {stage for text in texts for stage in re.findall(r"\bstage\s*:\s*(\w+)", text)}
            wanted |= set(sources(spec)) if "fit" in spec else set()
    return [name for name in stages if name in wanted]


def members(settings: Mapping[str, Any], name: str, *, round_number: int, domains: int) -> list[Member]:
    """The runs of stage `name` in a round, from 1. domains: of the target's pool."""
    spec = settings["stages"][name]
    later = round_number > 1 and "next" in spec
    own = list(spec["next"] if later else spec["overrides"])
    extra: list[list[str]] = spec.get("over") or [[]]
    count = spec.get("count", 1)
    if isinstance(count, list):
        count = count[min(round_number, len(count)) - 1]
    count = domains if count == "domains" else count
    base = reaching(settings, own)
    out = []
    for more in extra:
        for member in range(count):
            told = {"{member}": member, "{count}": count, "{round}": round_number}
            overrides = tuple(_filled(override, told) for override in [*base, *own, *more])
            number, of = len(out), count * len(extra)
            out.append(Member(stage=name, round=round_number, number=number, of=of, overrides=overrides))
    return out


def _filled(override: str, told: Mapping[str, int]) -> str:
    for mark, value in told.items():
        override = override.replace(mark, str(value))
    return override


def reaching(settings: Mapping[str, Any], own: Sequence[str]) -> list[str]:
    """The user's overrides that reach a stage: those of REACHES which the stage does not set, and the proxy's."""
    proxy = settings["proxy"]
    set_by_stage = [_key(override) for override in own]
    out = []
    for override in settings["overrides"]:
        key = _key(override)
        if not is_under(key, REACHES) or is_under(key, tuple(set_by_stage)):
            continue
        if proxy["model"] is not None and is_under(key, ("model",)):
            continue
        if _budget(proxy) and is_under(key, ("budget",)):
            continue
        out.append(override)
    if proxy["model"] is not None and not is_under("model", tuple(set_by_stage)):
        out.append(f"model={proxy['model']}")
    if not any(is_under(key, ("budget",)) for key in set_by_stage):
        out += [f"budget.{unit}={amount}" for unit, amount in _budget(proxy).items()]
    return out


def _budget(proxy: Mapping[str, Any]) -> dict[str, Any]:
    return {unit: proxy[unit] for unit in UNITS if proxy.get(unit) is not None}


def _key(override: str) -> str:
    """The setting that an override sets, e.g. `model.config.hidden_size` of `++model.config.hidden_size=8`."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0].replace("/", ".")
