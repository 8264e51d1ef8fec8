"""MixMin on run folders: one run per domain, and what each makes of every validation row."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regimen.core.errors import ConfigError
from regimen.core.files import write_json
from regimen.mixing.laws.constraints import Constraints
from regimen.mixing.laws.mixmin import MixMin
from regimen.mixing.laws.skill_graph import SkillGraph, skill_graph
from regimen.mixing.laws.table import Array, Target, target_weights
from regimen.runs.fitting.figure import draw
from regimen.runs.fitting.tables import evaluations, mixture_of, summary_of

HELD_OUT = 0.2  # of the target rows
ROWS = "validation_rows.npz"


class Sources(NamedTuple):
    """Log-probability (n, K) of validation rows under each source's model, tokens (n,), domains (n,), source names."""

    log_probs: Array
    tokens: Array
    domains: list[str]
    names: list[str]
    natural: dict[str, float]


def one_domain_runs(runs: Sequence[Path]) -> dict[str, Path]:
    """The run on each domain alone, by domain. Raises ConfigError unless every run is one and no domain has two."""
    found: dict[str, Path] = {}
    for run in runs:
        mixture = mixture_of(summary_of(run))
        domain = max(mixture, key=lambda name: mixture[name])
        if mixture[domain] < 1 - 1e-6 or domain in found:
            raise ConfigError(
                "this needs one run per domain, trained on it alone",
                got=f"{run.name}: {mixture[domain]:.3f} of {domain}" + (", which has a run" if domain in found else ""),
                do="train one run per domain: its share 1, the others 0",
            )
        found[domain] = run
    return dict(sorted(found.items()))


def read_sources(runs: Sequence[Path]) -> Sources:
    """What the runs' models make of the validation rows. Raises ConfigError where runs lack rows, or have others."""
    of = one_domain_runs(runs)
    columns: list[Array] = []
    first: dict[str, NDArray[Any]] = {}
    for run in of.values():
        path = run / ROWS
        if not path.is_file():
            raise ConfigError(f"run {run.name} has no losses of validation rows", got=path, do="train it again")
        with np.load(path, allow_pickle=False) as file:
            rows = {key: file[key] for key in ("ids", "domain", "loss", "tokens")}
        first = first or rows
        if not np.array_equal(rows["ids"], first["ids"]):
            raise ConfigError(f"run {run.name} has other validation rows than the first run", do="use one pool for all")
        columns.append(-np.asarray(rows["loss"], dtype=np.float64))
    natural: dict[str, float] = summary_of(next(iter(of.values())))["mixture"]["natural"]
    names = list(natural)
    domains = [names[d] if first["domain"].dtype.kind in "iu" else str(d) for d in first["domain"].tolist()]
    return Sources(np.stack(columns, 1), first["tokens"].astype(np.float64), domains, list(of), natural)


def fit_sources(
    law: MixMin, runs: Sequence[Path], out: Path, *, target: Target, constraints: Constraints, seed: int
) -> dict[str, Any]:
    """Fit MixMin to one-domain runs on validation rows of the target domains; writes and returns fit.json's content.

    A fifth of each target domain's rows is held out: the proposed mixture is judged on rows it was not fitted to.
    """
    if constraints.kl:
        raise ConfigError("MixMin has no divergence from the natural shares", got=f"kl={constraints.kl}", do="kl=0")
    began = time.perf_counter()
    sources = read_sources(runs)
    constraints.bounds(sources.names)
    weights = target_weights(sorted(set(sources.domains)), target)
    fit_rows, held_rows = _split(sources.domains, weights, seed)
    fitted = law.fit(sources.log_probs[fit_rows], sources.tokens[fit_rows], sources.names)
    mixture = fitted.optimum(constraints)
    natural = np.array([sources.natural[name] for name in fitted.domains])
    natural /= natural.sum()
    held = dataclasses.replace(fitted, log_probs=sources.log_probs[held_rows], lengths=sources.tokens[held_rows])
    proposed = dict(zip(fitted.domains, mixture.tolist(), strict=True))
    shares = dict(zip(fitted.domains, natural.tolist(), strict=True))
    content = {
        "format": 1,
        "law": "mixmin",
        "settings": dataclasses.asdict(law),
        "target": weights,
        "unit": "loss",
        **dict.fromkeys(("spearman", "mae", "mse", "r2")),
        "held_out": {"kind": "a fifth of the target rows", "rows": len(held_rows), **_nats(held, mixture, natural)},
        "parameters": fitted.parameters,
        "mixture": proposed,
        "natural": shares,
        "predicted": _nats(fitted, mixture, natural),
        "constraints": dataclasses.asdict(constraints),
        "notes": ["objective: nats per token of the mixture of the sources' models on the target rows"],
        "rows": len(fit_rows),
        "seconds": round(time.perf_counter() - began, 3),
    }
    write_json(out / "fit.json", content)
    draw(out / "fit.png", [], proposed, shares)
    return content


def _split(domains: Sequence[str], weights: dict[str, float], seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows to fit and rows to hold out, a fifth of each target domain; equal weights are required of the domains."""
    if len(set(np.round(list(weights.values()), 12).tolist())) > 1:
        raise ConfigError(
            "MixMin's target is a set of rows, so its domains have no weights",
            got=weights,
            do="target=NAME, several separated by commas, or mean",
        )
    rng = np.random.default_rng(seed)
    fit, held = [], []
    for name in weights:
        rows = rng.permutation(np.flatnonzero(np.array([domain == name for domain in domains])))
        cut = round(HELD_OUT * len(rows))
        held.append(rows[:cut])
        fit.append(rows[cut:])
    if not sum(map(len, held)):
        raise ConfigError("too few target rows to hold any out", got=f"{sum(map(len, fit))} rows", allowed="3 or more")
    return np.sort(np.concatenate(fit)), np.sort(np.concatenate(held))


def _nats(fitted: Any, mixture: Array, natural: Array) -> dict[str, float]:
    proposed, at_natural = fitted.predict(np.stack([mixture, natural])).tolist()
    return {"proposed": proposed, "natural": at_natural}


def skill_graph_of_runs(runs: Sequence[Path], *, unit: str = "loss") -> SkillGraph:
    """The skill graph of one-domain runs, from their first evaluation (at step 0) and their last.

    Raises ConfigError where a run was not evaluated before its first step.
    """
    start, end = {}, {}
    for domain, run in one_domain_runs(runs).items():
        told = evaluations(run, unit)
        if told[0].step > 0 or len(told) < 2:
            raise ConfigError(
                f"run {run.name} was not evaluated before its first step and after its last",
                got=", ".join(f"{e.step:g}" for e in told),
                do="train with evaluation.at=[0,1]",
            )
        start[domain], end[domain] = told[0].losses, told[-1].losses
    return skill_graph(start, end)


def fit_graph(runs: Sequence[Path], out: Path, *, unit: str) -> dict[str, Any]:
    """The skill graph of one-domain runs, written to fit.json as `graph`; returns its content."""
    began = time.perf_counter()
    graph = skill_graph_of_runs(runs, unit=unit).parameters
    content = {
        "format": 1,
        "law": "skill_graph",
        "unit": unit,
        "graph": graph,
        "rows": len(graph),
        "seconds": round(time.perf_counter() - began, 3),
    }
    write_json(out / "fit.json", content)
    return content
