"""The four kinds of strategy: frozen dataclasses whose fields are hyper-parameters, pure functions over a named state.

Letters: n rows seen, B rows of the global batch, K domains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.observation import Observation as Observation
from regimen.core.observation import WeighedBatch as WeighedBatch
from regimen.core.plan import Draw
from regimen.core.ranks import ascending, inverse, is_permutation, shuffle_windows
from regimen.core.signal import Signal

Kind = Literal["selector", "mixer", "orderer", "weighter"]
KINDS: tuple[Kind, ...] = ("selector", "mixer", "orderer", "weighter")  # the fixed sequence: keep, mix, order, weight


class Empty(NamedTuple):
    """The state of a strategy that remembers nothing."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A data decision. Pure: no files, no globals, no process groups, no random numbers but the generator it is given.

    State is a NamedTuple of tensors and numbers, so that a checkpoint holds it.
    """

    kind: ClassVar[Kind]
    followed: ClassVar[bool] = False  # the record tells the scores it went by along training
    model_copies: ClassVar[int] = 0  # numbers that its state keeps for each one that the model trains

    @property
    def measures_once(self) -> bool:
        """Whether what it needs is measured for its first decision alone; its state keeps what later ones want."""
        return False

    def init(self, index: PoolIndex) -> Any:
        """The state before the first step."""
        return Empty()

    def watches(self) -> tuple[Signal, ...]:
        """Free signals wanted in `observe` after every optimizer step."""
        return ()

    def needs(self) -> tuple[Signal, ...]:
        """Signals wanted in `decide` for every row asked for."""
        return ()

    def needs_of_target(self) -> tuple[Signal, ...]:
        """Signals wanted in `decide` for every row of the target set."""
        return ()

    def observe(self, state: Any, seen: Observation) -> Any:
        """The state after one optimizer step on the global batch `seen`."""
        return state

    def ready(self, step: int, index: PoolIndex) -> bool:
        """Whether a decision is due at `step`, where the trigger fires; if not, nothing is measured or decided."""
        return True

    def gives(self, state: Any, index: PoolIndex) -> dict[str, Any]:
        """What the finished run hands to runs that build on it, e.g. {"mixture": {domain: share}}.

        JSON values, or tensors, which are handed over as the path of a .npy file.
        """
        return {}

    def notes(self, state: Any, decision: Any, seen: Observation) -> list[str]:
        """What the user should know about a decision, e.g. that a cap left tokens unspent; warnings in the record."""
        return []

    def advance(self, state: Any, decision: Any, seen: Observation) -> Any:
        """The state after a decision was made; for strategies that must remember what they decided."""
        return state


def advice(strategy: Strategy, index: PoolIndex) -> list[str]:
    """What the user should know before what a strategy needs is measured of the rows that it decides over."""
    rows = min(getattr(strategy, "candidates", None) or index.rows, index.rows)
    return [text for signal in strategy.needs() if (text := signal.advice(rows)) is not None]


class Selection(NamedTuple):
    """Rows that may be drawn, with how often (`repeats`) or in what proportion (`sampling_weight`) at most one of them.

    ids: (M,) int64; repeats: (M,) int64; sampling_weight: (M,) float64.
    """

    ids: Tensor
    repeats: Tensor | None = None
    sampling_weight: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Selector(Strategy):
    """Decides which rows may be drawn.

    candidates: rows, drawn at random from the pool, that are measured and chosen from; null takes the whole pool.
    """

    kind: ClassVar[Kind] = "selector"
    candidates: int | None = None

    def __post_init__(self) -> None:
        if self.candidates is not None and self.candidates < 1:
            raise ConfigError("candidates counts rows", got=self.candidates, allowed="1 or more, or null for all")

    def decide(self, state: Any, seen: Observation) -> Tensor | Selection:
        """Ids to keep, out of `seen.ids`, best first where there is a best."""
        raise NotImplementedError(type(self).__name__)

    def row_scores(self, state: Any, seen: Observation) -> Tensor:
        """Scores (n,) float64 of the rows `seen.ids`, higher is better, for `regimen score`; NaN where it has none."""
        for signal in self.needs():
            if seen.values[signal].dim() == 1:
                return seen.values[signal].double()
        return torch.full((len(seen.ids),), torch.nan, dtype=torch.float64)

    def checked(self, decision: Tensor | Selection, seen: Observation) -> Selection:
        """The decision with ids sorted; an empty, foreign or doubled id is refused."""
        chosen = decision if isinstance(decision, Selection) else Selection(decision)
        ids, order = chosen.ids.long().sort()
        name = type(self).__name__
        if len(ids) == 0:
            raise ConfigError(f"{name} kept no row at step {seen.step}", do="raise its ratio or its count")
        if bool((ids[1:] == ids[:-1]).any()) or not bool(torch.isin(ids, seen.ids).all()):
            raise ConfigError(f"{name} must return distinct ids out of the rows it was given", got=f"{len(ids)} ids")
        extra = [None if e is None else e[order] for e in (chosen.repeats, chosen.sampling_weight)]
        return Selection(ids, *extra)


@dataclass(frozen=True, kw_only=True)
class Mixer(Strategy):
    """Decides the share of target tokens of each domain.

    draw, draw_groups: how a global batch is split over domains, see `Plan`.
    """

    kind: ClassVar[Kind] = "mixer"
    draw: Draw = "multinomial"
    draw_groups: int = 1

    def __post_init__(self) -> None:
        allowed = ("multinomial", "fixed_counts", "one_domain")
        if self.draw not in allowed:
            raise ConfigError("unknown way to draw domains", got=f"draw={self.draw}", allowed=", ".join(allowed))
        if self.draw_groups < 1:
            raise ConfigError("draw_groups must be positive", got=self.draw_groups, allowed="1 or more")

    def decide(self, state: Any, seen: Observation) -> Tensor | None:
        """Shares (K,) float64 in the order of `seen.index.domains`; None for the natural share of a plain shuffle."""
        raise NotImplementedError(type(self).__name__)

    def checked(self, decision: Tensor | None, seen: Observation) -> Tensor | None:
        """The decision on the simplex; shares that are negative, not finite, or do not sum to 1 are refused."""
        if decision is None:
            return None
        shares = decision.double()
        name, domains = type(self).__name__, seen.index.domains
        if shares.shape != (len(domains),):
            raise ConfigError(f"{name} must give one share per domain", got=tuple(shares.shape), allowed=list(domains))
        if not bool(torch.isfinite(shares).all()) or bool((shares < 0).any()) or abs(float(shares.sum()) - 1) > 1e-6:
            given = dict(zip(domains, shares.tolist(), strict=True))
            raise ConfigError(f"{name} left the simplex at step {seen.step}", got=given, allowed="shares >= 0, sum 1")
        return shares / shares.sum()


@dataclass(frozen=True, kw_only=True)
class Orderer(Strategy):
    """Decides the sequence of the rows that will be served: one group of all rows, or one per domain under a mixture.

    jitter: after ordering, rows are shuffled inside consecutive windows of this many rows (0: off).
    within: `pool` insists on one order over all domains, `domain` on one per domain; null takes what the plan gives.
    """

    kind: ClassVar[Kind] = "orderer"
    followed: ClassVar[bool] = True
    jitter: int = 0
    within: str | None = None

    def __post_init__(self) -> None:
        if self.jitter < 0:
            raise ConfigError("jitter is a window in rows", got=self.jitter, allowed="0 (off) or more")
        if self.within not in (None, "pool", "domain"):
            raise ConfigError("unknown scope of an order", got=f"within={self.within}", allowed="pool, domain, null")

    def check_rows(self, rows: int) -> None:
        """Raises ConfigError for so many rows, or so few, that it cannot order them: of the pool, or of a group."""

    def init(self, index: PoolIndex) -> Any:
        """The state before the first step. Raises ConfigError for a pool that it cannot order."""
        self.check_rows(index.rows)
        return super().init(index)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Sort keys (n,) for one group of rows; lower is served earlier, ties by id."""
        raise NotImplementedError(type(self).__name__)

    def checked(self, decision: Tensor, seen: Observation) -> Tensor:
        """Ids (n,) in the order of service; keys of another length or that are not numbers are refused."""
        if decision.shape != seen.ids.shape or not bool(torch.isfinite(decision).all()):
            raise ConfigError(
                f"{type(self).__name__} must give one finite sort key per row",
                got=f"{tuple(decision.shape)} keys for {len(seen.ids)} rows",
                do="look at the signal it sorts by: a score that is NaN or missing cannot be ordered",
            )
        ids, keys = seen.ids, decision
        if not ascending(ids):
            by_id = ids.argsort()
            ids, keys = ids[by_id], keys[by_id]
        ids = ids[inverse(keys) if is_permutation(keys) else keys.argsort(stable=True)]  # positions need no sorting
        return shuffle_windows(ids, self.jitter, seen.generator) if self.jitter > 1 else ids


def wrong_scope(name: str, within: str) -> ConfigError:
    """The error for an order over all domains under a mixture, or over each domain without one."""
    if within == "pool":
        return ConfigError(
            f"{name} wants one order over all domains, but a mixture decides which domain comes when",
            got=f"strategies.{name}.within=pool together with a mixer",
            do=f"drop the mixer, or set strategies.{name}.within=domain",
        )
    return ConfigError(
        f"{name} wants one order per domain, but without a mixture the pool is one sequence",
        got=f"strategies.{name}.within=domain",
        do="add a mixer, e.g. `temperature` with strategies.temperature.tau=1 for the natural shares, or set "
        f"strategies.{name}.within=pool",
    )


@dataclass(frozen=True, kw_only=True)
class Weighter(Strategy):
    """Decides how much each example, or each target token, counts in the loss.

    It may need token signals, signals of domains and, with scope `batch`, signals of rows.

    warmup_steps: optimizer steps before it begins, or below 1 a part of the run. Until then every example counts once,
        whatever the reduction, and nothing is measured, observed or learnt: its state is that of the start.
    """

    kind: ClassVar[Kind] = "weighter"
    warmup_steps: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps < math.inf:
            raise ConfigError("warmup_steps counts steps", got=self.warmup_steps, allowed="0 or more; below 1, a part")

    def first_step(self, total_steps: int) -> int:
        """Optimizer steps done before the first batch that it weighs."""
        return int(self.warmup_steps) if self.warmup_steps >= 1 else round(self.warmup_steps * total_steps)

    @property
    def scope(self) -> Literal["example", "batch"]:
        """`example` where a row's weight depends on that row alone; `batch` where it depends on the losses of the whole
        global batch, which are then gathered, and measured by an extra forward pass under accumulation.
        """
        return "example"

    @property
    def unit(self) -> Literal["row", "token"]:
        """What has a weight of its own: a row, or each of its target tokens."""
        return "row"

    def weigh(self, state: Any, losses: Tensor, batch: WeighedBatch) -> Tensor:
        """Weights (n,) for mean token losses (n,) float32, detached; 1 leaves an example as it is.

        With unit `token`: weights (n, L) for token losses (n, L); those where nothing is predicted do not matter.
        """
        raise NotImplementedError(type(self).__name__)

    def renews_target(self, step: int) -> bool:
        """Whether signals of the target set are measured for the batch that follows `step` steps after the warm-up."""
        return True

    def learning_rate_factor(self, state: Any, step: int) -> float:
        """By what the learning rate of the step on the batch after `step` optimizer steps is multiplied."""
        return 1.0

    def shows(self, state: Any, index: PoolIndex) -> dict[str, Any]:
        """What its lines in the record tell beside the weights. JSON values."""
        return {}

    def checked(self, decision: Tensor, losses: Tensor) -> Tensor:
        """The weights; a negative weight or one that is not finite is refused."""
        if decision.shape != losses.shape or not bool((torch.isfinite(decision) & (decision >= 0)).all()):
            raise ConfigError(
                f"{type(self).__name__} must give one weight >= 0 per {'example' if losses.dim() == 1 else 'token'}",
                got=f"{tuple(decision.shape)} for {tuple(losses.shape)} losses, {decision.flatten()[:8].tolist()} ...",
            )
        return decision.detach()
