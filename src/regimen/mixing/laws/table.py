"""The table that mixing laws are fitted to: one row per run (or per evaluation of a run), its mixture and its losses.

Letters: n rows, K training domains, T targets (validation losses).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regimen.core.errors import ConfigError, closest

Array = NDArray[np.float64]
Target = str | Sequence[str] | Mapping[str, float] | None
"""`mean`, a target's name, several (a list, or separated by commas), weights by name; None is the mean."""

TOLERANCE = 5e-3  # of a mixture's sum: what published tables, rounded to three decimals, are off by


@dataclass(frozen=True, kw_only=True, eq=False)
class LawTable:
    """Mixtures and the losses they led to; domains are put into sorted order, whatever order they come in.

    domains: K names. mixtures: shares (n, K), rows sum to 1 give or take 0.005 and are kept as they are: `normalised`
        divides by the sum. targets: T names. losses: (n, T).
    natural: natural shares (K,), any positive scale. steps, sizes: optimizer steps and non-embedding parameters of each
        row (n,), for laws of training time and model size. runs: names (n,); rows of one run share a name.

    Raises:
        ConfigError: a cell that is no finite number, a mixture off the simplex, counts that do not fit together.
    """

    domains: Sequence[str]
    mixtures: Array
    targets: Sequence[str]
    losses: Array
    natural: Array | None = None
    steps: Array | None = None
    sizes: Array | None = None
    runs: Sequence[str] = ()

    def __post_init__(self) -> None:
        order = np.argsort(np.array([str(name) for name in self.domains]), kind="stable")
        names = _distinct(self.domains, "domain")
        targets = _distinct(self.targets, "target")
        mixtures = matrix(self.mixtures, "mixtures", len(names))  # (n, K)
        n = len(mixtures)
        losses = matrix(self.losses, "losses", len(targets))  # (n, T)
        if len(losses) != n:
            raise ConfigError(
                "mixtures and losses have different numbers of rows",
                got=f"{n} mixtures, {len(losses)} rows of losses",
                do="give one row of losses for each mixture, in the same order",
            )
        on_simplex(mixtures, "mixture")
        natural = None if self.natural is None else shares(self.natural, len(names))[order]  # (K,)
        runs = tuple(str(name) for name in self.runs) or tuple(f"row {i + 1}" for i in range(n))
        assert len(runs) == n, "one run name per row"
        given = {"steps": _column(self.steps, "steps", n), "sizes": _column(self.sizes, "sizes", n)}
        put = object.__setattr__
        put(self, "domains", tuple(names[i] for i in order))
        put(self, "mixtures", mixtures[:, order])
        put(self, "targets", targets)
        put(self, "losses", losses)
        put(self, "natural", natural)
        put(self, "runs", runs)
        for name, column in given.items():
            put(self, name, column)

    def __len__(self) -> int:
        return len(self.mixtures)

    def normalised(self) -> LawTable:
        """The table with mixtures divided by their sums."""
        return replace(self, mixtures=self.mixtures / self.mixtures.sum(1, keepdims=True))

    def rows(self, keep: NDArray[Any]) -> LawTable:
        """The rows of a mask or of indices (m,)."""
        names = np.array(self.runs, dtype=object)[keep]
        return replace(
            self,
            mixtures=self.mixtures[keep],
            losses=self.losses[keep],
            steps=None if self.steps is None else self.steps[keep],
            sizes=None if self.sizes is None else self.sizes[keep],
            runs=tuple(names.tolist()),
        )

    def only(self, targets: Sequence[str]) -> LawTable:
        """The table with these targets alone, in this order. Raises ConfigError for one that is not there."""
        for name in targets:
            if name not in self.targets:
                raise ConfigError(
                    f"the table has no losses of {name!r}{closest(name, self.targets)}",
                    got=f"target={name}",
                    allowed=", ".join(("mean", *self.targets)),
                    do=f"target={self.targets[0]}",
                )
        columns = [list(self.targets).index(name) for name in targets]
        return replace(self, targets=tuple(targets), losses=self.losses[:, columns])

    def last(self) -> LawTable:
        """The last evaluation of each run. Raises ConfigError where runs ended at different steps."""
        if self.steps is None:
            return self
        ends: dict[str, int] = {}
        for i, name in enumerate(self.runs):
            if name not in ends or self.steps[i] >= self.steps[ends[name]]:
                ends[name] = i
        kept = np.array(list(ends.values()))
        steps = sorted(set(self.steps[kept].tolist()))
        if len(steps) > 1:
            raise ConfigError(
                "the runs ended at different steps, so their losses do not compare",
                got=", ".join(f"{step:g}" for step in steps[:8]),
                do="train every mixture for the same budget.steps, or use a law of training time: law=bimix",
            )
        return self.rows(kept)

    def same_domains(self, other: LawTable, what: str = "test table") -> LawTable:
        """`other` with this table's targets, once its domains are the same. Raises ConfigError where they are not."""
        missing = [name for name in self.domains if name not in other.domains]
        extra = [name for name in other.domains if name not in self.domains]
        if missing or extra:
            raise ConfigError(
                f"the {what} has other domains than the table the law was fitted to",
                got=f"missing: {', '.join(missing) or 'none'}; extra: {', '.join(extra) or 'none'}",
                allowed=", ".join(self.domains),
                do="give both tables the same mixture columns",
            )
        return other.only(self.targets)


def target_weights(targets: Sequence[str], target: Target) -> dict[str, float]:
    """Weight of each wanted target, summing to 1. Raises ConfigError for unknown names and useless weights."""
    if target is None or target == "mean":
        return dict.fromkeys(targets, 1 / len(targets))
    if isinstance(target, Mapping):
        wanted: Mapping[str, float] = target
    else:
        names = target.split(",") if isinstance(target, str) else target
        wanted = {str(name).strip(): 1.0 for name in names}
    for name in wanted:
        if name not in targets:
            raise ConfigError(
                f"no losses of {name!r} in the table{closest(name, targets)}",
                got=f"target={name}",
                allowed=", ".join(("mean", *targets)),
                do=f"target={targets[0]}",
            )
    weights = shares([wanted[name] for name in wanted], len(wanted), "weights of the targets")  # (T',)
    return {name: float(w) for name, w in zip(wanted, weights, strict=True) if w > 0}


def matrix(values: Any, what: str, width: int) -> Array:
    """A matrix (n, width) of finite numbers. Raises ConfigError naming the first cell that is not one."""
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the {what} are not a table of numbers", got=error, do="correct the cell") from error
    if found.ndim != 2 or found.shape[1] != width or not len(found):
        raise ConfigError(f"the {what} have another shape", got=found.shape, allowed=f"(at least one row, {width})")
    bad = np.argwhere(~np.isfinite(found))
    if len(bad):
        row, column = bad[0].tolist()
        raise ConfigError(
            f"the {what} hold {len(bad)} cells that are no finite number",
            got=f"row {row + 1}, column {column + 1}: {found[row, column]}",
            allowed="finite numbers",
            do="drop the row (a run that diverged tells the law nothing), or correct the cell",
        )
    return found


def on_simplex(mixtures: Array, what: str) -> None:
    """Raises ConfigError unless each row of (n, K) is a mixture."""
    sums = mixtures.sum(1)  # (n,)
    bad = np.flatnonzero((np.abs(sums - 1) > TOLERANCE + 1e-9) | (mixtures < 0).any(1))
    if len(bad):
        row = int(bad[0])
        raise ConfigError(
            f"{len(bad)} of {len(mixtures)} rows are no {what}",
            got=f"row {row + 1}: sum {sums[row]:.4f}, smallest share {mixtures[row].min():.4g}",
            allowed=f"shares of 0 or more that sum to 1, give or take {TOLERANCE:g}",
            do="give shares, not percentages or counts, and all domains of the run",
        )


def shares(values: Any, width: int, what: str = "natural shares") -> Array:
    """Weights (width,) divided by their sum. Raises ConfigError for negative ones, or none above 0."""
    found = matrix(np.asarray(values, dtype=object)[None], what, width)[0]
    if (found < 0).any() or found.sum() <= 0:
        raise ConfigError(f"the {what} are no shares", got=found.tolist(), allowed="numbers of 0 or more, one above 0")
    total: Array = found / found.sum()
    return total


def _distinct(names: Iterable[object], what: str) -> tuple[str, ...]:
    found = tuple(str(name) for name in names)
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice or not found:
        raise ConfigError(
            f"the table has a {what} twice" if twice else f"the table has no {what}",
            got=", ".join(twice) or "no columns",
            do=f"give each {what} one column",
        )
    return found


def _column(values: Any, what: str, n: int) -> Array | None:
    if values is None:
        return None
    column = matrix(np.asarray(values, dtype=object).reshape(-1, 1), what, 1)[:, 0]  # (n,)
    if len(column) != n or (column <= 0).any():
        raise ConfigError(
            f"the {what} do not fit the table",
            got=f"{len(column)} numbers, smallest {column.min():g}",
            allowed=f"{n} numbers above 0",
        )
    return column
