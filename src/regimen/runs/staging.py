"""Runs the stages of a method before its own run: what the store holds is used, what it lacks is trained, in order.

Rank 0 decides and writes each decision to `stages.jsonl` in the run's folder; the other ranks read it there and take no
locks. A stage that another process is training is waited for; of a set, other members are trained meanwhile.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from regimen.core.errors import ConfigError, RegimenError, RunError, closest
from regimen.core.files import disk_errors
from regimen.data.pool import Pool
from regimen.runs import parting, stages, validate
from regimen.runs.compose import compose_plain
from regimen.runs.experiment import make_pool, refuse_no_target
from regimen.runs.handover import given, references, rehearsed, resolve
from regimen.runs.identity import run_name
from regimen.runs.locks import Busy, held
from regimen.runs.store import Store, fit_key, is_finished, run_key
from regimen.runs.strategies import instantiate, make_strategies

PLAN = "stages.jsonl"
_POLL_SECONDS = 1.0
_SILENCE_SECONDS = 3600.0  # after which the other ranks give rank 0 up

Train = Callable[[Mapping[str, Any], Path], None]


@dataclass(frozen=True, kw_only=True)
class Done:
    """A finished member of a stage. trained: by this attempt, not found."""

    stage: str
    round: int
    number: int
    key: str
    folder: str
    trained: bool

    def cost(self) -> dict[str, float]:
        """Seconds, tokens and FLOPs of the run, its own stages included; a fit costs its seconds."""
        folder = Path(self.folder)
        if (folder / "fit.json").is_file():
            return {"seconds": json.loads((folder / "fit.json").read_text()).get("seconds", 0.0)}
        told = json.loads((folder / "summary.json").read_text())
        return {"seconds": told["seconds"]["total"], "tokens": told["tokens"], "flops": told["flops"]["total"]}


class Staging:
    """The stages of one run, on rank 0. train: trains a run in a folder that is held."""

    def __init__(self, settings: Mapping[str, Any], folder: Path, token: str, pool: Pool, train: Train) -> None:
        self.settings, self.folder, self.pool, self.train = settings, folder, pool, train
        self.store = Store(Path(settings["paths"]["store"]))
        self.done: list[Done] = []
        self._latest: dict[str, list[Done]] = {}
        self._plan = folder / PLAN
        self._pools: dict[str, Pool] = {}
        self._plan.write_text(json.dumps({"token": token}) + "\n")

    def run(self) -> list[Done]:
        """Have every stage finished. Raises RegimenError, with the stage named, where one cannot be."""
        try:
            rehearse(self.settings, self.pool)
            for number in range(1, self.settings["rounds"] + 1):
                if self._round(number):
                    break
        except BaseException:
            self._note({"action": "stop"})
            raise
        self._note({"action": "end", "done": [asdict(done) for done in self.done]})
        return self.done

    def _round(self, number: int) -> bool:
        """Go through the stages once; whether they have converged."""
        converged = False
        for name in stages.needed(self.settings):
            spec = self.settings["stages"][name]
            before = self._mixture(name) if "converged" in spec else None
            found = [self._fit(name, spec, number)] if "fit" in spec else self._set(name, number)
            self._latest[name] = sorted(found, key=lambda done: done.number)
            self.done += self._latest[name]
            if before is not None:
                after = self._mixture(name)
                assert after is not None
                converged |= max(abs(after[d] - before[d]) for d in after) < spec["converged"]
        return converged

    def _mixture(self, name: str) -> dict[str, float] | None:
        return find_in(self._latest)(name, "mixture") if name in self._latest else None

    def _set(self, name: str, number: int) -> list[Done]:
        """The finished runs of a stage; the members that others are busy with come last."""
        waiting = stages.members(self.settings, name, round_number=number, domains=len(self.pool.domains))
        found: list[Done] = []
        while waiting:
            busy = []
            for member in waiting:
                try:
                    found.append(self._member(member))
                except Busy:
                    busy.append(member)
            if len(busy) == len(waiting):
                self._plan.touch()  # the other ranks see that this one lives
                time.sleep(_POLL_SECONDS)
            waiting = busy
        return found

    def _member(self, member: stages.Member) -> Done:
        where = f"stages.{member.stage}"
        settings = compose_plain(member.overrides, where=where)
        settings["strategies"] = resolve(settings["strategies"], find_in(self._latest))
        try:
            validate.settings(settings)
            pool = self._pool(settings)
            key, name = run_key(settings, pool), run_name(settings)
            folder = self.store.place("run", name, key)
            trained = False
            if not is_finished(folder):
                with held(folder):
                    trained = not is_finished(folder)
                    if trained:
                        part = f" {member.number + 1} of {member.of}" if member.of > 1 else ""
                        print(f"stage {member.stage}{part}: {name} -> {folder}", file=sys.stderr)
                        self._note({"action": "train", "folder": str(folder), "settings": settings})
                        self.train(settings, folder)
        except Busy:
            raise
        except RegimenError as error:
            raise type(error)(f"in stage {member.stage}: {error}") from error
        self.store.note("run", name, key, folder, asked_by=self.folder.name)
        return Done(
            stage=member.stage, round=member.round, number=member.number, key=key, folder=str(folder), trained=trained
        )

    def _fit(self, name: str, spec: Mapping[str, Any], number: int) -> Done:
        """A fit to all runs, of all rounds so far, of the stages it names."""
        runs = [done for source in stages.sources(spec) for done in self.done if done.stage == source]
        key = fit_key(spec, [done.key for done in runs])
        title = str(spec["fit"]["_target_"]).rpartition(".")[2].lower()
        folder = self.store.place("fit", title, key)
        while True:
            try:
                with held(folder):
                    trained = not is_finished(folder)
                    if trained:
                        fit(name, spec, [Path(done.folder) for done in runs], folder)
                break
            except Busy:
                self._plan.touch()
                time.sleep(_POLL_SECONDS)
        self.store.note("fit", title, key, folder, asked_by=self.folder.name)
        return Done(stage=name, round=number, number=0, key=key, folder=str(folder), trained=trained)

    def _pool(self, settings: Mapping[str, Any]) -> Pool:
        """The pool of a stage; opened once for all members of a set."""
        name = json.dumps([settings["dataset"], settings["paths"]["pools"]], sort_keys=True, default=str)
        if name not in self._pools:
            self._pools[name] = make_pool(settings, progress=False)
        return self._pools[name]

    def _note(self, line: Mapping[str, Any]) -> None:
        with disk_errors(self._plan), self._plan.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")


def fit(name: str, spec: Mapping[str, Any], runs: list[Path], folder: Path) -> None:
    """Fit the law of stage `name` to finished runs and leave fit.json in `folder`."""
    from regimen.mixing.laws.propose import Constraints
    from regimen.runs.fitting.fit import fit_runs

    given = spec.get("constraints") or {}
    known = [field.name for field in fields(Constraints)]
    for key in given:
        if key not in known:
            raise ConfigError(
                f"unknown setting stages.{name}.constraints.{key}{closest(key, known)}", allowed=", ".join(known)
            )
    law = instantiate(f"stages.{name}.fit", spec["fit"])
    fit_runs(
        law,
        runs,
        folder,
        target=spec.get("target", "mean"),
        unit=spec.get("unit", "loss"),
        constraints=Constraints(**given),
        at_step=spec.get("at_step"),
        at_size=spec.get("at_size"),
    )


def find_in(latest: Mapping[str, list[Done]]) -> Callable[[str, str], Any]:
    """From (stage, what) to what the last finished run of a stage gives; of a set, a list of what each member gives."""

    def find(stage: str, what: str) -> Any:
        if stage not in latest:
            raise ConfigError(
                "a reference to a stage that has not run", got=stage, allowed=", ".join(latest) or "no stage before it"
            )
        values = [given(Path(done.folder), what, stage=stage) for done in latest[stage]]
        return values if len(values) > 1 else values[0]

    return find


def stage_costs(done: list[Done]) -> dict[str, float]:
    """Seconds, tokens and FLOPs of all stages together, whoever paid for them."""
    total = {"seconds": 0.0, "tokens": 0.0, "flops": 0.0}
    for each in {d.key: d for d in done}.values():
        for unit, amount in each.cost().items():
            total[unit] += amount
    return total


def resolved(settings: Mapping[str, Any], done: list[Done]) -> dict[str, Any]:
    """The settings with each reference to a stage replaced by what its last round gave."""
    latest: dict[str, list[Done]] = {}
    for name in dict.fromkeys(d.stage for d in done):
        last = max(d.round for d in done if d.stage == name)
        latest[name] = [d for d in done if d.stage == name and d.round == last]
    return {**settings, "strategies": resolve(settings["strategies"], find_in(latest))}


def follow(folder: Path, token: str, train: Train) -> list[Done]:
    """The stages on another rank than 0: join what rank 0 trains, in its order."""
    plan, seen = folder / PLAN, 1
    deadline = time.time() + _SILENCE_SECONDS
    while time.time() < deadline:
        lines = _whole_lines(plan)
        if not lines or lines[0].get("token") != token or len(lines) <= seen:
            if plan.is_file():
                deadline = max(deadline, plan.stat().st_mtime + _SILENCE_SECONDS)
            parting.look_around()
            time.sleep(0.1)
            continue
        line = lines[seen]
        seen += 1
        if line["action"] == "stop":
            raise RunError("rank 0 stopped in a stage; its message says why")
        if line["action"] == "end":
            return [Done(**done) for done in line["done"]]
        train(line["settings"], Path(line["folder"]))
    raise RunError("rank 0 has been silent", got=plan, do="look at the log of rank 0")


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def rehearse(settings: Mapping[str, Any], pool: Pool) -> None:
    """Compose and build every stage once with stand-ins, so that a mistake in the last is found early."""
    names = list(settings["stages"])
    for stage, _ in references(settings["strategies"]):
        if stage not in names:
            raise ConfigError("a strategy refers to a stage that is not there", got=stage, allowed=", ".join(names))
    stand_in = rehearsed(pool.domains, {name: _size(settings, name, pool) for name in names})
    for name in stages.needed(settings):
        spec = settings["stages"][name]
        if "fit" in spec:
            instantiate(f"stages.{name}.fit", spec["fit"])
            continue
        for number in (1, 2) if "next" in spec and settings["rounds"] > 1 else (1,):
            member = stages.members(settings, name, round_number=number, domains=len(pool.domains))[-1]
            composed = compose_plain(member.overrides, where=f"stages.{name}")
            validate.settings(composed)
            made = make_strategies(resolve(composed["strategies"], stand_in))
            if composed["dataset"] == settings["dataset"]:
                refuse_no_target(made, pool)
    own = make_strategies(resolve(settings["strategies"], stand_in))
    refuse_no_target(own, pool)
    for placed in own:
        placed.strategy.init(pool.train.index)


def _size(settings: Mapping[str, Any], name: str, pool: Pool) -> int:
    """Runs of a stage in the first round; a fit is one."""
    if "fit" in settings["stages"][name]:
        return 1
    return len(stages.members(settings, name, round_number=1, domains=len(pool.domains)))
