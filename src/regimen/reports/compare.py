"""Every number of a section: means over seeds, differences to the baseline in pairs of seeds, tests, costs.

Runs are compared at equal steps. Where rows differ in length, a method that selects or prefers short ones then trains
on fewer target tokens, which is told (`excess`) and taken out by the ranking at equal tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from regimen.evaluation.statistics import Interval, SignFlip, holm, mean_interval, paired_interval, sign_flip
from regimen.reports.anchors import Chance, ZeroShot, by_chance, zero_shot
from regimen.reports.curves import Place, Ranking, rank_at_equal_budget
from regimen.reports.groups import TOKEN_TOLERANCE, Arm, Section

SUMMARIES = ("macro", "micro")
"""The two columns over all domains: the mean over domains, and the mean over tokens or bytes."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What is compared: a column (`macro`, `micro` or a domain) of a measure. Lower is better."""

    column: str
    measure: str

    @property
    def name(self) -> str:
        """`macro/bits_per_byte`."""
        return f"{self.column}/{self.measure}"

    @property
    def unit(self) -> str:
        """The unit of the measure."""
        return {"bits_per_byte": "bits/byte", "loss": "nats/token"}.get(self.measure, self.measure)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Method minus baseline over the seeds that both have; `unpaired` are the seeds that only one of them has."""

    interval: Interval
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    unpaired: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Significance:
    """The sign-flip test of the metric against the baseline, `holm` adjusted over the `family` of such tests."""

    flip: SignFlip
    holm: float
    family: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """One arm against the baseline.

    `excess` is the part by which it trained on more tokens than the baseline (below 0: on fewer), in the mean over the
    seeds that both have; `overhead` the same of FLOPs. NaN for the baseline. `obstacles` are the reasons why its final
    scores are not compared (another pool, another budget). `foreign` says that its evaluation itself measures something
    else, so it enters no ranking and no shared figure either.
    """

    arm: Arm
    scores: Mapping[str, Interval]
    differences: Mapping[str, Difference]
    obstacles: tuple[str, ...]
    foreign: bool
    test: Significance | None
    excess: float
    overhead: float

    @property
    def unmatched(self) -> bool:
        """Whether it trained on a number of tokens that differs noticeably from the baseline's."""
        return abs(self.excess) > TOKEN_TOLERANCE


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """One section with all its numbers; `results` has the baseline first, then the best first.

    `zero_shot` is None without an evaluation at step 0. `chance` are comparisons of the same kind, each of methods that
    select rows with a random subset; `alone` the arms that select rows and have no random one beside them.
    """

    section: Section
    metric: Metric
    results: tuple[Result, ...]
    domains: tuple[str, ...]
    rankings: tuple[Ranking, ...]
    zero_shot: ZeroShot | None = None
    chance: tuple[Comparison, ...] = ()
    alone: tuple[Arm, ...] = ()

    @property
    def baseline(self) -> Result:
        """The arm that the others are compared with."""
        return self.results[0]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the score table: macro, micro, then the domains by name."""
        return (*SUMMARIES, *self.domains)

    @property
    def unmatched(self) -> bool:
        """Whether any method trained on a number of tokens that differs noticeably from the baseline's."""
        return any(result.unmatched for result in self.results)

    def ranking(self, axis: str) -> Ranking | None:
        """The ranking at equal `tokens` or `flops`."""
        return next((ranking for ranking in self.rankings if ranking.axis == axis), None)

    def at_equal_tokens(self, result: Result) -> Place | None:
        """The result's place there; None where it has none."""
        ranking = self.ranking("tokens")
        return ranking.of(result.arm) if ranking else None


def compare(section: Section, metric: Metric) -> Comparison:
    """All numbers of a section whose first arm is the baseline, and what stands beside its methods."""
    whole = _compare(section, metric, {})
    native = [result.arm for result in whole.results if not result.foreign and result.arm.counted]
    by_axis = {ranking.axis: ranking.at for ranking in whole.rankings}
    beside: Chance = by_chance(native)
    return replace(
        whole,
        zero_shot=zero_shot(native, columns=whole.columns, measure=metric.measure, column=metric.column),
        chance=tuple(
            _compare(replace(section, arms=(random, *arms)), metric, by_axis)
            for random, arms in beside.pairs
            if random is not section.arms[0]
        ),
        alone=beside.alone,
    )


def _compare(section: Section, metric: Metric, budgets: Mapping[str, float]) -> Comparison:
    """The numbers alone; `budgets` are those at which the arms are ranked, by axis, where they are fixed."""
    domains = sorted({d for arm in section.arms for run in arm.counted for d in run.part("evaluation", "domains")})
    columns = (*SUMMARIES, *domains)
    base = section.arms[0]
    results = [_result(arm, base, columns, metric) for arm in section.arms]
    others = _with_holm(sorted(results[1:], key=lambda r: _order(r, metric)), metric)
    native = [result.arm for result in (results[0], *others) if not result.foreign and result.arm.counted]
    rankings = tuple(
        rank_at_equal_budget(native, metric.name, axis=axis, at=budgets.get(axis)) for axis in ("tokens", "flops")
    )
    return Comparison(
        section=section,
        metric=metric,
        results=(results[0], *others),
        domains=tuple(domains),
        rankings=tuple(ranking for ranking in rankings if ranking is not None),
    )


def _result(arm: Arm, base: Arm, columns: tuple[str, ...], metric: Metric) -> Result:
    foreign, obstacles = _obstacles(arm, base)
    differences = {}
    if arm is not base and not obstacles:
        pairs = ((column, paired(arm, base, column, metric.measure)) for column in columns)
        differences = {column: difference for column, difference in pairs if difference}
    scores = {column: score for column in columns if (score := _score(arm, column, metric.measure))}
    cost, base_cost = arm.mean("flops", "total"), base.mean("flops", "total")
    overhead = math.nan if arm is base or not base_cost else cost / base_cost - 1
    return Result(
        arm=arm,
        scores=scores,
        differences=differences,
        obstacles=tuple(obstacles),
        foreign=foreign,
        test=None,
        excess=math.nan if arm is base else _excess(arm, base),
        overhead=overhead,
    )


def _excess(arm: Arm, base: Arm) -> float:
    mine, theirs = arm.by_seed(), base.by_seed()
    seeds = mine.keys() & theirs.keys()
    if not seeds:
        return arm.mean("tokens") / base.mean("tokens") - 1 if base.mean("tokens") else math.nan
    total = sum(theirs[s].number("tokens") for s in seeds)
    return sum(mine[s].number("tokens") for s in seeds) / total - 1 if total else math.nan


def _score(arm: Arm, column: str, measure: str) -> Interval | None:
    values = [value for run in arm.counted if math.isfinite(value := run.score(column, measure))]
    return mean_interval(values) if values else None


def paired(arm: Arm, base: Arm, column: str, measure: str) -> Difference | None:
    """The difference over the seeds for which both arms have a finite score; None without such a seed."""
    mine = {s: v for s, run in arm.by_seed().items() if math.isfinite(v := run.score(column, measure))}
    theirs = {s: v for s, run in base.by_seed().items() if math.isfinite(v := run.score(column, measure))}
    seeds = tuple(sorted(mine.keys() & theirs.keys()))
    if not seeds:
        return None
    return Difference(
        interval=paired_interval([mine[s] for s in seeds], [theirs[s] for s in seeds]),
        values=tuple(mine[s] - theirs[s] for s in seeds),
        seeds=seeds,
        unpaired=tuple(sorted(mine.keys() ^ theirs.keys())),
    )


def _obstacles(arm: Arm, base: Arm) -> tuple[bool, list[str]]:
    """Whether the arm's evaluation is another one than the baseline's, and why the two cannot be compared."""
    if not (arm.counted and base.counted) or arm is base:
        return False, []
    kinds = {"pool": "a different pool of data", "tokenizer": "a different tokenizer"}
    obstacles = [text for kind, text in kinds.items() if _prints(arm, kind) != _prints(base, kind)]
    if arm.mean("parameters") != base.mean("parameters") and math.isfinite(arm.mean("parameters")):
        obstacles.append(f"another model size ({arm.mean('parameters'):,.0f} parameters)")
    foreign = bool(obstacles)
    mine, theirs = arm.mean("tokens"), base.mean("tokens")
    if abs(mine - theirs) > TOKEN_TOLERANCE * theirs and arm.mean("steps") != base.mean("steps"):
        obstacles.append(f"another token budget ({mine:,.0f} against {theirs:,.0f})")
    return foreign, obstacles


def _prints(arm: Arm, kind: str) -> set[str]:
    return {run.text("fingerprints", kind) for run in arm.counted}


def _order(result: Result, metric: Metric) -> tuple[int, float]:
    difference, score = result.differences.get(metric.column), result.scores.get(metric.column)
    if difference:
        return 0, difference.interval.mean
    return (1 if score else 2), score.mean if score else 0.0


def _with_holm(results: list[Result], metric: Metric) -> list[Result]:
    """The results with their tests: one family, every method with two or more pairs on the metric."""
    family = [r for r in results if metric.column in r.differences and len(r.differences[metric.column].seeds) > 1]
    flips = {id(r): sign_flip(r.differences[metric.column].values) for r in family}
    adjusted = dict(zip(map(id, family), holm([flips[id(r)].p for r in family]), strict=True))
    return [
        replace(r, test=Significance(flip=flips[id(r)], holm=adjusted[id(r)], family=len(family)))
        if id(r) in flips
        else r
        for r in results
    ]
